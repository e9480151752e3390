"""`State`: a place for an app's own things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["State"]


class State:
    """A place for the app's own things, as attributes: `app.state.model = load_model()`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"app.state has no {name!r}: set it in the lifespan")

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...
