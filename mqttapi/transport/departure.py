"""Leaving for good: a session is ended once nothing waits in it any more.

    SUBSCRIBE to the fence ─► UNSUBSCRIBE from all ─► publish the fence ─► … ─► it comes ─► all is acknowledged
              ▲                                                             │                       │
              └────────────────────── the connection was lost ──────────────┘          UNSUBSCRIBE from the fence ─► end

Meanwhile messages are read and handled as ever. What the broker holds for a member of a group that has unsubscribed goes
to no other member, so the session must not end before that has come, nor before it is acknowledged. The answer to the
last UNSUBSCRIBE says that the broker has read the acknowledgements: it may be far behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Final

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.publisher import Publish
from mqttapi.runtime.fence import fence_topic
from mqttapi.transport.connection import Subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqttapi.publisher import PublishResult
    from mqttapi.runtime.intake import Intake
    from mqttapi.transport.connection import Connection

__all__ = ["Departure"]

log = logging.getLogger("mqttapi.link")

AGAIN: Final = 5.0
"""Seconds between two fences: a broker drops one when the queue of the session is full, or when it does not know yet
that somebody has subscribed to it."""
_POLL: Final = 0.02  # seconds
_REFUSED: Final = 0x80


class Departure:
    """One link's way out, over any number of connections.

    Args:
        client_id: Whose session it is.
        publish: Sends a message by another connection; the result comes once the broker has acknowledged it.
    """

    def __init__(self, client_id: str, publish: Callable[[Publish], Awaitable[PublishResult]]) -> None:
        self.topic = fence_topic(client_id)
        self.over = asyncio.Event()
        """Set while the session may be ended, or while it is certain that no fence will come; see `hindrance`."""
        self.found = True
        """Whether the broker had a session; else there was nothing to wait for."""
        self._publish = publish
        self._refusal = ""
        self._through: Connection | None = None  # by which the fence has come

    def hindrance(self, connection: Connection | None, intake: Intake | None) -> str:
        """Why the session must not be ended now; empty when it may."""
        if self._refusal:
            return self._refusal
        if connection is None or intake is None or connection.closed.done():
            return "there is no connection"
        if self._through is not connection:
            return "no fence came in time"
        if intake.ledger.held:
            return f"{intake.ledger.held} messages are not acknowledged"
        return ""

    def nothing_waits(self, connection: Connection) -> None:
        """The broker had no session when `connection` was made."""
        self.found = False
        self._through = connection
        self.over.set()

    async def run(self, connection: Connection, intake: Intake, filters: Callable[[], set[str]]) -> None:
        """Go all the way, as far as `connection` lasts.

        Args:
            connection: One that stands, and is read.
            intake: Where its messages go.
            filters: What the session may be subscribed to; there may be more in the course of time.
        """
        self._refusal = ""
        try:
            while not connection.closed.done():
                try:
                    await self._pass_fence(connection, intake, filters)
                    self._through = connection
                    await self._acknowledged(connection, intake)
                except NotConnected as error:  # there was no answer in time, or the connection was lost
                    log.debug("%s", error)
                else:
                    self.over.set()
                    return
        except BrokerError as error:
            self._refusal = str(error)
            self.over.set()

    def interrupted(self) -> None:
        """The connection was lost: `run` is to be called with the next one."""
        self.over.clear()

    async def _pass_fence(self, connection: Connection, intake: Intake, filters: Callable[[], set[str]]) -> None:
        left = filters() - {self.topic}
        # Both are sent at once: where reading is paused, the answers come late, and messages should not go on coming.
        (code,), _ = await asyncio.gather(
            connection.subscribe_all([Subscription(self.topic, 1)]), self._unsubscribe(connection, sorted(left))
        )
        if code != 1:  # what is granted with QoS 0 may overtake others
            raise ConnectionRefused(
                f"the broker refuses the subscription {self.topic!r}: reason code 0x{code:02X}", reason_code=code
            )
        while True:
            await self._fence(connection, intake)
            more = filters() - left - {self.topic}  # what came tells of one that nobody knew
            if not more:
                return
            await self._unsubscribe(connection, sorted(more))
            left |= more

    async def _unsubscribe(self, connection: Connection, filters: list[str]) -> None:
        if not filters:
            return
        try:
            codes = await connection.unsubscribe_all(filters)
        except NotConnected:
            if connection.closed.done():
                raise
            return  # some brokers send no UNSUBACK
        for filter, code in zip(filters, codes, strict=False):  # 3.1.1: no codes
            if code >= _REFUSED:
                raise ConnectionRefused(
                    f"the broker does not let {filter!r} be unsubscribed: reason code 0x{code:02X}", reason_code=code
                )

    async def _fence(self, connection: Connection, intake: Intake) -> None:
        """Publish one, and return when it has come. Each has a number of its own: an old one may come before."""
        number = secrets.token_hex(8).encode()
        came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def arrived(payload: bytes) -> None:
            if payload == number and not came.done():
                came.set_result(None)

        intake.on_fence = arrived
        while not came.done():
            await self._publish(Publish(self.topic, number, qos=1))
            await asyncio.wait((came, connection.closed), timeout=AGAIN, return_when=asyncio.FIRST_COMPLETED)
            self._check(connection)

    async def _acknowledged(self, connection: Connection, intake: Intake) -> None:
        """Return when all that has come is acknowledged, and the broker has read that."""
        while intake.ledger.held:
            await asyncio.sleep(_POLL)
            self._check(connection)
        with contextlib.suppress(NotConnected):  # some brokers send no UNSUBACK
            await connection.unsubscribe_all([self.topic])
        self._check(connection)

    @staticmethod
    def _check(connection: Connection) -> None:
        if connection.closed.done():
            raise NotConnected(f"the connection was lost while leaving: {connection.closed.result().reason}")
