"""`Consumer`: all links of an app that runs. Which ones there are, the first connection decides."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from mqttapi.config import client_id_warnings, state_dir
from mqttapi.config.record import Record
from mqttapi.config.unreleased import Unreleased
from mqttapi.runtime.intake import Intake
from mqttapi.runtime.links import LinkPlan, overlapping_routes, plan
from mqttapi.transport.left_behind import LeftBehind
from mqttapi.transport.link import Assignment, Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from mqttapi.publisher import Publish, PublishResult
    from mqttapi.runtime.quarantine import Backlog, Quarantine
    from mqttapi.service import Service
    from mqttapi.transport.handshake import Connack, ConnectionOptions

__all__ = ["Consumer", "main_client_id"]

log = logging.getLogger("mqttapi.link")

_SUFFIXES: Final = r"-l[0-9]+|-i[0-9a-f]{6}"
"""What `runtime.links` adds to a client id."""
_PAIRS_SHOWN: Final = 100
_GOODBYE: Final = 2.0
"""Seconds that a broker has to answer the DISCONNECT of a session that is not needed any more."""
_PATIENCE: Final = 3
"""How often `max_hold` may go by without the end of any run: attempts, an exception handler, and what that returned."""


def main_client_id(client_id: str) -> str:
    """The client id of an app's first link, from that of any of its links."""
    return re.sub(rf"({_SUFFIXES})$", "", client_id)


class Consumer:
    """Starts the links, tells how they are, and drains them.

    The first link connects alone. Its CONNACK says whether the broker tells for which subscription a copy was sent; one
    link is enough then, but for isolated routes. Else the filters are spread over links on none of which two overlap.
    Client ids are `<id>`, `<id>-l1` and so on, and `<id>-i<hash of the filters>` for an isolated route.

    A client id that a former version had and this one has not is connected as well, without subscriptions: what waits in
    its session is handled, then the session is ended. So is the only one there is, where the app is to rescue a session.

    Args:
        service: The app that runs.
        options: Of the first link.
        protocol_fallback: Whether 3.1.1 may be tried where the broker does not speak MQTT 5.
        on_change: Called when all links have become ready, or one is no longer.
        quarantine: Of a process whose predecessor died; None: messages run side by side from the start.
    """

    def __init__(
        self,
        service: Service,
        options: ConnectionOptions,
        *,
        protocol_fallback: bool,
        on_change: Callable[[], None],
        quarantine: Quarantine | None = None,
    ) -> None:
        self.links: list[Link] = []
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once all links have been subscribed."""
        self._service = service
        self._options = options
        self._fallback = protocol_fallback
        self._on_change = on_change
        self._quarantine = quarantine
        if quarantine is not None:
            quarantine.begin(
                service.workers,
                service.policy.fail,
                patience=_PATIENCE * service.settings.max_hold,
                name=f"mqttapi[{service.app.name}]",
            )
        self._stand = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._by_id = True
        self._abandoned: list[Link] = []
        self._rescue = ""
        self.kept: dict[str, str] = {}
        """After `leave` and `close`: the client ids whose sessions could not be ended, and why."""

    @property
    def intakes(self) -> Sequence[Intake]:
        """Those of the links that have been connected."""
        return [link.intake for link in self._all if link.intake is not None]

    @property
    def _all(self) -> Sequence[Link]:
        return (*self.links, *self._abandoned)

    @property
    def state(self) -> str:
        """What is not ready and why; empty when all is well."""
        states = [(link, link.state) for link in self.links if link.state]
        if len(self.links) == 1:
            return states[0][1] if states else ""
        return "; ".join(f"{link.options.client_id}: {state}" for link, state in states)

    @property
    def relatives(self) -> list[str]:
        """The client ids of the other links of the same process that have a record on this machine."""
        name = self._options.client_id
        main = main_client_id(name)
        suffixes = self._record(replace(self._options, client_id=main)).siblings(f"({_SUFFIXES})?")
        return [main + suffix for suffix in suffixes if main + suffix != name]

    def former_workers(self, size: int) -> list[str]:
        """The client ids of workers beyond the `size` of the pool that have a record on this machine."""
        if not self._options.session_expiry:
            return []
        stem = main_client_id(self._options.client_id).rstrip("0123456789")
        slots = map(int, self._record(replace(self._options, client_id=stem)).siblings("[0-9]+"))
        return [f"{stem}{slot}" for slot in sorted(slots) if slot >= size]

    def start(self) -> None:
        """Connect."""
        rescues = self._service.rescues is not None
        self._add(self._options, self._nothing if rescues else self._plan, required=True, departs=rescues)

    def watch(self) -> None:
        """To be called about once a second."""
        for link in self._all:
            if link.intake is not None:
                link.intake.watch(subscribed=not link.state)

    # -- the end ------------------------------------------------------------------------------------------------

    async def leave(self, *, timeout: float, rescue: str) -> bool:
        """Give all subscriptions up, for good, and wait until nothing is left that waited for them: `timeout` seconds.

        Messages go on being handled. Then `close` ends the sessions; one in which something may wait stays, with a
        warning that tells how to `rescue` it: a command that lacks the client id.

        Returns:
            Whether nothing is left.
        """
        self._rescue = rescue
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self.ready)
                departures = [link.leave(self._publish) for link in self._all]
                while not all(each.over.is_set() for each in departures):
                    for each in departures:
                        await each.over.wait()
        except TimeoutError:
            return False
        return not any(link.hindrance for link in self.links)

    def stop_reading(self) -> None:
        """Take nothing more from the broker, for good."""
        for link in self._all:
            link.stop_reading()

    @property
    def waiting(self) -> int:
        """Messages that were received and have not been given to the workers."""
        return 0 if self._quarantine is None else self._quarantine.waiting

    async def drain(self) -> None:
        """Return when every message that was received has been given to the workers; nothing may be read meanwhile."""
        if self._quarantine is not None:
            await self._quarantine.drain()

    async def close(self, *, timeout: float) -> None:
        """Acknowledge what has been done, and say goodbye; brokers have `timeout` seconds to answer."""
        for intake in self.intakes:
            intake.flush()
        await asyncio.gather(*(self._close(link, timeout) for link in self._all))

    async def _close(self, link: Link, timeout: float) -> None:
        hindrance = await link.close(timeout=timeout)
        if not hindrance or not link.options.session_expiry:
            return
        name = link.options.client_id
        self.kept[name] = hindrance
        if self._rescue:
            log.warning(
                "the session of %s is kept, as something may wait in it (%s). To handle that, once this process has "
                "ended: %s %s",
                name,
                hindrance,
                self._rescue,
                shlex.quote(name),
            )

    async def cancel(self) -> None:
        """End at once what still runs."""
        if self._quarantine is not None:
            await self._quarantine.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _publish(self) -> Callable[[Publish], Awaitable[PublishResult]]:
        publishing = self._service.publishing
        assert publishing is not None  # noqa: S101  it is opened before a consumer
        return partial(publishing.sender.submit, reserved=True)

    async def _retire(self, link: Link, backlog: Backlog | None) -> None:
        """End a session once what waits in it is handled."""
        await link.leave(self._publish).over.wait()
        hindrance = link.hindrance or await link.close(timeout=_GOODBYE)
        name = link.options.client_id
        if hindrance:
            log.warning("the session of %s, which a former version of the app had left, stays: %s", name, hindrance)
        else:
            log.info("the session of %s, which a former version of the app had left, has ended", name)
        if backlog is not None:
            backlog.end()

    # -- the beginning ------------------------------------------------------------------------------------------

    def _plan(self, connack: Connack, options: ConnectionOptions) -> LinkPlan:
        """Decide on the links, and start the others; gives what the first one is for."""
        service = self._service
        self._by_id = service.app.overlap == "ids" and connack.subscription_ids_available
        first, *others = plan(service.own, by_id=self._by_id)
        self._tell(others)
        options = replace(self._options, protocol=options.protocol)
        for other in others:
            self._start_other(options, other, required=True)
        known = {"", *(other.suffix for other in others)}
        for suffix in self._record(options).siblings(_SUFFIXES) if options.session_expiry else ():
            if suffix not in known:
                log.info("connecting %s%s too, which a former version of the app had left", options.client_id, suffix)
                self._start_other(options, LinkPlan(suffix, ()), required=False)
        return first

    def _nothing(self, connack: Connack, options: ConnectionOptions) -> LinkPlan:
        """Decide that nothing is subscribed to."""
        self._by_id = self._service.app.overlap == "ids" and connack.subscription_ids_available
        return LinkPlan("", ())

    def _tell(self, others: Sequence[LinkPlan]) -> None:
        if others:
            log.info(
                "%d connections: %s",
                len(others) + 1,
                "where filters overlap, the broker does not tell for which one it sends a message"
                if not self._by_id
                else "isolated routes have their own",
            )
        if self._service.worker.slot:
            return  # the first process of a pool says it
        effect = "runs both" if self._service.app.dispatch == "all" else "runs the first"
        for number, (route, other) in enumerate(overlapping_routes(self._service.subscribed)):
            if number == _PAIRS_SHOWN:
                log.info("more routes overlap")
                return
            log.info(
                "%r (%s) and %r (%s) overlap: a message that matches both %s",
                route.name,
                route.template.text,
                other.name,
                other.template.text,
                effect,
            )

    def _start_other(self, options: ConnectionOptions, part: LinkPlan, *, required: bool) -> None:
        options = replace(options, client_id=options.client_id + part.suffix)
        for text in client_id_warnings(options.client_id, options.protocol):
            log.warning("%s", text)
        self._add(options, lambda *_: part, required=required, departs=not required)

    def _add(
        self,
        options: ConnectionOptions,
        decide: Callable[[Connack, ConnectionOptions], LinkPlan],
        *,
        required: bool,
        departs: bool,
    ) -> None:
        service, app = self._service, self._service.app
        left_behind: LeftBehind | None = None
        unreleased: Unreleased | None = None
        if options.session_expiry:
            former = {*app.former_filters, *(each.filter for each in service.subscribed if departs)}
            left_behind = LeftBehind(self._record(options), former=former, groups=service.groups)
            unreleased = Unreleased(options.client_id, self._directory, options.broker.address)
        backlog = None if self._quarantine is None else self._quarantine.backlog(service.settings.max_in_flight)

        def assign(connack: Connack, opened: ConnectionOptions) -> Assignment:
            part = decide(connack, opened)
            own = (*part.subscribed, *part.covered)
            dispatcher = service.dispatcher_of(own, by_id=self._by_id)
            if left_behind is not None:
                dispatcher.on_left_behind = left_behind.found
            intake = Intake(
                app,
                dispatcher,
                service.workers,
                link,
                max_in_flight=service.settings.max_in_flight,
                max_bytes=service.settings.max_in_flight_bytes,
                ordered=app.ack_order == "arrival",
                backlog=backlog,
            )
            return Assignment(part.subscribed, intake, self._by_id)

        link = Link(
            options,
            assign,
            others_stand=self._stand,
            left_behind=left_behind,
            unreleased=unreleased,
            protocol_fallback=self._fallback and not self.links,
            max_payload=service.settings.max_payload,
        )
        name = f"mqttapi[{options.client_id}].link"
        if departs:
            link.leave(self._publish)
        if required:
            self.links.append(link)
            link.on_change = self._changed
        else:
            self._abandoned.append(link)
            self._tasks.append(asyncio.create_task(self._retire(link, backlog), name=f"{name}.end"))
        self._tasks.append(asyncio.create_task(self._run(link, backlog, required=required), name=name))

    async def _run(self, link: Link, backlog: Backlog | None, *, required: bool) -> None:
        try:
            await link.run()
        except Exception as error:  # noqa: BLE001  whoever waits for the service gets it
            if required:
                self._service.fail(error)
            else:
                self._abandoned.remove(link)
                log.warning("%s: %s", link.options.client_id, error)
                if backlog is not None:
                    backlog.end()

    def _changed(self) -> None:
        if all(not link.state for link in self.links):
            self._stand.set()
            if not self.ready.done():
                self.ready.set_result(None)
        self._on_change()

    def _record(self, options: ConnectionOptions) -> Record:
        return Record(options.client_id, self._directory, options.broker.address)

    @property
    def _directory(self) -> Path:
        return state_dir(self._service.app.name, self._service.settings.state_dir)
