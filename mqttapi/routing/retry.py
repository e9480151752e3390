"""`Retry`: how often, and when, a handler that raised runs again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError, Drop, MessageError, RetryLater

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Run the handler again when it raises: `retry=Retry(attempts=5)`, or `retry=5`.

    Dependencies and the route's own middleware run again too. What rejects a message (`InvalidPayload`, `Reject`, …)
    is never retried. All attempts and pauses of a message together take `max_hold` seconds at most.

    Args:
        attempts: How often the handler runs at most, the first time included: 1 to 100.
        delay: Seconds before the second attempt, 0 or more.
        factor: What each further pause is longer by: 1 to 100.
        max_delay: Seconds that a pause lasts at most, 0 or more.
        jitter: Whether each pause is a random time between half of its length and the whole of it, so that messages
            which failed together do not come back together.
        on: The exceptions to retry on: a class, or a tuple of classes.

    Raises:
        ConfigurationError: When one of them is out of its bounds.
    """

    attempts: int = 3
    delay: float = 0.5
    factor: float = 2.0
    max_delay: float = 5.0
    jitter: bool = True
    on: type[Exception] | tuple[type[Exception], ...] = Exception

    def __post_init__(self) -> None:
        for name, (accepts, rule) in _RULES.items():
            value = getattr(self, name)
            if not accepts(value):
                raise ConfigurationError(f"Retry({name}={value!r}): {name} must be {rule}")
        errors: tuple[Any, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        for error in errors:
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise ConfigurationError(
                    f"Retry(on={self.on!r}): on must be a class of exceptions or a tuple of them, got {error!r}"
                )
            if issubclass(error, (MessageError, Drop, RetryLater)):
                raise ConfigurationError(
                    f"Retry(on={error.__name__}): {error.__name__} has a meaning of its own and is never retried on. "
                    "Leave it out"
                )

    @classmethod
    def of(cls, value: Retry | int | None) -> Retry | None:
        """What `retry=` means: a number is that of the attempts; one attempt is as good as none."""
        retry = cls(value) if isinstance(value, int) else value
        return None if retry is None or retry.attempts == 1 else retry

    def applies(self, error: BaseException, attempts: int) -> bool:
        """Whether there is another attempt after `attempts` of them, the last of which raised `error`."""
        return attempts < self.attempts and isinstance(error, self.on) and not isinstance(error, MessageError | Drop)

    def pause(self, attempts: int) -> float:
        """Seconds to wait after so many attempts."""
        pause = min(self.max_delay, self.delay * self.factor ** (attempts - 1))
        return random.uniform(pause / 2, pause) if self.jitter else pause  # noqa: S311  jitter is no secret


def _number(low: float, high: float = math.inf) -> Callable[[object], bool]:
    def accepts(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high < math.inf

    return accepts


_SECONDS = 86_400.0

_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "attempts": (lambda value: type(value) is int and 1 <= value <= 100, "a whole number from 1 to 100"),
    "delay": (_number(0, _SECONDS), "a number of seconds from 0 to 86,400"),
    "factor": (_number(1, 100), "a number from 1 to 100"),
    "max_delay": (_number(0, _SECONDS), "a number of seconds from 0 to 86,400"),
    "jitter": (lambda value: isinstance(value, bool), "True or False"),
}
