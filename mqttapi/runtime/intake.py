"""From the wire to the lanes: what one link has received, who works on it, and when reading has to stop."""

from __future__ import annotations

import asyncio
import logging
import math
from copy import copy
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from mqttapi.logs import RateLimited
from mqttapi.message import HeavyProperties, Message, printable, size_of
from mqttapi.runtime.dispatcher import IGNORED
from mqttapi.runtime.fence import FENCE_PREFIX
from mqttapi.runtime.ledger import Ledger
from mqttapi.runtime.quarantine import CHARGES, Arrival
from mqttapi.runtime.runs import Run, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Sequence

    from mqttapi.app import App
    from mqttapi.message import Properties
    from mqttapi.runtime.dispatcher import Dispatcher
    from mqttapi.runtime.lanes import Workers
    from mqttapi.runtime.ledger import Entry
    from mqttapi.runtime.outcome import Outcome
    from mqttapi.runtime.quarantine import Backlog
    from mqttapi.runtime.runs import Runner

__all__ = ["Intake", "Port"]

log = logging.getLogger("mqttapi.link")

HEAD_AGE: Final = 5.0
"""Seconds after which a message that holds up others is worth a warning."""
SMALL_WINDOW: Final = 12
"""Messages that are held when a broker may have reached its own bound: 20 at a mosquitto as it comes."""
UNMATCHED_PERIOD: Final = 60.0
"""Seconds between two warnings of messages that no route is for."""
_RESUME_AT: Final = 0.75
"""Share of the bounds below which reading goes on, so that it does not stop and go for every message."""


_Submit: TypeAlias = "Callable[[Message, Sequence[Target], Entry | None], None]"


class Port(Protocol):
    """What a transport does for an intake."""

    def write(self, data: bytes) -> None:
        """Send acknowledgements to the broker; nothing happens where there is no connection."""

    def pause(self) -> None:
        """Stop to parse and to read: there is no room."""

    def resume(self) -> None:
        """Go on with what was read, then read."""


class Intake:
    """One link's side of the engine: ledger, bounds, and the way of each message into its lanes.

    Args:
        max_in_flight: Messages in memory before reading stops, 1 to 65,535.
        max_bytes: The same in bytes of topics, payloads and properties.
        ordered: Whether messages are acknowledged in the order of arrival.
        backlog: Where messages wait in a process that begins in quarantine.
    """

    def __init__(
        self,
        app: App,
        dispatcher: Dispatcher,
        workers: Workers,
        port: Port,
        *,
        max_in_flight: int,
        max_bytes: int,
        ordered: bool = True,
        backlog: Backlog | None = None,
    ) -> None:
        self.ledger = Ledger(ordered)
        self.dispatcher = dispatcher
        self.paused = False
        self.received = 0
        """Messages that came, whatever became of them."""
        self.refused = 0
        self._refusals: RateLimited[str] = RateLimited()
        """Packets that were no message: a topic that is not UTF-8, is empty or has a wildcard."""
        self.unmatched = 0
        """Messages that no route is for."""
        self.on_fence: Callable[[bytes], None] | None = None
        """Called with the payload of a message to a fence's topic."""
        self._app = app
        self._targets = dispatcher.targets
        self._workers = workers
        self._port = port
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._light = 0  # runs that have not ended and that the ledger does not know, and their bytes
        self._light_bytes = 0
        special = any(runner.queue is not None or runner.route.ack == "received" for runner in dispatcher.runners)
        self._usual: _Submit | None = self._submit_each if special else None
        self._submit: _Submit | None = self._usual if backlog is None else self._withhold
        """What gives a message to the lanes where that is not `receive` itself."""
        self._backlog = backlog
        self._settled: Container[Runner] = ()  # whose subscriptions are not new on this connection
        self._mqtt5 = True
        self._flushing = False
        self._yielding = False
        self._holds = 0
        self._unmatched_told = (-math.inf, 0)
        self._received_before = 0
        self._warned_of: Entry | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def unknown_ids(self) -> int:
        """Messages that no subscription of this version explains; they went to every route that matches."""
        return self.dispatcher.strays

    # -- what the link tells ------------------------------------------------------------------------------------

    def receive(
        self, topic: str, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int, properties: Properties
    ) -> None:
        """Take one message from the wire. Call `batch_end` after those of one read."""
        self.received += 1
        entry: Entry | None = None
        weight = properties.weight if type(properties) is HeavyProperties else 0
        if qos:
            entry = self.ledger.arrive(packet_id, qos, topic, payload, dup, weight)
            if entry is None:
                self._answer_soon()
                return
        ids = properties.subscription_ids
        targets = self._retained(topic, ids, dup) if retain else self._targets(topic, ids)
        message = Message(topic, payload, qos, retain, dup, packet_id, properties)
        if not targets:
            self._end_unhandled(message, entry, unmatched=targets is not IGNORED)
            return
        if self._submit is not None:
            self._submit(message, targets, entry)
        else:
            submit, app = self._workers.submit, self._app
            if entry is not None:
                entry.pending = len(targets)
            else:
                self._light += len(targets)
                self._light_bytes += len(targets) * (len(topic) + len(payload) + weight)
            for target in targets:
                submit(Run(message, target, app, self, entry))
        ledger = self.ledger
        held, size = ledger.held + self._light, ledger.held_bytes + self._light_bytes
        if held >= self._max_in_flight or size >= self._max_bytes:
            self._pause()

    def refuse(self, topic: str, packet_id: int, qos: int, reason: str) -> None:
        """Count, log and acknowledge what is no message for us: its topic is not UTF-8, its payload is too long, say."""
        self.refused += 1
        runners = [target.runner for target in self._targets(topic)]
        for runner in runners:
            runner.counts["rejected"] += 1
        names = ", ".join(runner.route.name for runner in runners) or "no route"
        if self._refusals.allows(names):
            log.warning("%s rejected a message on %s: %s", names, printable(topic), reason)
        if qos:
            # Nobody runs it, so it is not what ends the time in which the broker sends things again.
            entry = self.ledger.arrive(packet_id, qos, topic, b"", dup=True)
            if entry is not None:
                self.ledger.finish(entry)
            self._answer_soon()

    def connected(self, session_present: bool, *, mqtt5: bool, first: bool = True, known: Collection[str] = ()) -> None:
        """A new connection stands, nothing has been read from it.

        Args:
            session_present: What the CONNACK said.
            mqtt5: Whether the connection speaks MQTT 5; else 3.1.1.
            first: Whether no subscription of this link has stood before.
            known: The filters that a former process may have left in the session.
        """
        self.ledger.connected(session_present, mqtt5=mqtt5)
        if self._backlog is not None:
            self._backlog.connected(session_present)
        self._mqtt5 = mqtt5
        if session_present and mqtt5:
            self._settled = ()  # Retain Handling sees to it: what comes was new, and has not reached us before
        elif not first:
            self._settled = EVERYTHING
        elif session_present:
            self._settled = {r for each in self.dispatcher.own if each.filter in known for r in each.runners}
        else:
            self._settled = ()

    def disconnected(self) -> None:
        """The connection is gone; what runs goes on."""
        self.ledger.disconnected()
        self.paused = False

    def batch_begin(self) -> None:
        """The messages of one read follow."""
        self.ledger.now = self._loop.time()

    def batch_end(self) -> None:
        """The messages of one read are in."""
        self._workers.wake()

    def release(self, packet_id: int) -> None:
        """PUBREL came."""
        self.ledger.release(packet_id)
        self._flush_soon()

    # -- what the workers tell ----------------------------------------------------------------------------------

    def ended(self, run: Run, outcome: Outcome) -> None:
        """See `Origin`."""
        entry: Entry | None = run.ticket
        if entry is None:
            self._light -= 1
            message = run.message  # as `size_of`, without the call
            self._light_bytes -= len(message._topic) + len(message._payload)
            if type(message._properties) is HeavyProperties:
                self._light_bytes -= message._properties.weight
        else:
            entry.pending -= 1
            if entry.pending:
                return
            self.ledger.finish(entry)
        if not self._flushing:
            self._flush_soon()

    def flush(self) -> None:
        """Write every acknowledgement that is due, in one write, and read again where there is room."""
        self._flushing = False
        acknowledgements = self.ledger.take()
        if acknowledgements:
            self._port.write(acknowledgements)
        if self.paused:
            self._resume()

    def hold(self) -> None:
        """Read nothing more until `let_go`, which is to be called as often."""
        self._holds += 1
        self._pause()

    def let_go(self) -> None:
        """The end of a `hold`."""
        self._holds -= 1
        if self.paused:
            self._resume()

    def watch(self, *, subscribed: bool = True) -> None:
        """Warn of a message that holds up all others, and of what was refused. To be called about once a second."""
        for names, count in self._refusals.summaries():
            log.warning("%s rejected %d more messages than were logged", names, count)
        head, now = self.ledger.head(), self._loop.time()
        quiet = self.received == self._received_before
        self._received_before = self.received
        if self._backlog is not None:
            self._backlog.looked(silent=quiet and subscribed and not self.paused)
            if self._backlog.holds:  # most of the age of a message is that of those it waited for
                return
        if head is None or now - head.arrived < HEAD_AGE or head is self._warned_of:
            return
        # Few brokers let a window of thousands be: one that has sent a dozen and falls silent may be at its own bound.
        if self.ledger.held > 0.8 * self._max_in_flight or (quiet and self.ledger.held > SMALL_WINDOW):
            self._warned_of = head
            log.warning(
                "%s has been handling a message on %s for %.0f s: %d others wait for it to be acknowledged, and the "
                "broker may send nothing more. Give the route a shorter timeout, or isolate=True",
                ", ".join(run.route.name for run in self._workers.waiting() if run.ticket is head) or "a route",
                printable(head.topic),
                now - head.arrived,
                self.ledger.held - 1,
            )

    # -- in quarantine --------------------------------------------------------------------------------------------

    def _withhold(self, message: Message, targets: Sequence[Target], entry: Entry | None) -> None:
        """Leave it to the quarantine when a message begins, for as long as there is something to do for it."""
        backlog = self._backlog
        if backlog is None or backlog.idle:
            self._backlog, self._submit = None, self._usual
            self._submit_each(message, targets, entry)
            return
        if entry is None:
            self._light += 1
            self._light_bytes += size_of(message)
        backlog.take(Arrival(self, message, targets, entry))

    def admit(self, arrival: Arrival) -> None:
        """Give a message to the lanes that was left to the quarantine. Call `Workers.wake` after a batch."""
        if arrival.entry is None:
            self._light -= 1
            self._light_bytes -= size_of(arrival.message)
        self._submit_each(arrival.message, arrival.targets, arrival.entry)

    def condemned(self, arrival: Arrival) -> list[Run]:
        """The runs of a message that are not to begin: each is to be given to `ended`. No code of the app sees it."""
        if arrival.entry is not None:
            arrival.entry.pending = len(arrival.targets)
        runs = []
        for target in arrival.targets:
            runner = copy(target.runner)
            runner.key_of = None
            run = Run(arrival.message, Target(runner, target.values, None), self._app, self, arrival.entry)
            run.attempt = CHARGES
            runs.append(run)
        return runs

    # -- what is rare -------------------------------------------------------------------------------------------

    def _submit_each(self, message: Message, targets: Sequence[Target], entry: Entry | None) -> None:
        """Submit where a route may drop, or has its messages acknowledged as they come."""
        waits = False
        if entry is not None:
            entry.pending = 0
        for target in targets:
            runner = target.runner
            if entry is None and runner.queue is not None:
                runner.queue.take(Run(message, target, self._app, runner.queue, None), self._workers)
                waits = waits or runner.queue.full
                continue
            if entry is not None and runner.route.ack == "handled":
                entry.pending += 1
                ticket = entry
            else:
                self._light += 1
                self._light_bytes += size_of(message)
                ticket = None
            self._workers.submit(Run(message, target, self._app, self, ticket))
        if entry is not None and not entry.pending:
            self.ledger.finish(entry)
            self._flush_soon()
        if waits and self._workers.ready and not self._yielding:
            # What is ready is not too much: let it begin before the next message finds the queue full.
            self._yielding = True
            self._loop.call_soon(self._after_turn)
            self._pause()

    def _after_turn(self) -> None:
        if self._workers.ready:
            self._loop.call_soon(self._after_turn)
            return
        self._yielding = False
        if self.paused:
            self._resume()

    def _retained(self, topic: str, ids: tuple[int, ...], dup: bool) -> tuple[Target, ...]:
        """What a message with the retain flag is for. The flag means nothing to those who have it as published."""
        found = self.dispatcher.retained_targets(topic, ids)
        if dup:  # sent before, and perhaps lost on the way
            return found
        wanted = tuple(target for target in found if not self._is_repeated(target.runner))
        return wanted or (IGNORED if found else found)

    def _is_repeated(self, runner: Runner) -> bool:
        route = runner.route
        as_published = route.options.retain_as_published and self._mqtt5
        return route.retained == "new" and not as_published and runner in self._settled

    def _end_unhandled(self, message: Message, entry: Entry | None, *, unmatched: bool) -> None:
        if entry is not None:
            self.ledger.finish(entry)
            self._answer_soon()
        if not unmatched:
            if self.on_fence is not None and message.topic.startswith(FENCE_PREFIX):
                self.on_fence(message.payload)
            return
        self.unmatched += 1
        last, before = self._unmatched_told
        now = self._loop.time()
        if now - last >= UNMATCHED_PERIOD:
            self._unmatched_told = (now, self.unmatched)
            log.warning(
                "no route is for a message on %s, as for %d before: acknowledged and dropped",
                printable(message.topic),
                self.unmatched - before - 1,
            )

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def _answer_soon(self) -> None:
        """After a message that nobody runs: its answer may have to wait behind one that runs, so it takes room too."""
        self._flush_soon()
        ledger = self.ledger
        if ledger.held >= self._max_in_flight or ledger.held_bytes >= self._max_bytes:
            self._pause()

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._port.pause()

    def _resume(self) -> None:
        if not self._yielding and not self._holds and self._has_room():
            self.paused = False
            self._port.resume()

    def _has_room(self) -> bool:
        """Whether enough of both bounds is free to read on."""
        return (
            self.ledger.held + self._light < self._max_in_flight * _RESUME_AT
            and self.ledger.held_bytes + self._light_bytes < self._max_bytes * _RESUME_AT
        )


class _Everything:
    def __contains__(self, item: object) -> bool:
        return True


EVERYTHING: Final = _Everything()
