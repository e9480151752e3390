"""What becomes of messages of QoS 0 that arrive faster than their route handles them.

`overflow="block"` needs nothing of this: the link stops to read at its own bounds, and the broker drops or keeps the
rest. Any other route has a `Queue`, which counts what the route holds, and at its bound drops: the oldest that waits,
the newest, or, long before the bound, all but the latest of each key. Messages of QoS 1 and 2 pass by it.

Only what has to wait is dropped. A read may bring more messages than the bound, for handlers that are quick enough:
the intake stops to parse at the bound, until those that are ready have begun (see `Intake`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from mqttapi.message import size_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint
    from mqttapi.routing import Overflow
    from mqttapi.runtime.lanes import Workers
    from mqttapi.runtime.outcome import Outcome
    from mqttapi.runtime.runs import Run, Runner

__all__ = ["Queue"]

log = logging.getLogger("mqttapi.link")

PERIOD: Final = 10.0
"""Seconds between two summaries of what a route has dropped."""


class Queue:
    """The messages of QoS 0 that one route holds: those that wait, and those whose handlers have not ended.

    It is the `Origin` of their runs.

    Args:
        name: Of the route.
        overflow: What to drop.
        limit: Messages, 1 or more.
        max_bytes: Bytes of topics, payloads and properties.
    """

    def __init__(self, name: str, overflow: Overflow, *, limit: int, max_bytes: int) -> None:
        self.held = 0
        self.held_bytes = 0
        self._name = name
        self._overflow = overflow
        self._limit = limit
        self._max_bytes = max_bytes
        self._waiting: dict[Run, None] = {}  # have not begun, the oldest first
        self._dropped = 0  # since the last summary
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the next message is one too many."""
        return self.held >= self._limit or self.held_bytes >= self._max_bytes

    def around(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, with a note that its run has begun: it is not dropped any more."""
        waiting = self._waiting

        def begin(context: Context) -> Awaitable[object]:
            waiting.pop(context, None)  # type: ignore[call-overload]  # every context here is a run
            return endpoint(context)

        return begin

    def take(self, run: Run, workers: Workers) -> None:
        """Submit a run, or drop it, or others in its place."""
        if self._overflow == "latest":
            self._drop_former(run, workers)
        while self.full:
            oldest = None if self._overflow == "drop_newest" else self._withdraw_oldest(workers)
            if oldest is None:
                self._drop(run.runner)
                return
        self.held += 1
        self.held_bytes += size_of(run.message)
        self._waiting[run] = None
        workers.submit(run)

    def ended(self, run: Run, outcome: Outcome) -> None:
        """See `Origin`."""
        self._waiting.pop(run, None)
        self.held -= 1
        self.held_bytes -= size_of(run.message)

    def summarise(self) -> None:
        """Log what was dropped since the last time, if anything was."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            log.warning(
                "%s dropped %d messages of QoS 0 within %g s: it holds %d, and overflow=%r",
                self._name,
                self._dropped,
                PERIOD,
                self.held,
                self._overflow,
            )
            self._dropped = 0

    def _drop_former(self, run: Run, workers: Workers) -> None:
        """Drop what waits in the run's lane, or for the route to have room."""
        runner = run.runner
        waiting = runner.lanes.get(run.key) or [each for each in runner.backlog if each.key == run.key]
        if waiting and waiting[-1] in self._waiting:
            self._withdraw(waiting[-1], workers)

    def _withdraw_oldest(self, workers: Workers) -> Run | None:
        return next((run for run in self._waiting if self._withdraw(run, workers)), None)

    def _withdraw(self, run: Run, workers: Workers) -> bool:
        """Drop a run, unless it is ready: then it begins in a moment."""
        if not workers.withdraw(run):
            return False
        del self._waiting[run]
        self.held -= 1
        self.held_bytes -= size_of(run.message)
        self._drop(run.runner)
        return True

    def _drop(self, runner: Runner) -> None:
        runner.counts["overflowed"] += 1
        self._dropped += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD, self.summarise)
