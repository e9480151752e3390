"""Exception handlers: what an app does about an exception that a message has ended with."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from mqttapi.errors import ConfigurationError, Drop, PoisonMessage, Reject, RetryLater
from mqttapi.injection.functions import called, kind_of
from mqttapi.routing.route import source_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mqttapi.context import Context

__all__ = ["ExceptionHandler", "add_exception_handler", "handler_for"]

ExceptionHandler: TypeAlias = "Callable[[Context, Any], Awaitable[Any]]"
"""`async def handler(context, error)`."""

_STEERING = (Drop, Reject, RetryLater)
_UNSEEN = (*_STEERING, PoisonMessage)
"""What no exception handler gets."""


def add_exception_handler(
    handlers: dict[type[Exception], ExceptionHandler], error: type[Exception], function: ExceptionHandler
) -> None:
    """Let `function` handle `error`.

    Raises:
        ConfigurationError: With what is wrong and what it should be.
    """
    _check(error, function)
    if error in handlers:
        other = handlers[error]
        raise ConfigurationError(
            f"exception_handler({error.__name__}): there is one already: {called(other)} ({source_of(other)})"
        )
    handlers[error] = function


def _check(error: object, function: object) -> None:
    if not isinstance(error, type) or not issubclass(error, Exception):
        raise ConfigurationError(
            f"exception_handler({error!r}): give it a class of exceptions: "
            "@app.exception_handler(ValueError) above 'async def handle(context, error)'"
        )
    if issubclass(error, _STEERING):
        raise ConfigurationError(
            f"exception_handler({error.__name__}): {error.__name__} is how a handler says what becomes of a message, "
            "and no exception handler sees it. Register one for an exception of your own, and raise that"
        )
    if issubclass(error, PoisonMessage):
        raise ConfigurationError(
            "exception_handler(PoisonMessage): a message that has killed its process is given to no code of the app, so "
            "no exception handler sees it. Read it from the route's dead_letter"
        )
    form = "An exception handler is 'async def handle(context, error)'."
    name = called(function) if callable(function) else repr(function)
    kind = kind_of(function) if callable(function) else None
    if not callable(function) or kind is None or kind.is_context or not kind.is_async:
        raise ConfigurationError(f"exception_handler({error.__name__}): {name} is not an 'async def'. {form}")
    try:
        inspect.signature(function).bind("context", "error")
    except TypeError:
        raise ConfigurationError(
            f"exception_handler({error.__name__}): {name} does not take two arguments. {form}"
        ) from None


def handler_for(handlers: Mapping[type[Exception], ExceptionHandler], error: BaseException) -> ExceptionHandler | None:
    """The handler of the nearest class that `error` is an instance of; what steers a message has none, nor has one that
    is not to run.
    """
    if handlers and not isinstance(error, _UNSEEN):
        for kind in type(error).__mro__:
            if kind in handlers:
                return handlers[kind]
    return None
