"""What works on the database beside the handlers is ended between two pieces of its work, not within one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["whole"]

_T = TypeVar("_T")

TO_THE_END: Final = 2.0
"""Seconds that a piece of work has to come to its end after it was cancelled."""


async def whole(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `work`; when cancelled, for its end first.

    The driver of SQLite works in a thread, which would else be left with an answer for a loop that has ended meanwhile:
    it is told to end, but nobody waits for that.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        done, _ = await asyncio.wait([task], timeout=TO_THE_END)
        if not done:
            task.cancel()
        elif not task.cancelled():
            task.exception()  # so that it is not reported as never looked at
        raise
    return task.result()
