"""A link: one client id that consumes, kept alive over any number of connections."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.runtime.dispatcher import subscription_id
from mqttapi.transport.connection import Connection, Subscription
from mqttapi.transport.receiving import receiver_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.runtime.intake import Intake
    from mqttapi.transport.connection import Closed
    from mqttapi.transport.handshake import Connack, ConnectionOptions
    from mqttapi.transport.receiving import Receiver

__all__ = ["Link", "Subscribed"]

log = logging.getLogger("mqttapi.link")

SHORT_LIFE = 5.0
"""Seconds: a connection that ends sooner counts as a failed attempt."""
MAX_DELAY = 30.0
"""Seconds between two attempts, at most."""
TAKEN_OVER = 0x8E
"""Reason code of the DISCONNECT that a client gets when another one comes with its id [MQTT5 §3.14.2.1]."""
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
        self._options = options
        self._subscriptions = subscriptions
        self._fallback = protocol_fallback
        self._max_payload = max_payload
        self._connection: Connection | None = None
        self._receiver: Receiver | None = None
        self._closing = False
        self._failures = 0
        self._never_answered = 0
        self._had_session = False

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
                    raise
                self._failed(error)
            except BrokerError as error:
                self._failed(error)
            if self._failures:
                await asyncio.sleep(self._delay())

    async def close(self, session_expiry: int | None = None) -> None:
        """Write what is due, and DISCONNECT."""
        self._closing = True
        if self._connection is not None:
            await self._connection.close(session_expiry=session_expiry)

    async def _one_connection(self) -> None:
        assert self.intake is not None  # noqa: S101  set before `run`
        options = self._options
        connection = Connection(options)
        try:
            connack = await connection.open()
        except BrokerError as error:
            if self._fall_back(error, options):
                return
            raise
        self._never_answered = 0
        self._note_session(connack, options)
        self._connection = connection
        self._receiver = receiver_of(connection, self.intake, self._max_payload)
        self.intake.connected(connack.session_present, mqtt5=options.protocol == "5")
        began = asyncio.get_running_loop().time()
        try:
            self._receiver.start()
            await self._subscribe(connection, connack, options)
            closed = await connection.closed
        finally:
            self._connection = self._receiver = None
            self.intake.disconnected()
            if not connection.closed.done():
                await connection.close()
        self._after(closed, asyncio.get_running_loop().time() - began)

    def _fall_back(self, error: BrokerError, options: ConnectionOptions) -> bool:
        """Whether to go on with MQTT 3.1.1: only on the first connection ever, and only from 5."""
        if not self._fallback or options.protocol != "5" or self.ready.done():
            return False
        unsupported = isinstance(error, ConnectionRefused) and error.reason_code == 0x84
        if isinstance(error, NotConnected) and error.closed_before_connack:
            self._never_answered += 1
        if not unsupported and self._never_answered < 3:
            return False
        log.warning(
            "%s does not speak MQTT 5: going on with MQTT 3.1.1. MQTT_PROTOCOL=3.1.1 says so from the start",
            options.where,
        )
        self._options = replace(options, protocol="3.1.1")
        return True

    def _note_session(self, connack: Connack, options: ConnectionOptions) -> None:
        if self._had_session and not connack.session_present and not options.clean_start:
            log.warning(
                "session lost: %s has forgotten the session of %s; messages that waited there may be lost",
                options.where,
                options.client_id,
            )
        self._had_session = True

    def _after(self, closed: Closed, lived: float) -> None:
        if closed.by_us and self._closing:
            return
        if closed.reason_code == TAKEN_OVER:
            raise ConnectionRefused(
                "the client id was taken over by another client: every process needs an id of its own. "
                "Set MQTT_INSTANCE (or MQTT_CLIENT_ID) apart",
                reason_code=TAKEN_OVER,
            )
        self.state = f"connection lost: {closed.reason}"
        self._failures = self._failures + 1 if lived < SHORT_LIFE else 1
        log.warning("connection lost: %s; connecting again", closed.reason)

    def _failed(self, error: BrokerError) -> None:
        self._failures += 1
        self.state = str(error)
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(level, "%s; trying again until it works", error)

    def _delay(self) -> float:
        """Exponential backoff with full jitter; the first attempt after a loss is nearly immediate."""
        return random.uniform(0, min(MAX_DELAY, 0.1 * 2 ** min(self._failures, 10)))  # noqa: S311  no secret

    # -- subscriptions --------------------------------------------------------------------------------------------

    async def _subscribe(self, connection: Connection, connack: Connack, options: ConnectionOptions) -> None:
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
        self.state = ""
        self._failures = 0
        if self.ready.done():
            log.info("connected again and subscribed")
        else:
            log.info("connected to %s as %s, subscribed to %d filters", options.where, options.client_id, len(wanted))
            self.ready.set_result(None)

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
