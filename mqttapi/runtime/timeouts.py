"""Attempts that take too long: how a cancellation of ours is told from any other.

Where a run waits, the workers' sweep looks at its `deadline` (see `runtime.lanes`). Once that has passed, the sweep makes
it negative and cancels the task, and whoever gets to see the cancellation takes both back: the task serves other
messages after it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqttapi.runtime.runs import Run

__all__ = ["HandlerTimeout", "attempt_error", "uncancel_overdue"]


class HandlerTimeout(TimeoutError):
    """Raised in place of a handler's result when an attempt took longer than the route's `timeout`, or `max_hold`."""

    def __init__(self, seconds: float, why: str = "") -> None:
        super().__init__(why or f"took longer than {seconds:g} s")


def attempt_error(run: Run, error: BaseException, seconds: float | None = None) -> BaseException:
    """What an attempt of the current task is taken to have raised: `HandlerTimeout` where the sweep cancelled it.

    `seconds` are those that it had; None: the route's timeout.
    """
    if not uncancel_overdue(run) or not isinstance(error, asyncio.CancelledError):
        return error
    timeout = HandlerTimeout(seconds or run.runner.timeout or 0.0, getattr(error, "waited_for", ""))
    timeout.__cause__ = error
    return timeout


def uncancel_overdue(run: Run) -> bool:
    """Whether the sweep cancelled the current task for this run; if so, it takes no notice of that any more."""
    if (getattr(run, "deadline", None) or 0.0) >= 0:
        return False
    run.deadline = None
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
    return True
