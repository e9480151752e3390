"""`Relay`: sends what the outbox holds.

Theory of operation. Every worker that uses the outbox has a relay, and a lease in the database says whose turn it is. A
relay looks when a transaction of its own worker has been committed, and once a second for those of others. If there is
something to send it takes the lease, sends until nothing is left, and gives the lease back in the transaction that found
nothing: what is committed later finds the lease free. An outbox at rest costs one query a second, and writes nothing.

A row is deleted when the broker has acknowledged its message; what was sent and not yet deleted when the process ended
is sent again. Rows go in the order of their ids, which is that of their transactions unless these overlapped.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, false, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from mqttapi.errors import NotConnected, PublishQueueFull
from mqttapi.message import printable
from mqttapi.resources.background import whole
from mqttapi.resources.tables import LEASES, OUTBOX, publish_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from mqttapi.publisher import Publish, Publisher

__all__ = ["Relay"]

log = logging.getLogger("mqttapi.outbox")

POLL: Final = 1.0
"""Seconds between two looks for what other workers have left."""
LEASE: Final = 5.0
"""Seconds that a lease lasts: it is renewed while messages are sent, and runs out when its holder ends."""
BATCH: Final = 200
"""Messages that are on their way at once."""
ATTEMPTS: Final = 5
"""How often a message may be refused, before its row is marked as failed."""


class Relay:
    """Sends the rows of the outbox, one relay at a time.

    Args:
        engine: The database that holds the outbox.
        publisher: Sends the messages.
        attempts: How often a message is refused until it is left alone.
        pause: Seconds until a refused message is tried again; twice as many each time.
    """

    def __init__(
        self, engine: AsyncEngine, publisher: Publisher, *, attempts: int = ATTEMPTS, pause: float = 0.5
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._attempts = attempts
        self._pause = pause
        self._holder = uuid.uuid4().hex
        self._news = asyncio.Event()
        self._sending = asyncio.Lock()
        self._not_before: dict[int, float] = {}  # on the clock of the loop, for rows that were refused

    def check(self, publish: Publish) -> None:
        """Refuse what the publisher would refuse later; see `Publisher.check`."""
        self._publisher.check(publish)

    def wake(self) -> None:
        """There is something to send."""
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            self._news.clear()
            try:
                await self.flush()
                failures = 0
            except Exception as error:
                failures += 1
                if not isinstance(error, SQLAlchemyError | OSError | TimeoutError):
                    log.exception("the outbox: this is a bug in mqttapi")
                elif failures == 1:
                    log.warning("the outbox waits for the database: %s", str(error).partition("\n")[0])
                await asyncio.sleep(min(POLL * 2**failures, 30.0))
            try:
                async with asyncio.timeout(POLL):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def flush(self) -> None:
        """Send what waits, unless another worker is at it. Returns when nothing is left but what was just refused."""
        async with self._sending:
            if not await whole(self._anything_waits()):
                return
            sent: list[int] = []
            refused: dict[int, str] = {}
            while rows := await whole(self._turn(sent, refused)):
                sent, refused = await self._send(rows)

    async def _anything_waits(self) -> bool:
        async with self._engine.connect() as connection:
            await connection.execution_options(sqlite_begin="DEFERRED")
            waiting = select(OUTBOX.c.id).where(OUTBOX.c.failed == false()).limit(1)
            return (await connection.execute(waiting)).first() is not None

    async def _turn(self, sent: Sequence[int], refused: Mapping[int, str]) -> Sequence[Row[Any]]:
        """Note what became of the rows before, and give the next; none where there are none, or it is not our turn."""
        async with self._engine.begin() as connection:
            if sent:
                await connection.execute(delete(OUTBOX).where(OUTBOX.c.id.in_(sent)))
            for number, reason in refused.items():
                await self._note_refusal(connection, number, reason)
            if not await self._hold_lease(connection):
                return ()
            waiting = select(OUTBOX).where(OUTBOX.c.failed == false()).order_by(OUTBOX.c.id)
            found = (await connection.execute(waiting.limit(BATCH + len(self._not_before)))).all()
            now = asyncio.get_running_loop().time()
            due = [row for row in found if self._not_before.get(row.id, now) <= now][:BATCH]
            if not due:
                await connection.execute(update(LEASES).where(LEASES.c.holder == self._holder).values(expires_at=0.0))
            return due

    async def _hold_lease(self, connection: AsyncConnection) -> bool:
        now = time.time()
        ours_or_nobodys = or_(
            LEASES.c.holder == self._holder,
            LEASES.c.expires_at < now,
            LEASES.c.expires_at > now + 2 * LEASE,  # a clock was set back
        )
        result = await connection.execute(
            update(LEASES)
            .where(LEASES.c.name == "outbox", ours_or_nobodys)
            .values(holder=self._holder, expires_at=now + LEASE)
        )
        return bool(result.rowcount)

    async def _send(self, rows: Sequence[Row[Any]]) -> tuple[list[int], dict[int, str]]:
        """The ids of what was sent, and of what was refused with the reason."""
        sent, refused = [], {}
        waiting: dict[asyncio.Future[Any], int] = {}
        for row in rows:
            try:
                publish = publish_of(row)
                if publish is None:
                    sent.append(row.id)  # it has expired
                else:
                    waiting[self._publisher.send(publish)] = row.id
            except (PublishQueueFull, NotConnected):
                break
            except Exception as error:  # noqa: BLE001  whatever is wrong with one row, the rest goes on
                refused[row.id] = str(error)
        try:
            await self._confirmed(list(waiting))
        finally:
            for future, number in waiting.items():
                if not future.done():
                    future.cancel()  # what has not been written is taken back
                elif not future.cancelled():
                    problem = future.exception()
                    if problem is None:
                        sent.append(number)
                    elif not isinstance(problem, NotConnected):
                        refused[number] = str(problem)
        if not sent and not refused:
            await asyncio.sleep(self._pause)  # the queue of the publishing connection is full
        return sent, refused

    async def _confirmed(self, futures: Sequence[asyncio.Future[Any]]) -> None:
        """Wait for the broker, as long as it takes and the lease is ours."""
        pending: set[asyncio.Future[Any]] = set(futures)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=LEASE / 3)
            if pending and not await whole(self._hold_on()):
                return

    async def _hold_on(self) -> bool:
        async with self._engine.begin() as connection:
            return await self._hold_lease(connection)

    async def _note_refusal(self, connection: AsyncConnection, number: int, reason: str) -> None:
        row = OUTBOX.c.id == number
        await connection.execute(update(OUTBOX).where(row).values(attempts=OUTBOX.c.attempts + 1, error=reason))
        found = (await connection.execute(select(OUTBOX.c.attempts, OUTBOX.c.topic).where(row))).first()
        if found is None:
            return
        if found.attempts >= self._attempts:
            await connection.execute(update(OUTBOX).where(row).values(failed=True))
            self._not_before.pop(number, None)
            log.error(
                "the outbox gives up on message %d to %s, refused %d times: %s",
                number,
                printable(found.topic),
                found.attempts,
                reason,
            )
        else:
            delay = self._pause * 2 ** (found.attempts - 1)
            self._not_before[number] = asyncio.get_running_loop().time() + delay
