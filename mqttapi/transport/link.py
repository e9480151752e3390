"""A link: one client id that consumes, kept alive over any number of connections."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttapi.config import client_id_warnings
from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.runtime.dispatcher import subscription_id
from mqttapi.transport.connection import Subscription
from mqttapi.transport.dialer import TAKEN_OVER, Dialer
from mqttapi.transport.receiving import receiver_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqttapi.runtime.intake import Intake
    from mqttapi.transport.connection import Closed, Connection
    from mqttapi.transport.handshake import Connack, ConnectionOptions
    from mqttapi.transport.receiving import Receiver

__all__ = ["Link", "Subscribed"]

log = logging.getLogger("mqttapi.link")

_REFUSED = 0x80


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One filter of a link, `$share/<group>/` included, and the names of the routes it serves."""

    filter: str
    qos: int
    routes: tuple[str, ...]
    no_local: bool = False
    retain_as_published: bool = False


class Link:
    """Connects, subscribes, and does so again for as long as it runs. SUBSCRIBE follows every CONNACK: brokers forget.

    Args:
        options: Of each connection.
        subscriptions: What to subscribe to.
        protocol_fallback: Whether 3.1.1 may be tried when the broker does not speak MQTT 5.
        max_payload: Bytes; messages with more are refused.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        subscriptions: Sequence[Subscribed],
        *,
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
        self._options = options
        self._subscriptions = subscriptions
        self._dialer = Dialer(options, protocol_fallback=protocol_fallback)
        self._max_payload = max_payload
        self._connection: Connection | None = None
        self._receiver: Receiver | None = None
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

    async def close(self, session_expiry: int | None = None) -> None:
        """Write what is due, and DISCONNECT."""
        self._closing = True
        if self._connection is not None:
            await self._connection.close(session_expiry=session_expiry)

    async def _one_connection(self) -> None:
        assert self.intake is not None  # noqa: S101  set before `run`
        first = not self._dialer.stood
        connection, connack = await self._dialer.open()
        try:
            if self._closing:
                return
            self._note_connack(connack, connection.options, first=first)
            self._connection = connection
            self._receiver = receiver_of(connection, self.intake, self._max_payload)
            self.intake.connected(connack.session_present, mqtt5=connection.options.mqtt5)
            self._receiver.start()
            await self._subscribe(connection, connack)
            await asyncio.shield(connection.closed)
        except NotConnected:
            if not connection.closed.done():  # else `_ended` says why there is no SUBACK
                raise
        finally:
            self._connection = self._receiver = None
            self.intake.disconnected()
            if not connection.closed.done():
                await connection.close()
            self._dialer.ended(connection.closed.result())
        self._ended(connection.closed.result())

    def _note_connack(self, connack: Connack, options: ConnectionOptions, *, first: bool) -> None:
        if first and options.protocol != self._options.protocol:
            log.warning(
                "%s does not speak MQTT 5: going on with MQTT 3.1.1. MQTT_PROTOCOL=3.1.1 says so from the start",
                options.where,
            )
            for warning in client_id_warnings(options.client_id, options.protocol):
                log.warning("%s", warning)
        if not first and not connack.session_present and not options.clean_start:
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
        name = self._options.client_id
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

    async def _subscribe(self, connection: Connection, connack: Connack) -> None:
        options = connection.options
        self._refuse_missing_features(connack, options)
        with_ids = connack.subscription_ids_available
        wanted = [
            Subscription(
                each.filter,
                each.qos,
                no_local=each.no_local,
                retain_as_published=each.retain_as_published,
                id=subscription_id(each.filter) if with_ids else None,
            )
            for each in self._subscriptions
        ]
        codes = await connection.subscribe_all(wanted) if wanted else []
        for each, code in zip(self._subscriptions, codes, strict=True):
            if code >= _REFUSED:
                raise ConnectionRefused(
                    f"the broker refuses the subscription {each.filter!r} of {', '.join(each.routes)}: "
                    f"reason code 0x{code:02X}. Check the broker's access list",
                    reason_code=code,
                )
            if code < each.qos:
                log.warning(
                    "the broker grants %s (%s) QoS %d only, asked for %d",
                    each.filter,
                    ", ".join(each.routes),
                    code,
                    each.qos,
                )
        if self.ready.done():
            log.info("connected again and subscribed")
        else:
            log.info("connected to %s as %s, subscribed to %d filters", options.where, options.client_id, len(wanted))
            self.ready.set_result(None)
        self._becomes("")

    def _refuse_missing_features(self, connack: Connack, options: ConnectionOptions) -> None:
        for each in self._subscriptions:
            shared = each.filter.startswith("$share/")
            if shared and not connack.shared_available:
                missing, code = "shared subscriptions", 0x9E
            elif not connack.wildcard_available and ("+" in each.filter or "#" in each.filter):
                missing, code = "wildcards in subscriptions", 0xA2
            else:
                continue
            raise ConnectionRefused(
                f"{options.where} does not support {missing}, which {', '.join(each.routes)} needs ({each.filter!r})",
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
