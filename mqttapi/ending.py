"""`Ending`: how an app that was told to stop ends, and by when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttapi.consumer import Consumer
    from mqttapi.hooks import Hooks
    from mqttapi.service import Service
    from mqttapi.transport.publishing import PublishingConnection

__all__ = ["Ending"]

log = logging.getLogger("mqttapi")

_FOR_MESSAGES: Final = 0.9
"""Share of the grace after which messages are cancelled: the rest is for connections and the end of the lifespan."""
_GOODBYE: Final = 2.0
"""Seconds that a broker has to answer a DISCONNECT, at most."""


class Ending:
    """The end of one run of an app: `drain`, then what `in_time` is around, then `confirm`.

    Args:
        grace: Seconds that all of it may take.
        publishing: Closed last.
    """

    def __init__(self, grace: float, publishing: PublishingConnection) -> None:
        self._grace = grace
        self._publishing = publishing
        self._limit = asyncio.timeout(None)
        self._deadline = self._end = 0.0  # on the loop's clock: when messages, and when everything has to be done

    async def drain(self, service: Service, consumer: Consumer, hooks: Hooks) -> None:
        """Run what was accepted, confirm what was published, acknowledge, and say goodbye."""
        publishing, now = self._publishing, asyncio.get_running_loop().time()
        self._deadline, self._end = now + self._grace * _FOR_MESSAGES, now + self._grace
        consumer.stop_reading()
        try:
            async with asyncio.timeout_at(self._deadline):
                await consumer.drain()
                await service.workers.drain()
                if service.backends.relay is not None:
                    await service.backends.relay.flush()
                await publishing.sender.flushed()
        except TimeoutError:
            log.warning(
                "the grace of %g s is nearly over: messages not done: %d (cancelled; those of QoS 1 and 2 come again), "
                "publishes not confirmed: %d",
                self._grace,
                service.workers.outstanding + consumer.waiting,
                publishing.sender.messages,
            )
            await service.workers.stop()
            for run in service.workers.waiting():
                log.error(
                    "%s was cancelled on %s and goes on all the same: it is left behind. An 'except' that catches "
                    "everything is to let asyncio.CancelledError through",
                    run.route.name,
                    printable(run.message.topic),
                )
        await consumer.close(timeout=self._goodbye())
        hooks.update(connected=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(self._deadline, asyncio.get_running_loop().time() + self._goodbye())):
                await hooks.finished()
        publishing.goodbye = self._goodbye()
        self._limit.reschedule(self._end - publishing.goodbye)

    def _goodbye(self) -> float:
        """Seconds for a broker to answer a DISCONNECT, or for what has used up its time: a share of what is left."""
        return max(0.0, min(_GOODBYE, (self._end - asyncio.get_running_loop().time()) / 3))

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What is not done with the body in time is cancelled then; the app ends well nevertheless."""
        try:
            async with self._limit:
                yield
        except TimeoutError:
            if not self._limit.expired():
                raise
            log.warning("the end of the lifespan was not done within the grace of %g s: cancelled", self._grace)

    async def confirm(self, kind: type[BaseException] | None, *_: object) -> None:
        """What the end of the lifespan has published goes out as well, unless the app was cut short."""
        if kind is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await self._publishing.sender.flushed()
