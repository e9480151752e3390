"""`standstill`: a message waits for something else than itself, and its time-out waits with it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttapi.context import Context

__all__ = ["standstill"]


@contextlib.asynccontextmanager
async def standstill(context: Context) -> AsyncIterator[None]:
    """Neither the attempt's time-out nor `max_hold` goes on within it."""
    run: Any = context if hasattr(context, "runner") else None  # a `Run`, but in tests of a middleware alone
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(0)  # the workers know now that the run waits, and have set its deadline
    if run is None:
        yield
        return
    since, until, run.deadline = clock(), run.deadline, None
    try:
        yield
    finally:
        waited = clock() - since
        run.began += waited
        run.deadline = None if until is None else until + waited
