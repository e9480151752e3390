"""`standstill`: a message waits for something else than itself, and its time-out waits with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttapi.context import Context

__all__ = ["standstill"]


def standstill(context: Context, *, anew: bool = False) -> contextlib.AbstractAsyncContextManager[None]:
    """Neither the attempt's time-out nor `max_hold` goes on within it; see `Run.standstill`."""
    run: Any = context  # but in tests of a middleware alone
    return run.standstill(anew=anew) if hasattr(run, "standstill") else contextlib.nullcontext()
