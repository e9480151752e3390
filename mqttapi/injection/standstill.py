"""`standstill`: a message waits for something else than itself, and its time-out waits with it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttapi.context import Context

__all__ = ["standstill"]


def standstill(
    context: Context, *, held: bool = False, anew: bool = False
) -> contextlib.AbstractAsyncContextManager[None]:
    """The attempt's time-out does not go on within it; see `Run.standstill`."""
    run: Any = context  # what a middleware has passed on in its place, or a test has made, has no time limit
    return run.standstill(held=held, anew=anew) if hasattr(run, "standstill") else contextlib.nullcontext()
