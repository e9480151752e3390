"""`Finding`: one thing that `mqttapi check` has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.routing import Route

__all__ = ["LEVELS", "Finding", "Level", "named", "some"]

Level = Literal["error", "warning", "note"]
LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "note")
"""`error`: it cannot work as it is written. `warning`: it can, but seldom as it is meant. `note`: good to know."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say: what is so, why that matters, and the way out, a sentence or two each."""

    level: Level
    routes: tuple[Route, ...]
    """Whom it is about; empty: the app."""
    what: str
    why: str
    way_out: str


def named(routes: Sequence[Route]) -> str:
    """Routes by their names: `'a', 'b' and 3 more`."""
    return some([repr(route.name) for route in routes])


def some(texts: Sequence[str]) -> str:
    """The first few of several texts, and how many more there are."""
    more = len(texts) - _SHOWN
    return ", ".join(texts) if more <= 0 else f"{', '.join(texts[:_SHOWN])} and {more} more"
