"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["eventually", "eventually_sync"]

_POLL = 0.005  # seconds
_T = TypeVar("_T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[_T]], *, within: float = ..., what: str | Callable[[], str] = ...
) -> _T: ...
@overload
async def eventually(
    condition: Callable[[], _T], *, within: float = ..., what: str | Callable[[], str] = ...
) -> _T: ...
async def eventually(condition: Callable[[], Any], *, within: float = 10.0, what: str | Callable[[], str] = "") -> Any:
    """Poll `condition` (a function or a coroutine function) until it gives something true, and return that.

    Fails the test after `within` seconds with `what` was waited for: a text, or a function that describes the state.
    """
    deadline = time.monotonic() + within
    while True:
        outcome = condition()
        value = await outcome if inspect.isawaitable(outcome) else outcome
        if value:
            return value
        if time.monotonic() > deadline:
            _fail(condition, value, within, what)
        await asyncio.sleep(_POLL)


def eventually_sync(condition: Callable[[], _T], *, within: float = 10.0, what: str | Callable[[], str] = "") -> _T:
    """The twin of `eventually` for tests without a loop."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            _fail(condition, value, within, what)
        time.sleep(_POLL)
    return value


def _fail(condition: object, value: object, within: float, what: str | Callable[[], str]) -> None:
    text = what() if callable(what) else what
    if not text:
        code = getattr(condition, "__code__", None)
        text = f"the condition at {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
    pytest.fail(f"not within {within:g} s: {text} (last value: {value!r})")
