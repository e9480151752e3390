"""Where arguments come from: the values that an analysis gives, and a plan is compiled from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mqttapi.injection.functions import Parameter, called

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator

    from mqttapi.injection.hints import Hint
    from mqttapi.topics import TopicTemplate

__all__ = ["Attribute", "Call", "Dependency", "Read", "Resource", "Signature", "Source"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something of the context that needs no work."""

    code: str
    """An expression over `context`, for the plan's code; never a text of the user's."""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What `function` makes of an attribute; it raises `InvalidPayload` or `InvalidParameter`."""

    function: Callable[[Any], Any]
    code: str
    """As for `Attribute`."""
    payload: Hint | None = None
    """The hint, where it is the payload that is read."""
    key: Hashable = None
    """What is equal for reads that give the same: one of them is enough."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What the app has of a type."""

    type: type[Any]
    optional: bool
    """Whether the hint allows None, for an app that has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Dependency:
    """What a call gives, once per attempt; without `use_cache` anew for this argument."""

    call: Call
    use_cache: bool = True


Source: TypeAlias = Attribute | Read | Resource | Dependency


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A handler or dependency, and where its arguments come from."""

    original: Callable[..., Any]
    """What the program wrote."""
    function: Callable[..., Any]
    """What to call; it gives a context manager if `is_context`."""
    is_async: bool
    is_context: bool
    in_thread: bool
    arguments: tuple[tuple[Parameter, Source], ...]

    @property
    def name(self) -> str:
        return called(self.original)


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """A handler with the sources of its arguments; `compile_plan` makes an endpoint of it, as often as is needed."""

    handler: Call
    dependencies: tuple[Dependency, ...]
    """Those of the route: they run first, for their effects."""
    template: TopicTemplate
    resources: Collection[type[Any]]

    @property
    def in_thread(self) -> bool:
        """Whether the handler is a plain `def`: it runs in a worker thread, which nobody can cancel."""
        return self.handler.in_thread

    @property
    def asked(self) -> Iterator[tuple[str, Resource]]:
        """Every resource behind it, with the name of the function that asks for it."""
        for call in (*(dependency.call for dependency in self.dependencies), self.handler):
            yield from _asked(call)


def _asked(call: Call) -> Iterator[tuple[str, Resource]]:
    for _, source in call.arguments:
        if isinstance(source, Resource):
            yield call.name, source
        elif isinstance(source, Dependency):
            yield from _asked(source.call)
