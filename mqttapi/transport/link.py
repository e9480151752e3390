"""A link: one client id that consumes, kept alive over any number of connections."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mqttapi.config import client_id_warnings
from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.runtime.links import subscription_id
from mqttapi.transport.connection import Connection, Subscription
from mqttapi.transport.departure import Departure
from mqttapi.transport.dialer import TAKEN_OVER, Dialer
from mqttapi.transport.receiving import receiver_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqttapi.config.unreleased import Unreleased
    from mqttapi.publisher import Publish, PublishResult
    from mqttapi.runtime.intake import Intake
    from mqttapi.runtime.links import Subscribed
    from mqttapi.transport.connection import Closed
    from mqttapi.transport.handshake import Connack, ConnectionOptions
    from mqttapi.transport.left_behind import LeftBehind
    from mqttapi.transport.receiving import Receiver

__all__ = ["Assignment", "Link"]

log = logging.getLogger("mqttapi.link")

_REFUSED: Final = 0x80
_FIRST_PAUSE: Final = 5.0  # seconds until a subscription that was refused later than at the start is tried again
_LONGEST_PAUSE: Final = 60.0


class Assignment(NamedTuple):
    """What a link is for."""

    subscribed: Sequence[Subscribed]
    """What to subscribe to."""
    intake: Intake
    """Where the messages go."""
    by_id: bool
    """Whether they are to say for which subscription they were sent."""


class Link:
    """Connects, subscribes, and does so again for as long as it runs. SUBSCRIBE follows every CONNACK: brokers forget.

    Args:
        options: Of each connection.
        assign: Called when the first connection stands and nothing has been read: says what the link is for.
        others_stand: Set when all links of the app are subscribed.
        left_behind: Of a session that outlives its connections.
        unreleased: Likewise.
        protocol_fallback: Whether 3.1.1 may be tried when the broker does not speak MQTT 5.
        max_payload: Bytes; messages with more are refused.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        assign: Callable[[Connack, ConnectionOptions], Assignment],
        *,
        others_stand: asyncio.Event,
        left_behind: LeftBehind | None = None,
        unreleased: Unreleased | None = None,
        protocol_fallback: bool,
        max_payload: int,
    ) -> None:
        self.intake: Intake | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the first subscription stands."""
        self.state = "not connected yet"
        """What is not ready and why; empty when all is well."""
        self.on_change: Callable[[], None] | None = None
        """Called when the subscriptions stand, and when they do no longer."""
        self.options = options
        self._assign = assign
        self._others_stand = others_stand
        self._left_behind = left_behind
        self._unreleased = unreleased
        self._subscribed: Sequence[Subscribed] = ()
        self._by_id = False
        self._dialer = Dialer(options, protocol_fallback=protocol_fallback)
        self._max_payload = max_payload
        self._connection: Connection | None = None
        self._receiver: Receiver | None = None
        self._errand: asyncio.Task[None] | None = None  # beside the messages, as long as the connection stands
        self._departure: Departure | None = None
        self._session_ended = False
        self._closing = False

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until `close`.

        Raises:
            ConnectionRefused: For good, before the first success; or, at any time, because the client id was taken
                over (`reason_code` 0x8E).
        """
        while not self._closing:
            try:
                await self._one_connection()
            except ConnectionRefused as error:
                if not self.ready.done() or error.reason_code == TAKEN_OVER:
                    self._becomes(str(error))
                    raise
                self._failed(logging.ERROR, str(error))
            except BrokerError as error:
                self._failed(logging.WARNING, str(error))
            if not self._closing:
                await asyncio.sleep(self._dialer.delay())

    async def close(self, *, timeout: float) -> str:
        """Write what is due, and DISCONNECT; the broker has `timeout` seconds to answer.

        After `leave` the session is ended too. Where it must not be, or that is not certain, gives the reason.
        """
        self._closing = True
        connection, hindrance = self._connection, self.hindrance
        if connection is None or self._session_ended:
            return hindrance
        if self._departure is None or hindrance:
            await connection.close(timeout=timeout)
            return hindrance
        self._unreleased = None  # there will be nothing to remember
        hindrance = await _end_session(connection, timeout=timeout)
        self._session_ended = not hindrance
        if self._session_ended and self._left_behind is not None:
            self._left_behind.end()
        return hindrance

    @property
    def found_session(self) -> bool:
        """False where a link that was told to leave has found no session."""
        return self._departure is None or self._departure.found

    @property
    def hindrance(self) -> str:
        """After `leave`: why the session must not be ended now; empty when it may."""
        if self._departure is None or self._session_ended:
            return ""
        return self._departure.hindrance(self._connection, self.intake)

    def leave(self, publish: Callable[[Publish], Awaitable[PublishResult]]) -> Departure:
        """Unsubscribe from everything, now and at each connection to come, and find out when nothing waits any more.

        May be called before `run`: then nothing is ever subscribed to. `publish` sends by another connection.
        """
        if self._departure is None:
            self._departure = Departure(self.options.client_id, publish)
            if self._connection is not None:
                self._attend(self._connection)
        return self._departure

    async def _one_connection(self) -> None:
        first = not self._dialer.stood
        connection, connack = await self._dialer.open()
        try:
            if self._closing:
                return
            self._note_connack(connack, connection.options, first=first)
            if self.intake is None:
                self._subscribed, self.intake, self._by_id = self._assign(connack, connection.options)
            self._connection = connection
            self._receiver = receiver_of(connection, self.intake, self._max_payload)
            self._begin(self.intake, connack, mqtt5=connection.options.mqtt5)
            self._receiver.start()
            if self._departure is None:
                refused = await self._subscribe(connection, connack)
                if self._departure is None:  # else it is attended to already
                    self._attend(connection)
                if refused:
                    await self._insist(connection, refused)
            else:
                self._stands(f"connected to {connection.options.where} as {self.options.client_id}, to end its session")
                self._attend(connection, connack)
            await asyncio.shield(connection.closed)
        except NotConnected:
            if not connection.closed.done():  # else `_ended` says why there is no SUBACK
                raise
        finally:
            self._connection = self._receiver = None
            if self._errand is not None:
                self._errand.cancel()
                self._errand = None
            if self._departure is not None:
                self._departure.interrupted()
            if self.intake is not None:
                self.intake.disconnected()
                self._remember(self.intake, connection)
            if not connection.closed.done():
                await connection.close()
            self._dialer.ended(connection.closed.result())
        self._ended(connection.closed.result())

    def _begin(self, intake: Intake, connack: Connack, *, mqtt5: bool) -> None:
        """Tell those who keep books of a session, before anything is read or sent."""
        known: frozenset[str] = frozenset()
        if self._left_behind is not None:
            filters = [each.filter for each in self._subscribed]
            known = self._left_behind.begin(filters, session_present=connack.session_present)
        if self._unreleased is not None:
            intake.ledger.recall(self._unreleased.take())
        intake.connected(connack.session_present, mqtt5=mqtt5, first=not self.ready.done(), known=known)

    def _remember(self, intake: Intake, connection: Connection) -> None:
        """Leave behind what the next process has to know, unless another client has the session by now."""
        closed = connection.closed
        if self._unreleased is not None and not (closed.done() and closed.result().reason_code == TAKEN_OVER):
            self._unreleased.save(intake.ledger.unreleased)

    def _attend(self, connection: Connection, connack: Connack | None = None) -> None:
        """Do what there is to do while a connection stands. `connack` is given where nothing was subscribed."""
        if self._errand is not None:
            self._errand.cancel()
            self._errand = None
        if self._departure is not None and connack is not None and not connack.session_present:
            self._departure.nothing_waits(connection)
        elif self._departure is not None:
            self._errand = asyncio.create_task(self._depart(self._departure, connection))
        elif self._left_behind is not None:
            self._errand = asyncio.create_task(self._left_behind.unsubscribe(connection, self._others_stand))

    async def _depart(self, departure: Departure, connection: Connection) -> None:
        await self._others_stand.wait()
        if self._left_behind is not None:
            self._left_behind.note(departure.topic)
        assert self.intake is not None  # noqa: S101  a connection that stands has one
        await departure.run(connection, self.intake, self._filters)

    def _filters(self) -> set[str]:
        """What the session may be subscribed to."""
        noted = self._left_behind.filters if self._left_behind is not None else ()
        return {*(each.filter for each in self._subscribed), *noted}

    def _note_connack(self, connack: Connack, options: ConnectionOptions, *, first: bool) -> None:
        if first and options.protocol != self.options.protocol:
            log.warning(
                "%s does not speak MQTT 5: going on with MQTT 3.1.1. MQTT_PROTOCOL=3.1.1 says so from the start",
                options.where,
            )
            for warning in client_id_warnings(options.client_id, options.protocol):
                log.warning("%s", warning)
        known = not first or (self._left_behind is not None and self._left_behind.known)
        if known and not connack.session_present and not options.clean_start:
            log.warning(
                "session lost: %s has forgotten the session of %s; messages that waited there may be lost",
                options.where,
                options.client_id,
            )
        granted = connack.session_expiry
        if first and granted is not None and granted < options.session_expiry:
            log.warning(
                "%s keeps the session of %s for %d s only, not for %d s: what comes in a longer absence is lost",
                options.where,
                options.client_id,
                granted,
                options.session_expiry,
            )

    def _ended(self, closed: Closed) -> None:
        """Say why a connection is no more; raises where another client has taken our place."""
        name = self.options.client_id
        if closed.reason_code == TAKEN_OVER:
            raise ConnectionRefused(
                f"client id {name!r} was taken over by another client: every process needs an id of its own. "
                "Set MQTT_INSTANCE (or MQTT_CLIENT_ID) apart",
                reason_code=TAKEN_OVER,
            )
        if self._closing:
            if not closed.by_us:
                log.warning("connection lost while stopping: %s; what is not acknowledged comes again", closed.reason)
            self._becomes("stopped")
        elif self._dialer.rival:
            self._failed(
                logging.ERROR,
                f"connection lost {self._dialer.evictions} times, each time soon after it stood: is client id {name!r} "
                "used elsewhere? Every process needs an id of its own: set MQTT_INSTANCE (or MQTT_CLIENT_ID) apart",
            )
        else:
            self._failed(logging.WARNING, f"connection lost: {closed.reason}")

    def _failed(self, level: int, text: str) -> None:
        if self._closing:
            return
        log.log(level if self._dialer.is_news(text) else logging.DEBUG, "%s; trying again until it works", text)
        self._becomes(text)

    def _becomes(self, state: str) -> None:
        self.state = state
        if self.on_change is not None:
            self.on_change()

    # -- subscriptions --------------------------------------------------------------------------------------------

    async def _subscribe(self, connection: Connection, connack: Connack) -> dict[Subscription, Subscribed]:
        """Subscribe to everything; gives what was refused, which at the start is an error."""
        options = connection.options
        self._refuse_missing_features(connack, options)
        if self._by_id and not connack.subscription_ids_available:
            log.warning(
                "%s no longer says for which subscription it sends a message: where filters overlap, routes may run "
                "twice until the app is started again",
                options.where,
            )
        wanted = {
            Subscription(
                each.filter,
                each.qos,
                no_local=each.no_local,
                retain_as_published=each.retain_as_published,
                retain_handling=self._retain_handling(each),
                id=subscription_id(each.filter) if self._by_id and connack.subscription_ids_available else None,
            ): each
            for each in self._subscribed
        }
        refused = await self._ask(connection, wanted)
        if refused:
            return refused
        if self.ready.done():
            self._stands("connected again and subscribed")
        else:
            self._stands(f"connected to {options.where} as {options.client_id}, subscribed to {len(wanted)} filters")
        return {}

    async def _insist(self, connection: Connection, refused: dict[Subscription, Subscribed]) -> None:
        """Try again what was refused, with ever longer pauses, while all else goes on."""
        pause = _FIRST_PAUSE
        while refused:
            await asyncio.wait((connection.closed,), timeout=pause)
            if connection.closed.done() or self._departure is not None or self._closing:
                return
            pause = min(2 * pause, _LONGEST_PAUSE)
            with suppress(NotConnected):  # no SUBACK, as little as that says
                refused = await self._ask(connection, refused)
        self._stands("subscribed to everything again")

    async def _ask(
        self, connection: Connection, wanted: dict[Subscription, Subscribed]
    ) -> dict[Subscription, Subscribed]:
        """Send SUBSCRIBE; gives what was refused, after saying so."""
        codes = await connection.subscribe_all(list(wanted)) if wanted else []
        refused: dict[Subscription, Subscribed] = {}
        texts: list[str] = []
        for (subscription, each), code in zip(wanted.items(), codes, strict=True):
            if code >= _REFUSED:
                text = (
                    f"the broker refuses the subscription {each.filter!r} of {each.routes}: "
                    f"reason code 0x{code:02X}. Check the broker's access list"
                )
                if not self.ready.done():
                    raise ConnectionRefused(text, reason_code=code)
                refused[subscription] = each
                texts.append(text)
            elif code < each.qos:
                log.warning(
                    "the broker grants %s (%s) QoS %d only, asked for %d",
                    each.filter,
                    each.routes,
                    code,
                    each.qos,
                )
        if texts:
            self._failed(logging.ERROR, "; ".join(texts))
        return refused

    def _stands(self, text: str) -> None:
        log.info("%s", text)
        if not self.ready.done():
            self.ready.set_result(None)
        self._becomes("")

    def _retain_handling(self, subscribed: Subscribed) -> Literal[0, 1, 2]:
        """[MQTT5 §3.8.3.1]; the retain flag of what comes is looked at as well, see `Intake`."""
        match subscribed.retained:
            case "skip":
                return 2
            case "new":
                return 2 if self.ready.done() else 1  # a session that was lost is new to the broker, not to the app
            case _:
                return 0

    def _refuse_missing_features(self, connack: Connack, options: ConnectionOptions) -> None:
        for each in self._subscribed:
            if each.shared and not connack.shared_available:
                missing, code = "shared subscriptions", 0x9E
            elif not connack.wildcard_available and ("+" in each.filter or "#" in each.filter):
                missing, code = "wildcards in subscriptions", 0xA2
            else:
                continue
            raise ConnectionRefused(
                f"{options.where} does not support {missing}, which {each.routes} needs ({each.filter!r})",
                reason_code=code,
            )

    # -- messages -------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """See `Port`."""
        if self._connection is not None:
            self._connection.write(data)

    def stop_reading(self) -> None:
        """Take nothing more from the broker, for good."""
        self._closing = True
        self.pause()

    def pause(self) -> None:
        """See `Port`."""
        if self._receiver is not None:
            self._receiver.pause()

    def resume(self) -> None:
        """See `Port`."""
        if self._receiver is not None and not self._closing:
            self._receiver.resume()


async def _end_session(connection: Connection, *, timeout: float) -> str:
    """End a session with its connection; gives why that is not certain, else nothing.

    MQTT 3.1.1 knows no other way than to begin a new session, which ends with its connection [MQTT-3.1.2-6].
    """
    options = connection.options
    if options.mqtt5:
        answered = await connection.close(session_expiry=0, timeout=timeout)
        return "" if answered else "the broker has not answered the DISCONNECT"
    await connection.close(timeout=timeout)
    if not options.session_expiry:
        return ""
    again = Connection(replace(options, clean_start=True, session_expiry=0, timeout=timeout))
    try:
        await again.open()
    except BrokerError as error:
        return str(error)
    await again.close(timeout=timeout)
    return ""
