"""What middleware is, and how a chain of it is composed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint

__all__ = ["FORM", "MiddlewareFunction", "MiddlewareLike", "as_middleware", "check_middleware", "compose"]

MiddlewareFunction: TypeAlias = "Callable[[Context, Endpoint], Awaitable[Any]]"
"""`async def mw(context, call_next)`: `call_next` may be called again, to run everything inside once more."""


class Handles(Protocol):
    """An object with `async def handle(self, context, next_handler)`."""

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any: ...


MiddlewareLike: TypeAlias = "MiddlewareFunction | Handles"
"""What may be given as middleware; where a list of it is asked for, also the name of an alias."""

FORM = "Middleware is 'async def mw(context, call_next)', or an object with 'async def handle(self, context, next_handler)'."


def compose(middleware: Sequence[MiddlewareFunction], endpoint: Endpoint) -> Endpoint:
    """`endpoint` within `middleware`, the first of them outermost."""
    for layer in reversed(middleware):
        endpoint = _around(endpoint, layer)
    return endpoint


def _around(call_next: Endpoint, layer: MiddlewareFunction) -> Endpoint:
    return lambda context: layer(context, call_next)


def check_middleware(obj: object, where: str) -> MiddlewareFunction:
    """`as_middleware`, whose error says where that was."""
    try:
        return as_middleware(obj)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def as_middleware(obj: object) -> MiddlewareFunction:
    """Take `async def mw(context, call_next)`, or an object with such a method `handle(context, next_handler)`.

    Raises:
        ConfigurationError: When it is neither, with the way out.
    """
    if isinstance(obj, type):
        raise ConfigurationError(f"middleware {obj.__name__} is a class: give an instance, {obj.__name__}(...).")
    middleware = getattr(obj, "handle", obj)
    name = called(middleware) if callable(middleware) else repr(obj)
    if not callable(middleware):
        raise ConfigurationError(f"{name} is no middleware. {FORM}")
    kind = kind_of(middleware)
    if kind.is_context or not kind.is_async:
        raise ConfigurationError(f"{name} is not an 'async def' that returns. {FORM}")
    try:
        inspect.signature(middleware).bind("context", "call_next")
    except TypeError:
        raise ConfigurationError(f"{name} does not take two arguments. {FORM}") from None
    return cast("MiddlewareFunction", middleware)
