"""What there is to know of a function before it is called: its parameters with their hints, and its kind."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from mqttapi.errors import ConfigurationError
from mqttapi.injection.hints import MISSING, show

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

__all__ = [
    "Kind",
    "Parameter",
    "called",
    "hint_of",
    "identity",
    "kind_of",
    "local_names",
    "parameters_of",
    "returned_by",
    "takes",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a handler or dependency, with its hint resolved."""

    name: str
    hint: Any
    default: Any
    keyword: bool
    """Whether it can be given by name only."""

    def __str__(self) -> str:
        return self.name if self.hint is MISSING else f"{self.name}: {show(self.hint)}"


def called(function: object) -> str:
    """What error texts call a function: `ingest()`, `Controller.handle()`."""
    if isinstance(function, functools.partial):
        return called(function.func)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{name.rpartition('<locals>.')[2]}()"


def parameters_of(function: Callable[..., Any], owner: str) -> list[Parameter]:
    """The parameters of a function, class, method, partial or instance with `__call__`.

    Raises:
        ConfigurationError: When one takes any number of arguments, or its hint cannot be resolved.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(f"{owner}: its parameters cannot be read: {error}.") from None
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return [_parameter(function, p, owner) for p in signature.parameters.values() if p.name not in bound]


def _parameter(function: Callable[..., Any], parameter: inspect.Parameter, owner: str) -> Parameter:
    if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise ConfigurationError(
            f"{owner}: '{stars}{parameter.name}' would get nothing: payload keys never become arguments. "
            "Name each parameter; for the whole payload write 'payload: dict'."
        )
    hint = hint_of(function, parameter, owner)
    return Parameter(parameter.name, hint, parameter.default, parameter.kind is parameter.KEYWORD_ONLY)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments by position; what cannot be known is taken to be so."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # something built in
        return True
    return True


def hint_of(function: Callable[..., Any], parameter: inspect.Parameter, owner: str) -> Any:
    """The hint of a parameter of `function`, resolved; MISSING where there is none.

    Raises:
        ConfigurationError: When it cannot be resolved.
    """
    return _resolve(function, parameter.name, parameter.annotation, owner)


def missing_methods(cls: object) -> str:
    """What an abstract class lacks, as `handle(), stop()`; empty where its objects can be made."""
    names: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset()) if isinstance(cls, type) else frozenset()
    return ", ".join(f"{name}()" for name in sorted(names))


def returned_by(function: Callable[..., Any], owner: str) -> Any:
    """The hint of what a function returns.

    Raises:
        ConfigurationError: When it cannot be resolved.
    """
    return _resolve(function, "return", inspect.signature(function).return_annotation, owner)


def _resolve(function: Callable[..., Any], name: str, annotation: Any, owner: str) -> Any:
    """The hint, with the texts in it evaluated, at whatever depth they are."""
    if annotation is MISSING:
        return MISSING
    holder: Any = types.SimpleNamespace(__annotations__={name: annotation})
    plain = _plain_function(function)
    module: Mapping[str, Any] = getattr(plain, "__globals__", {})
    try:
        hints = typing.get_type_hints(holder, dict(module), local_names(plain), include_extras=True)
    except Exception as error:  # noqa: BLE001  whatever evaluating a text raises
        text = annotation if isinstance(annotation, str) else show(annotation)
        way_out = f"Import or define it in the module of {owner}, not under 'if TYPE_CHECKING'."
        raise ConfigurationError(
            f"{owner}: the hint {text!r} of {name!r} cannot be resolved: {error}."
            f"{f' {way_out}' if isinstance(error, NameError) else ''}"
        ) from None
    return hints[name]


def _plain_function(function: Any) -> Any:
    """The function whose hints `inspect.signature` reads."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        cls: Any = function
        function = cls.__init__ if inspect.isfunction(cls.__init__) else cls.__new__
    elif not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.unwrap(getattr(function, "__func__", function))


def local_names(function: Any) -> dict[str, Any]:
    """The names around a function that was defined in another one which still runs, and those it closes over.

    With `from __future__ import annotations` a hint is a text, and a class that is local to a test, say, is found
    nowhere else.
    """
    code: types.CodeType | None = getattr(function, "__code__", None)
    names: dict[str, Any] = {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    if code is None or "<locals>" not in code.co_qualname:
        return names
    frame = sys._getframe()  # as typing and pydantic do
    while frame := frame.f_back:  # type: ignore[assignment]  # ends with None
        around = frame.f_code
        if around.co_filename == code.co_filename and code.co_qualname.startswith(f"{around.co_qualname}.<locals>."):
            names = {**frame.f_locals, **names}
    return {**names, **inspect.getclosurevars(function).nonlocals}


@dataclass(frozen=True, slots=True)
class Kind:
    """How something is to be called."""

    is_async: bool
    is_context: bool
    """Whether it has a `yield`."""
    function: Callable[..., Any]
    """What to call; it gives a context manager where it has a `yield`."""


def kind_of(function: Callable[..., Any]) -> Kind:
    """Look through partials and decorators (as far as they use `functools.wraps`) at what is called in the end."""
    outer: Any = function
    while isinstance(outer, functools.partial):
        outer = outer.func
    if isinstance(outer, type):
        return Kind(False, False, function)
    outer = outer if inspect.isroutine(outer) else type(outer).__call__
    inner = inspect.unwrap(outer)
    # `@contextmanager` is not needed on a dependency, but does no harm.
    is_manager = getattr(outer, "__globals__", {}).get("__name__") == "contextlib"
    if inspect.isasyncgenfunction(inner):
        return Kind(True, True, function if is_manager else asynccontextmanager(function))
    if inspect.isgeneratorfunction(inner):
        return Kind(False, True, function if is_manager else contextmanager(function))
    return Kind(inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(outer), False, function)


def identity(function: Callable[..., Any]) -> Hashable:
    """What tells dependencies apart: bound methods of one object are equal, things that cannot be hashed are not."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function
