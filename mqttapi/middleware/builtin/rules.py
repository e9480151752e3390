"""What the arguments of middleware have to be."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, TypeGuard

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, takes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["is_number", "require", "require_choice", "require_clock", "require_function"]


def require(owner: str, what: str, value: object, holds: Callable[[Any], bool], rule: str) -> None:
    """Refuse a value.

    Raises:
        ConfigurationError: With the argument, its value and the rule.
    """
    if not holds(value):
        raise ConfigurationError(f"{owner}: {what} must be {rule}, got {value!r}")


def require_function(owner: str, function: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called with the context.

    Raises:
        ConfigurationError: With its name.
    """
    if not takes(function, 1):
        raise ConfigurationError(f"{owner}: {called(function)} must take one argument, the context")


def require_clock(owner: str, clock: object, sleep: object = asyncio.sleep) -> None:
    """Refuse a clock that cannot be asked, and a way to wait that cannot be called.

    Raises:
        ConfigurationError: With the rule.
    """
    require(owner, "clock", clock, lambda it: callable(it) and takes(it, 0), "a function that gives seconds")
    require(owner, "sleep", sleep, lambda it: callable(it) and takes(it, 1), "an async function that takes seconds")


def require_choice(owner: str, what: str, value: object, choices: Collection[str]) -> None:
    """Refuse a text that is none of the choices.

    Raises:
        ConfigurationError: With the choices.
    """
    *most, last = map(repr, choices)
    require(owner, what, value, lambda text: text in choices, f"{', '.join(most)} or {last}")


def is_number(value: object, low: float, high: float = math.inf) -> TypeGuard[float]:
    """Whether it is a number from `low` to `high`, and no infinite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value < math.inf
