"""Names for middleware: `"throttle:60,1"` in place of `RateLimit(60, 1)`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError, InvalidParameter
from mqttapi.injection.functions import called, hint_of, kind_of, missing_methods
from mqttapi.injection.hints import Hint
from mqttapi.injection.validation import parameter_reader
from mqttapi.middleware.chain import FORM, as_middleware, check_middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from mqttapi.middleware.chain import MiddlewareFunction

__all__ = ["Aliases", "Layer"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One middleware of a chain, and what it may be called in `without_middleware`."""

    function: MiddlewareFunction
    names: tuple[str, ...] = ()
    """`throttle` and `throttle:60,1`, and the groups that it came with."""

    def is_one_of(self, excluded: Iterable[object]) -> bool:
        """Whether it is named there: by a name, as the thing itself, or by its class."""
        thing = getattr(self.function, "__self__", self.function)
        return any(
            item in self.names
            if isinstance(item, str)
            else isinstance(thing, item)
            if isinstance(item, type)
            else item is thing or item == self.function
            for item in excluded
        )


class Aliases:
    """The names that an app gives to middleware."""

    def __init__(self) -> None:
        self._targets: dict[str, object] = {}
        self._groups: dict[str, Sequence[object]] = {}
        self._known: dict[object, list[list[Layer]]] = {}

    def add(self, name: str, target: object) -> None:
        """Let `name` stand for a middleware, or for a class (or function) that makes one from the parameters.

        Raises:
            ConfigurationError: When the name is taken or none, or `target` can be neither.
        """
        self._check_name(name)
        if _makes(target):
            _check_maker(name, target)
        else:
            as_middleware(target)
        self._targets[name] = target

    def add_group(self, name: str, members: object) -> None:
        """Let `name` stand for several middlewares, outermost first; names among them are already known.

        Raises:
            ConfigurationError: When the name is taken or none, or a member is no middleware and no known name.
        """
        self._check_name(name)
        if not isinstance(members, list | tuple) or not members:
            raise ConfigurationError(f"middleware group {name!r} must be a list, such as ['auth'], got {members!r}")
        for member in members:
            self._layers_of(member, f"middleware group {name!r}")
        self._groups[name] = tuple(members)

    def check(self, names: Iterable[object], where: str) -> None:
        """Refuse a text that names no middleware.

        Raises:
            ConfigurationError: With the nearest name.
        """
        for text in names:
            if isinstance(text, str):
                self._known_name(text, where)

    def layers(self, items: Iterable[object], where: str) -> list[Layer]:
        """What a list of middleware stands for, outermost first; each text makes an object of its own.

        Raises:
            ConfigurationError: When a text names no middleware, or its parameters do not fit.
        """
        return list(chain.from_iterable(self._layers_of(item, where) for item in items))

    def layers_of_scope(self, scope: object, items: Collection[object], where: str) -> list[Layer]:
        """The same for a list that several routes share, and that may grow: they share its objects, too."""
        known = self._known.setdefault(scope, [])
        for item in list(items)[len(known) :]:
            known.append(self._layers_of(item, where))
        return list(chain.from_iterable(known))

    def _layers_of(self, item: object, where: str) -> list[Layer]:
        if not isinstance(item, str):
            return [Layer(check_middleware(item, where))]
        name = self._known_name(item, where)
        if name in self._groups:
            if name != item:
                raise ConfigurationError(
                    f"{where}: {item!r}: a group of middleware takes no parameters. Write {name!r}"
                )
            inner = self.layers(self._groups[name], where)
            return [replace(layer, names=(*layer.names, name)) for layer in inner]
        target = self._targets[name]
        made = _make(target, item, where) if _makes(target) else _refuse_parameters(target, item, name, where)
        return [Layer(check_middleware(made, f"{where}: {item!r}"), (name, item))]

    def _known_name(self, text: str, where: str) -> str:
        name = text.partition(":")[0]
        known = [*self._targets, *self._groups]
        if name not in known:
            near = get_close_matches(name, known, n=1)
            guess = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(sorted(known)) or 'none'}."
            raise ConfigurationError(
                f"{where}: there is no middleware called {name!r}. {guess} "
                f"app.middleware_alias({name!r}, ...) must come before what uses it."
            )
        return name

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not name.strip() or set(name) & set(":, "):
            raise ConfigurationError(f"the name of a middleware is a text without ':', ',' and spaces, got {name!r}")
        if name in self._targets or name in self._groups:
            raise ConfigurationError(f"there is already a middleware called {name!r}. Choose another name")


def _makes(target: object) -> bool:
    """Whether it is called to get a middleware, rather than being one."""
    if isinstance(target, type):
        return True
    return callable(target) and not hasattr(target, "handle") and not kind_of(target).is_async


def _check_maker(name: str, target: Any) -> None:
    label = f"middleware {name!r}: {called(target).removesuffix('()')}"
    if missing := missing_methods(target):
        raise ConfigurationError(f"{label} is abstract: it lacks {missing}. {FORM}")
    try:
        inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{label}: its parameters cannot be read: {error}. {FORM}") from None


def _refuse_parameters(target: object, text: str, name: str, where: str) -> object:
    if text == name:
        return target
    raise ConfigurationError(
        f"{where}: {text!r}: {name!r} is a middleware, not a class that takes parameters. Write {name!r}"
    )


def _make(target: Any, text: str, where: str) -> object:
    """Call `target` with the parameters of `text`, each made what its hint says."""
    _, colon, rest = text.partition(":")
    texts = [part.strip() for part in rest.split(",")] if colon else []
    where = f"{where}: {text!r}"
    arguments = [
        _converted(target, parameter, part, where)
        for part, parameter in zip(texts, _positional(target, len(texts), where), strict=True)
    ]
    try:
        inspect.signature(target).bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {called(target)}: {error}") from None
    try:
        return target(*arguments)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    except Exception as error:
        error.add_note(f"raised for {where}")
        raise


def _positional(target: Callable[..., Any], count: int, where: str) -> list[inspect.Parameter]:
    """The parameters that so many arguments go to."""
    found: list[inspect.Parameter] = []
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            found += [parameter] * (count - len(found))
        elif parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            found.append(parameter)
    if len(found) < count:
        names = ", ".join(parameter.name for parameter in found) or "none"
        raise ConfigurationError(f"{where}: {called(target)} takes {len(found)} parameters ({names}), got {count}")
    return found[:count]


def _converted(target: Callable[..., Any], parameter: inspect.Parameter, text: str, where: str) -> object:
    hint = Hint.of(hint_of(target, parameter, where))
    if hint.is_any:
        return text
    try:
        return parameter_reader(f"{where}: {parameter.name!r}", hint, from_text=True)(text)
    except InvalidParameter as error:
        raise ConfigurationError(str(error)) from None
