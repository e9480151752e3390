"""What each parameter of a handler gets: decided once, at registration.

The first rule that fits decides:

    1. a marker: `Depends`, `Payload`, `UserProperty`
    2. the hint is `Message`, `Context` or the type of a resource
    3. the name is in the template: a path parameter
    4. no hint, and called payload, message, topic, client or context
    5. a hint that cannot come from a topic: the payload; a scalar is it only when called `payload`
    6. anything else is an error
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_origin

from pydantic.fields import FieldInfo

from mqttapi.context import Context
from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import Kind, Parameter, called, identity, kind_of, parameters_of
from mqttapi.injection.hints import MISSING, Hint, show
from mqttapi.injection.methods import Method
from mqttapi.injection.params import MARKERS, Depends, Marker, UserProperty
from mqttapi.injection.readers import path_source, payload_source, user_property_source
from mqttapi.injection.sources import Attribute, Call, Dependency, Read, Resource, Signature, Source
from mqttapi.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mqttapi.topics import TopicTemplate

__all__ = ["Analysis", "analyse", "check_payloads"]

_INTERNAL: Final = "mqttapi.resources.relay.Relay"
"""What only `Outbox` asks for."""
_LAZY: Final = (Iterable, Iterator, Generator)
_BY_NAME: Final = {
    "client": "context.app.publisher",
    "context": "context",
    "message": "context.message",
    "payload": "",  # see `payload_source`
    "topic": "context.message.topic",
}


def analyse(
    handler: Callable[..., Any],
    *,
    template: TopicTemplate,
    resources: Collection[type[Any]] = (),
    dependencies: Sequence[Depends] = (),
    name: str | None = None,
) -> Signature:
    """Decide what each parameter of `handler`, and of the dependencies behind it, gets.

    Args:
        handler: A function, method, partial or instance with `__call__`. A plain `def` will run in a worker thread.
        template: Its names are the path parameters.
        resources: The types that the app has something of; a mapping from them will do.
        dependencies: Those of the route: they run before the handler.
        name: The route's name, where it was given one; a lambda needs it.

    Raises:
        ConfigurationError: With the function, the parameter and the choices.
    """
    owner = _check_handler(handler, name)
    analysis = Analysis(template, resources, handler)
    signature = Signature(
        dependencies=tuple(analysis.dependency(marker, f"{owner}: dependencies=") for marker in dependencies),
        handler=analysis.handler(owner),
        template=template,
        resources=resources,
    )
    check_payloads(signature)
    return signature


def _check_handler(handler: Any, name: str | None) -> str:
    """What error texts call it."""
    way_out = "A handler is a function: 'async def', or plain 'def'."
    if isinstance(handler, type):
        raise ConfigurationError(
            f"{handler.__name__} is a class. {way_out} Of a class: {handler.__name__}.method, or "
            f"({handler.__name__}, 'method')."
        )
    if not callable(handler):
        raise ConfigurationError(f"{handler!r} is of type {type(handler).__name__}. {way_out}")
    if getattr(handler, "__name__", None) == "<lambda>":
        if name is None:
            raise ConfigurationError("a lambda has no name for its route. Give name='...', or write a 'def'.")
        return f"{name}()"
    return called(handler)


class Analysis:
    """The rules, for one handler. Each dependency is looked at once."""

    def __init__(self, template: TopicTemplate, resources: Collection[type[Any]], handler: Callable[..., Any]) -> None:
        self._template = template
        self._resources = resources
        self._calls: dict[object, Call] = {}
        self._chain = [handler]

    def handler(self, owner: str) -> Call:
        (handler,) = self._chain
        function = handler.function if isinstance(handler, Method) else handler
        kind = kind_of(function)
        if kind.is_context:
            raise ConfigurationError(
                f"{owner}: a handler cannot 'yield'. Return a value; 'yield' belongs in a dependency, Depends(...)."
            )
        if not isinstance(handler, Method):
            return self._call(handler, owner, kind, in_thread=not kind.is_async)
        itself, *parameters = parameters_of(function, owner)
        arguments = (itself, self._object_of(handler)), *((each, self._source(owner, each)) for each in parameters)
        return Call(handler, function, kind.is_async, False, not kind.is_async, arguments)

    def _object_of(self, method: Method) -> Source:
        return Resource(method.cls, optional=False) if method.has_one_object else Dependency(self.call(method.cls))

    def call(self, function: Callable[..., Any], *, thread: bool = False) -> Call:
        """How to call a dependency."""
        key = identity(function), thread
        if key not in self._calls:
            self._calls[key] = self._first_call(function, thread)
        return self._calls[key]

    def _first_call(self, function: Callable[..., Any], thread: bool) -> Call:
        kind, owner = kind_of(function), f"{called(function)} for {called(self._chain[0])}"
        if thread and kind.is_async:
            raise ConfigurationError(f"{owner} is asynchronous and cannot run in a thread. Leave thread=True out.")
        if identity(function) in map(identity, self._chain):
            chain = " → ".join(called(link) for link in (*self._chain, function))
            raise ConfigurationError(f"dependency cycle: {chain}. Take one of the steps out.")
        self._chain.append(function)
        call = self._call(function, owner, kind, in_thread=thread)
        self._chain.pop()
        return call

    def _call(self, function: Callable[..., Any], owner: str, kind: Kind, *, in_thread: bool) -> Call:
        arguments = tuple((parameter, self._source(owner, parameter)) for parameter in parameters_of(function, owner))
        return Call(function, kind.function, kind.is_async, kind.is_context, in_thread, arguments)

    def dependency(self, marker: Depends, where: str, hint: Hint | None = None) -> Dependency:
        function = marker.dependency
        if function is None:
            function = hint.only if hint else MISSING
            if function is MISSING or not isinstance(function, type):
                raise ConfigurationError(f"{where}: Depends() needs a class for a hint, or a function: Depends(f).")
        if not callable(function):
            raise ConfigurationError(f"{where}: Depends({function!r}) cannot be called. Give a function or a class.")
        return Dependency(self.call(function, thread=marker.thread), marker.use_cache)

    def _source(self, owner: str, parameter: Parameter) -> Source:
        where, hint = f"{owner}: '{parameter}'", Hint.of(parameter.hint, without=MARKERS)
        _refuse_foreign(where, parameter, hint)
        marker = _marker(where, parameter, hint)
        if not (isinstance(marker, Depends) or self._given(hint)):
            _refuse_unchecked(where, hint)
        if marker:
            default = MISSING if parameter.default is marker else parameter.default
            return self._marked(where, marker, replace(parameter, default=default), hint)
        _refuse_blocking_session(where, hint)
        source = (
            self._given(hint)
            or self._path(where, parameter, hint)
            or _named(where, parameter, hint)
            or _payload(where, parameter, hint)
        )
        if source is None:
            raise ConfigurationError(self._unknown(owner, parameter, hint))
        return source

    def _marked(self, where: str, marker: Marker, parameter: Parameter, hint: Hint) -> Source:
        """Rule 1."""
        if isinstance(marker, Depends):
            return self.dependency(marker, where, hint)
        if isinstance(marker, UserProperty):
            return user_property_source(where, marker.name, parameter, hint)
        source = payload_source(where, parameter, hint)
        if source is None:
            raise ConfigurationError(f"{where} cannot be the payload: pydantic has no way to validate it.")
        return source

    def _given(self, hint: Hint) -> Source | None:
        """Rule 2."""
        kind = get_origin(hint.only) or hint.only
        if kind is Message:
            return Attribute("context.message")
        if kind is Context:
            return Attribute("context")
        return Resource(kind, optional=hint.nullable) if kind in self._resources else None

    def _path(self, where: str, parameter: Parameter, hint: Hint) -> Source | None:
        """Rule 3."""
        if parameter.name not in self._template.names:
            return None
        return path_source(where, parameter, hint, self._template, self._resources)

    def _unknown(self, owner: str, parameter: Parameter, hint: Hint) -> str:
        """Rule 6."""
        names = self._template.names
        near = get_close_matches(parameter.name, (*names, *_BY_NAME) if hint.whole is MISSING else names, n=1)
        types = sorted(
            {"Context", "Message", *(kind.__name__ for kind in self._resources if _full_name(kind) != _INTERNAL)}
        )
        guess = f"Did you mean {near[0]!r}? " if near else ""
        name = getattr(hint.only, "__name__", None)
        like = next((kind for kind in self._resources if kind.__name__ == name), None)
        if like is not None:
            guess += f"{_full_name(hint.only)} is another one than {_full_name(like)}. "
        elif not (hint.whole is MISSING or hint.is_scalar):
            guess += f"{show(hint.whole)} is no resource of the app, and no payload that pydantic could validate. "
        return (
            f"{owner}: {parameter.name!r} is neither in {self._template.text!r} ({', '.join(names) or 'no parameters'}) "
            f"nor injectable. {guess}Injectable are {', '.join(types)}, Depends(...), UserProperty(...) and the payload: "
            "a model, dataclass, TypedDict, dict, list or bytes under any name, a scalar when called 'payload' or marked "
            "Payload()."
        )


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _marker(where: str, parameter: Parameter, hint: Hint) -> Marker | None:
    candidates = (*hint.metadata, parameter.default)
    for marker in MARKERS:
        if any(candidate is marker for candidate in candidates):
            raise ConfigurationError(f"{where}: {marker.__name__} needs brackets: {marker.__name__}(...).")
    markers = [candidate for candidate in candidates if isinstance(candidate, MARKERS)]
    if len(markers) > 1:
        names = " and ".join(f"{type(marker).__name__}(...)" for marker in markers)
        raise ConfigurationError(f"{where} has two markers, {names}. Keep one.")
    if not markers:
        return None
    if isinstance(markers[0], Depends) and parameter.default is not MISSING and parameter.default is not markers[0]:
        raise ConfigurationError(f"{where} has a default besides Depends(...), which always gives a value. Drop it.")
    return markers[0]


def _refuse_foreign(where: str, parameter: Parameter, hint: Hint) -> None:
    """What pydantic's and FastAPI's users bring along: it would be taken for a default, or for nothing at all."""
    default = parameter.default
    for item in (*hint.metadata, default):
        if type(item).__name__ in {"Depends", "Security"} and not isinstance(item, Depends):
            raise ConfigurationError(
                f"{where}: {_full_name(type(item))} means nothing here. Take that of MQTTAPI: 'from mqttapi import Depends'."
            )
    if type(default) is FieldInfo:
        raise ConfigurationError(
            f"{where}: as a default Field(...) would be the value itself. Write "
            f"'{parameter.name}: Annotated[{show(hint.whole)}, Field(...)]', and a default behind the '='."
        )
    if isinstance(default, FieldInfo):
        raise ConfigurationError(
            f"{where}: {_full_name(type(default))} means nothing here. A part of the topic needs no marker, a user property "
            "is UserProperty('name'), the payload is Payload()."
        )


def _refuse_unchecked(where: str, hint: Hint) -> None:
    """A hint of which pydantic would make Any, or whose items it looks at only when the handler does."""
    inside = getattr(hint.whole, "__parameters__", ()) if get_origin(hint.whole) else (hint.whole,)
    for variable in inside:
        if isinstance(variable, TypeVar) and variable.__bound__ is None and not variable.__constraints__:
            raise ConfigurationError(
                f"{where}: nothing says what the type variable {variable.__name__} is, so anything would do. Write the "
                "type; a class that inherits such a method overrides it."
            )
    if isinstance(hint.whole, list | dict):
        raise ConfigurationError(
            f"{where}: {hint.whole!r} is a value and no type. Write list[...], dict[...] or a model."
        )
    if any((get_origin(member) or member) in _LAZY for member in hint.members):
        raise ConfigurationError(
            f"{where}: the items would be validated when the handler reads them, too late to reject the message. Write "
            "list[...] or Sequence[...]."
        )


def _refuse_blocking_session(where: str, hint: Hint) -> None:
    for base in getattr(hint.only, "__mro__", ()):
        if base.__name__ == "Session" and base.__module__.startswith("sqlalchemy.orm"):
            raise ConfigurationError(
                f"{where} is synchronous and would block the event loop. Use AsyncSession; a plain 'def' handler, "
                "which runs in a thread, may get a Session of its own through Depends(...)."
            )


def _named(where: str, parameter: Parameter, hint: Hint) -> Source | None:
    """Rule 4."""
    if hint.whole is not MISSING or parameter.name not in _BY_NAME:
        return None
    if parameter.name == "payload":
        return payload_source(where, parameter, hint)
    return Attribute(_BY_NAME[parameter.name])


def _payload(where: str, parameter: Parameter, hint: Hint) -> Source | None:
    """Rule 5."""
    if hint.whole is MISSING or (hint.is_scalar and parameter.name != "payload"):
        return None
    return payload_source(where, parameter, hint)


# ------------------------------------------------------------------------------------------------------ across the plan


def check_payloads(signature: Signature) -> None:
    """Refuse two payloads in one plan. `bytes` may stand beside another one: it is made of them.

    Raises:
        ConfigurationError: With both parameters and their functions.
    """
    first: tuple[Call, Parameter, Hint] | None = None
    for call, parameter, hint in _payloads((*signature.dependencies, Dependency(signature.handler))):
        if hint.only is bytes:
            continue
        if first is None:
            first = call, parameter, hint
            continue
        other, other_parameter, other_hint = first
        if call is other and parameter is not other_parameter:
            raise ConfigurationError(
                f"{call.name}: '{other_parameter}' and '{parameter}' would both get the payload, and a message has one. "
                "Keep one of them."
            )
        if hint.members != other_hint.members:
            raise ConfigurationError(
                f"'{other_parameter}' of {other.name} and '{parameter}' of {call.name} are two different payloads, "
                "and a message has one. Use one model in both."
            )


def _payloads(dependencies: Sequence[Dependency]) -> Iterator[tuple[Call, Parameter, Hint]]:
    for dependency in dependencies:
        for parameter, source in dependency.call.arguments:
            if isinstance(source, Dependency):
                yield from _payloads([source])
            elif isinstance(source, Read) and source.payload:
                yield dependency.call, parameter, source.payload
