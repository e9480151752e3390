"""What a hint says, taken apart."""

from __future__ import annotations

import functools
import inspect
import ipaddress
import sys
import types
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, NewType, TypeGuard, Union, get_args, get_origin
from uuid import UUID

__all__ = ["MISSING", "Hint", "is_scalar", "is_table", "show"]

MISSING: Final = inspect.Parameter.empty
"""Stands for a hint, or a default, that is not there."""

_SCALARS: Final = (
    *(str, int, float, complex, Decimal, UUID, Enum, date, time, timedelta),
    *(PurePath, ipaddress.IPv4Address, ipaddress.IPv6Address),
)


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint, taken apart once."""

    whole: Any
    """As it was written, without our markers: what pydantic validates with."""
    metadata: tuple[object, ...] = ()
    """What the outermost `Annotated` carries."""
    members: tuple[Any, ...] = ()
    """The types of the union that it is, without None; one, where it is none. `Any` and `object` have none."""
    nullable: bool = False
    """Whether it allows None."""
    constrained: bool = False
    """Whether a member is `Annotated`, so that being of the member's type is not enough."""

    @classmethod
    def of(cls, hint: Any, without: tuple[type, ...] = ()) -> Hint:
        """Take `hint` apart. Metadata of the classes `without` is for us alone, and not for pydantic."""
        inner, metadata = _annotated(hint)
        kept = tuple(item for item in metadata if not isinstance(item, without))
        if len(kept) < len(metadata):
            hint = functools.reduce(lambda made, item: Annotated[made, item], kept, inner)
        members, constrained = _members(hint)
        if Any in members or object in members or hint is MISSING:
            return cls(hint, metadata, (), nullable=True, constrained=constrained)
        nullable = types.NoneType in members
        return cls(hint, metadata, tuple(m for m in members if m is not types.NoneType), nullable, constrained)

    @property
    def only(self) -> Any:
        """The one type that it is, None aside; MISSING where there are several, or none."""
        return self.members[0] if len(self.members) == 1 else MISSING

    @property
    def plain(self) -> Any:
        """`only`, where nothing else is asked of a value than to be of this type."""
        return MISSING if self.constrained else self.only

    @property
    def is_any(self) -> bool:
        """Whether it allows everything; so does no hint."""
        return self.nullable and not self.members and self.whole is not None and self.whole is not types.NoneType

    @property
    def is_scalar(self) -> bool:
        """Whether a short text can be it, whichever of its types is meant."""
        return bool(self.members) and all(map(is_scalar, self.members))


def _annotated(hint: Any) -> tuple[Any, tuple[object, ...]]:
    """The outermost type, and what `Annotated` says of it, also behind a `type` alias."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        inner, deeper = _annotated(inner)
        return inner, (*deeper, *metadata)
    if _is_alias(hint):
        inner, metadata_behind = _annotated(_alias_value(hint))
        return (inner, metadata_behind) if metadata_behind else (hint, ())
    return hint, ()


def _members(hint: Any) -> tuple[tuple[Any, ...], bool]:
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])[0], True
    if isinstance(hint, NewType):
        return _members(hint.__supertype__)
    if _is_alias(hint):
        return _members(_alias_value(hint))
    if get_origin(hint) in {Union, types.UnionType}:
        parts = [_members(part) for part in get_args(hint)]
        return tuple(member for members, _ in parts for member in members), any(annotated for _, annotated in parts)
    return (types.NoneType if hint is None else hint,), False


def _is_alias(hint: Any) -> bool:
    """Whether it was made by a `type` statement; `typing_extensions` has the same before Python 3.12."""
    return type(get_origin(hint) or hint).__name__ == "TypeAliasType"


def _alias_value(alias: Any) -> Any:
    origin = get_origin(alias)
    return alias.__value__ if origin is None else origin.__value__[get_args(alias)]


def is_scalar(member: Any) -> bool:
    """Whether it is a type that a short text can be: a number, text, date, enum and so on, but not bytes."""
    return get_origin(member) is Literal or (isinstance(member, type) and issubclass(member, _SCALARS))


def is_table(hint: Any) -> TypeGuard[type[Any]]:
    """Whether it is a `SQLModel` class with `table=True`; found without importing sqlmodel."""
    if not isinstance(hint, type) or "sqlmodel" not in sys.modules:
        return False
    config = getattr(hint, "model_config", None)
    return isinstance(config, dict) and bool(config.get("table"))


def show(hint: Any) -> str:
    """A hint as one would write it."""
    if hint is None or hint is types.NoneType:
        return "None"
    if get_origin(hint) is None and isinstance(hint, type):
        return hint.__qualname__.rpartition("<locals>.")[2]
    if get_origin(hint) in {Union, types.UnionType}:
        return " | ".join(show(member) for member in get_args(hint))
    if get_origin(hint) is Annotated:
        return show(get_args(hint)[0])
    if isinstance(hint, NewType) or _is_alias(hint):
        return str(getattr(hint, "__name__", hint))
    if (arguments := get_args(hint)) and get_origin(hint) is not Literal:
        name = getattr(hint, "__name__", None) or show(get_origin(hint))
        return f"{name}[{', '.join('...' if item is ... else show(item) for item in arguments)}]"
    return str(hint).replace("typing.", "")
