"""The markers that decide what a parameter gets: `Depends`, `Payload`, `UserProperty`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MARKERS", "Depends", "Marker", "Payload", "UserProperty"]

# `__new__` returns Any for type checkers, so that a marker may be the default of a parameter of any type.


@dataclass(frozen=True, slots=True, init=False)
class Depends:
    """The parameter gets what `dependency` gives: `Annotated[T, Depends(f)]`, or `= Depends(f)`.

    A dependency is anything that can be called: a function, a class, an instance with `__call__`, a method, a partial.
    Its parameters follow the rules of a handler's. It is called once per attempt, however often it is asked for. With
    `yield` it is a context: what follows the `yield` runs after the handler, last one first, and an exception of the
    handler is raised at the `yield`. It can be replaced there by another exception, but not swallowed: the attempt has
    failed, and every dependency further out is told so (a transaction must not be committed then).

    Args:
        dependency: What to call; the class that is the parameter's hint, when not given.
        use_cache: False: call it anew for this parameter.
        thread: Call a plain `def` in a worker thread; otherwise it runs on the event loop and must not block.
    """

    dependency: Callable[..., Any] | None
    use_cache: bool
    thread: bool

    def __new__(
        cls, dependency: Callable[..., Any] | None = None, *, use_cache: bool = True, thread: bool = False
    ) -> Any:
        return _marker(cls, dependency=dependency, use_cache=use_cache, thread=thread)


@dataclass(frozen=True, slots=True, init=False)
class Payload:
    """The parameter gets the payload, whatever its name; a scalar needs this, unless it is called `payload`."""

    def __new__(cls) -> Any:
        return _marker(cls)


@dataclass(frozen=True, slots=True, init=False)
class UserProperty:
    """The parameter gets the first user property called `name`, or with a hint such as `list[str]` all of them.

    It is text; a scalar hint such as `int` validates it. Where a message has none, the parameter gets its default, else
    None if its hint allows that; else the message is rejected.
    """

    name: str

    def __new__(cls, name: str) -> Any:
        return _marker(cls, name=name)


def _marker(cls: type[Any], **fields: Any) -> Any:
    marker = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(marker, name, value)
    return marker


Marker: TypeAlias = Depends | Payload | UserProperty
MARKERS: Final = (Depends, Payload, UserProperty)
