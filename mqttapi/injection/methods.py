"""`Method`: a handler that is a method, and whose object the plan provides."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mqttapi.injection.functions import parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Method"]


class Method:
    """The method `name` of a class. Called, it takes the object first, as the function in the class does.

    Where the constructor takes nothing, one object serves all messages; else the object is a dependency as any other,
    made anew for each attempt, and the constructor's parameters follow the rules of a handler's.
    """

    def __init__(self, cls: type, name: str) -> None:
        self.cls = cls
        self.name = name
        self.function: Callable[..., Any] = getattr(cls, name)
        functools.update_wrapper(self, self.function)
        self.__module__ = cls.__module__
        self.__qualname__ = f"{cls.__qualname__}.{name}"

    @property
    def has_one_object(self) -> bool:
        """Whether the constructor takes nothing."""
        return not parameters_of(self.cls, f"{self.cls.__name__}()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def of_object(self, itself: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the method of an object that stands in for one of the class, where it has one."""
        found = getattr(itself, self.name, None)
        return self.function(itself, *args, **kwargs) if found is None else found(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (self.cls, self.function) == (other.cls, other.function)

    def __hash__(self) -> int:
        return hash((self.cls, self.function))

    def __repr__(self) -> str:
        return f"<method {self.__qualname__}>"
