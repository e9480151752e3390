"""How the journey of a message through one route ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["DONE", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        kind: `done`: the handler returned. `dropped`: it raised `Drop`. `rejected`: the message is wrong, or the
            handler raised `Reject`. `failed`: the handler raised anything else, or took too long.
        reason: One line without values from the payload; empty when done.
        error: What was raised, if anything was.
        dead_letter: The topic of the dead letter that was made of the message, empty for one on the disk; None where there
            is none.
    """

    kind: Literal["done", "dropped", "rejected", "failed"]
    reason: str = ""
    error: BaseException | None = None
    dead_letter: str | None = None


DONE: Final = Outcome("done")
