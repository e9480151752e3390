"""Attempts: a route's own middleware and handler, run again.

What is outside of the attempts (the middleware of app and routers) sees one outcome. Where there is such middleware,
the attempts are a layer of their own within it; else they cost a message that succeeds nothing: the workers ask for
them when the endpoint has raised.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from mqttapi.errors import RetryLater
from mqttapi.runtime.runs import Run
from mqttapi.runtime.timeouts import attempt_error, uncancel_overdue

if TYPE_CHECKING:
    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint
    from mqttapi.routing import Retry

__all__ = ["Attempts", "HeldTooLong", "left_thread"]

LAST_WORDS = 5.0
"""Seconds that middleware has, at the least, after the last attempt: `max_hold` may be over when that ends."""
_LEAST_PAUSE: Final = 0.01
"""Seconds that a message waits which asks to run again at once: else it would keep a core busy."""


class HeldTooLong(TimeoutError):
    """Raised in place of `RetryLater`, when the message would be held for longer than `max_hold`."""


class Attempts:
    """What one route does when an attempt has raised.

    Args:
        endpoint: One attempt.
        retry: The route's; None: only `RetryLater` makes it run again.
        timeout: Seconds that an attempt may take.
        max_hold: Seconds that attempts and pauses may take together.
        pauses: Whether to wait between two attempts; tests do not, but the time counts.
    """

    def __init__(
        self, endpoint: Endpoint, *, retry: Retry | None, timeout: float, max_hold: float, pauses: bool = True
    ) -> None:
        self._endpoint = endpoint
        self._retry = retry
        self._timeout = timeout
        self._max_hold = max_hold
        self._pauses = pauses

    def layer(self) -> Endpoint:
        """An endpoint: the first attempt, and the others where it raises."""
        endpoint, again = self._endpoint, self.again

        async def attempt(context: Context) -> object:
            try:
                return await endpoint(context)
            except (Exception, asyncio.CancelledError) as raised:
                if not isinstance(context, Run):  # a dict, say, where a handler asks for nothing that is not in it
                    raised.add_note(
                        "there is no second attempt: a middleware has passed on something else than its context"
                    )
                    raise
                error = raised
            try:
                return await again(context, error)
            finally:
                del error  # its traceback knows this frame: nothing should have to wait for the garbage collector

        return attempt

    async def again(self, run: Run, error: BaseException) -> object:
        """After a first attempt that raised `error`, make the others; gives what the first that succeeds returns.

        Raises:
            BaseException: What the last attempt raised.
        """
        error = attempt_error(run, error)
        clock = asyncio.get_running_loop().time
        if not hasattr(run, "began"):  # it has not waited so far
            run.began = clock()
        attempts = 1
        try:
            while True:
                self._hold(run)
                held = clock() - run.began
                pause = self._pause(error, attempts, held)
                if pause is None:
                    raise error
                if isinstance(error, RetryLater) and held + pause >= self._max_hold:
                    raise HeldTooLong(self._too_long(error, held)) from error
                attempts += not isinstance(error, RetryLater)
                await self._wait(run, pause)
                run.attempt += 1
                run.runner.counts["retried"] += 1
                seconds = min(self._timeout, self._max_hold - held - pause)
                run.deadline = clock() + seconds
                try:
                    result = await self._endpoint(run)
                except (Exception, asyncio.CancelledError) as raised:
                    error = attempt_error(run, raised, seconds)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    continue
                uncancel_overdue(run)
                self._hold(run)
                return result
        finally:
            del error  # its traceback knows this frame: nothing should have to wait for the garbage collector

    def _pause(self, error: BaseException, attempts: int, held: float) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        if isinstance(error, RetryLater):
            return max(error.seconds, _LEAST_PAUSE)
        if self._retry is None or not self._retry.applies(error, attempts) or left_thread(error):
            return None
        pause = self._retry.pause(attempts)
        return pause if held + pause < self._max_hold else None

    def _hold(self, run: Run) -> None:
        """Between attempts, and after the last one, what is around them has until `max_hold` is over."""
        run.deadline = max(run.began + self._max_hold, asyncio.get_running_loop().time() + LAST_WORDS)

    async def _wait(self, run: Run, pause: float) -> None:
        await asyncio.sleep(0)  # whether the first attempt waited or not: the workers now know that this run does
        run.deadline = None  # theirs is for the first attempt; the pause is within `max_hold`
        if self._pauses:
            await asyncio.sleep(pause)
        else:
            run.began -= pause

    def _too_long(self, later: RetryLater, held: float) -> str:
        return (
            f"RetryLater({later.seconds:g}) would hold the message for {held + later.seconds:.3g} s, "
            f"longer than max_hold ({self._max_hold:g} s): {later.reason}"
        )


def left_thread(error: BaseException | None) -> bool:
    """Whether a plain `def` still runs, in its thread, for an attempt that ended with `error`."""
    seen: set[int] = set()  # `raise error from error` is a circle, and longer ones are as easy to make
    while error is not None and id(error) not in seen:
        if getattr(error, "thread_runs_on", False):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
