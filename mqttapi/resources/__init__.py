"""Resources: what an app opens once and every handler shares, injected by its type."""

from __future__ import annotations

import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of, parameters_of, returned_by
from mqttapi.injection.hints import MISSING, show

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

__all__ = ["Resource"]

_YIELDS = (AsyncIterator, AsyncGenerator, Iterator, Generator)


@dataclass(frozen=True, slots=True)
class Resource:
    """A function that provides one value, by `yield` or `return`, and the type under which handlers ask for it."""

    function: Callable[..., Any]
    kind: type
    parameters: Mapping[str, type]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Resource:
        """Read what `function` provides and needs from its hints.

        Raises:
            ConfigurationError: When a hint is missing or is no class.
        """
        label = f"resource {called(function)}"
        hints = {parameter.name: parameter.hint for parameter in parameters_of(function, label)}
        provided = returned_by(function, label)
        if typing.get_origin(provided) in _YIELDS:
            provided = typing.get_args(provided)[0]
        if not _is_class(provided) or provided in _YIELDS:
            hint = "it has no return hint" if provided is MISSING else f"its return hint is {show(provided)}"
            raise ConfigurationError(
                f"{label} must say what it provides, by a class: '-> AsyncIterator[httpx.AsyncClient]', say; {hint}"
            )
        for name, hint in hints.items():
            if not _is_class(hint):
                raise ConfigurationError(
                    f"{label}: parameter {name!r} must have App or the type of an earlier resource as its hint"
                )
        return cls(function, provided, hints)

    @property
    def label(self) -> str:
        """What error texts call it."""
        return f"resource {called(self.function)}"

    def add_to(self, resources: dict[type, Resource]) -> None:
        """Put it among the resources of an app.

        Raises:
            ConfigurationError: When one of them provides the same type.
        """
        if self.kind in resources:
            raise ConfigurationError(
                f"{self.label}: there is already a resource of the type {self.kind.__name__}: "
                f"{resources[self.kind].label}"
            )
        resources[self.kind] = self

    async def open(self, stack: contextlib.AsyncExitStack, opened: Mapping[type, object]) -> object:
        """Open it, with what is open already; `stack` closes it."""
        missing = [name for name, hint in self.parameters.items() if hint not in opened]
        if missing:
            raise ConfigurationError(
                f"{self.label}: parameter {missing[0]!r} asks for {self.parameters[missing[0]].__name__}, "
                f"which no earlier resource provides"
            )
        arguments = {name: opened[hint] for name, hint in self.parameters.items()}
        try:
            value = await self._opened(stack, arguments)
        except Exception as error:
            error.add_note(f"raised by {self.label} when it was opened")
            raise
        if value is None:
            raise ConfigurationError(f"{self.label} gave None in place of a {self.kind.__name__}: yield or return it")
        return value

    async def _opened(self, stack: contextlib.AsyncExitStack, arguments: Mapping[str, object]) -> object:
        kind = kind_of(self.function)
        if kind.is_context and kind.is_async:
            return await stack.enter_async_context(kind.function(**arguments))
        if kind.is_context:
            return stack.enter_context(kind.function(**arguments))
        value = self.function(**arguments)
        return await value if isinstance(value, Awaitable) else value


def _is_class(hint: object) -> bool:
    return isinstance(hint, type) and hint not in {Any, MISSING, object}
