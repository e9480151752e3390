"""Controllers: classes whose methods are handlers."""

from __future__ import annotations

import inspect
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, local_names
from mqttapi.injection.methods import Method
from mqttapi.resources.access import Access
from mqttapi.routing.options import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Unpack

    from mqttapi.routing.options import TopicOptions

__all__ = ["Controller", "as_handler", "marked_methods", "topic"]

F = TypeVar("F", bound="Callable[..., Any]")

_MARK = "__mqttapi_topics__"


class Controller(Access):
    """A base for controllers with `self.redis`, `self.db`, `self.publish(…)` and `self.logger` at hand.

        class DeviceController(Controller):
            @topic("data", qos=1)
            async def data(self, device_id: str, reading: Reading) -> None:
                await self.redis.set(f"device:{device_id}", reading.temperature)

        router.controller("devices/<device_id>", DeviceController)

    Any class can be a controller. One object serves all messages of a worker, many at a time, so keep nothing of a
    message in `self`; a class whose constructor takes something gets an object for each attempt, and its constructor's
    parameters follow the rules of a handler's.
    """


def topic(template: str, /, **options: Unpack[TopicOptions]) -> Callable[[F], F]:
    """Mark a method for `router.controller(prefix, Class)`: it handles `prefix` + `template`. It stays what it was.

    Args:
        template: Joined to that of the controller; `""` is the controller's own.
        options: See `TopicOptions`.

    Raises:
        ConfigurationError: When an option is unknown or has a wrong value.
    """
    if callable(template):
        name = getattr(template, "__name__", repr(template))
        raise ConfigurationError(f"@topic needs a topic template: write @topic('data') above {name}")
    given: dict[str, Any] = dict(options)

    def mark(function: F) -> F:
        check(given, f"{called(function)} on {template!r}")
        # Decorators apply from the lowest up: the order in the text is the other way round.
        try:
            setattr(function, _MARK, [(template, given), *getattr(function, _MARK, ())])
        except AttributeError:
            raise ConfigurationError(
                f"@topic({template!r}) marks methods, and this is a {type(function).__name__}: put it above a 'def'"
            ) from None
        return function

    return mark


def marked_methods(controller: Any) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Template, options and handler of each mark in a class or an object, as they stand in the text, bases first."""
    cls = controller if isinstance(controller, type) else type(controller)
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    found = False
    for name in names:
        static = inspect.getattr_static(cls, name)
        marks = getattr(static, _MARK, None) or getattr(getattr(static, "__func__", None), _MARK, None) or ()
        for template, options in marks:
            found = True
            yield template, options, as_handler((controller, name))
    if not found:
        raise ConfigurationError(
            f"controller {cls.__name__} has no method that is marked: write @topic('data') above one, "
            "with 'from mqttapi import topic', or register methods with router.on(...)"
        )


def as_handler(handler: Any) -> Callable[..., Any]:
    """What a router is given, as something to analyse: `(Class, "name")` and `Class.method` become a `Method`.

    Raises:
        ConfigurationError: When there is no such method, or its class cannot be found.
    """
    if isinstance(handler, tuple):
        return _of_pair(handler)
    if isinstance(handler, list):
        raise ConfigurationError(f"{handler!r} is a list. Write a pair in round brackets: (Controller, 'method')")
    if not inspect.isfunction(handler):
        return handler  # type: ignore[no-any-return]  # what cannot be called is refused by the analysis
    holder, _, name = handler.__qualname__.rpartition(".")
    if not holder or holder.endswith("<locals>"):
        return handler
    cls = _find(handler, holder)
    if cls is None:
        return _outside_its_class(handler)
    # A decorated or replaced one is taken as it is, and so is a static method.
    is_method = inspect.getattr_static(cls, name, None) is handler
    return Method(cls, name) if is_method else handler


def _of_pair(pair: tuple[Any, ...]) -> Callable[..., Any]:
    if len(pair) != 2 or not isinstance(pair[1], str) or isinstance(pair[0], str):
        raise ConfigurationError(f"{pair!r} is no handler. Write (Controller, 'method')")
    owner, name = pair
    cls = owner if isinstance(owner, type) else type(owner)
    static = inspect.getattr_static(cls, name, None)
    found = getattr(owner, name, None)
    if not callable(found):
        methods = [known for known in dir(cls) if not known.startswith("_") and callable(getattr(cls, known, None))]
        near = get_close_matches(name, methods, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(methods) or 'none'}."
        raise ConfigurationError(f"{cls.__name__} has no method {name!r}. {hint}")
    return Method(owner, name) if owner is cls and inspect.isfunction(static) else found


def _find(function: Any, qualname: str) -> type | None:
    """The class of that name, where the function was written."""
    path = qualname.rpartition("<locals>.")[2].split(".")
    names = local_names(function) if "<locals>" in qualname else vars(sys.modules.get(function.__module__, object))
    found: Any = names.get(path[0])
    for part in path[1:]:
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _outside_its_class(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in a class that is not complete yet, or cannot be reached."""
    if next(iter(inspect.signature(function).parameters), None) != "self":
        return function
    name = called(function)
    cls, _, method = name.removesuffix("()").rpartition(".")
    raise ConfigurationError(
        f"{name} is a method, and its class {cls} is not there yet, or not by this name. Mark it with @topic(...) from "
        f"mqttapi and register the class with router.controller(...), or write router.on(..., ({cls}, {method!r}))"
    )
