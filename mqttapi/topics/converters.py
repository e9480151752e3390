"""What a level may be: converters (`<n:int>`) and constraints (`where={"id": r"[a-z]+"}`).

Patterns run in Rust's regex engine, by way of pydantic: its time grows linearly with the level, whatever the pattern.
Levels come from strangers, and `re` needs seconds for 30 characters of the wrong pattern.
"""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias
from uuid import UUID

from pydantic_core import SchemaError, SchemaValidator, core_schema

from mqttapi.errors import InvalidTemplate
from mqttapi.topics.grammar import quote

__all__ = ["Constraint", "Converter", "excludes", "known_converters", "pattern_or_choices", "register_converter"]

Accepts: TypeAlias = Callable[[str], bool]
Constraint: TypeAlias = str | re.Pattern[str] | Collection[str] | builtins.type[Enum]
"""A pattern that the whole level must match, the texts it may be, or an Enum whose values it may be."""

_FLAGS: Final = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s"}
_DIGITLESS: Final = re.compile(
    r"""(?:
        [^\d.\\\[\]{}]              # a literal or an operator
      | \\[^\w\s]                 # an escaped sign
      | \{\d+(?:,\d*)?\}          # how often
      | \[-?(?:[A-Za-z]-[A-Za-z] | [^\d\\\[\]^&~-] | \\[^\w\s])+-?\]
    )*""",
    re.VERBOSE,
)
"""Patterns of which it is certain that no text they match has a digit."""
_NO_LOOK_AROUND: Final = "Patterns run in linear time, in Rust's regex syntax: no look-around, no back-references."


@dataclass(frozen=True, slots=True)
class Converter:
    """What `<n:name>` accepts, and what becomes of it.

    `pattern` must match the whole level; None accepts any level that is not empty. `parse` makes a `type` of the text;
    where it raises ValueError the topic does not match. A pattern that does not compile raises `InvalidTemplate`.
    """

    name: str
    pattern: str | None
    type: builtins.type[object] = str
    parse: Callable[[str], object] = str
    accepts: Accepts | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        accepts = None if self.pattern is None else _pattern(self.pattern, f"converter {self.name!r}")
        object.__setattr__(self, "accepts", accepts)


def register_converter(
    name: str, pattern: str, parse: Callable[[str], object] = str, type: builtins.type[object] = str
) -> None:
    """Make `<x:name>` known to every template made from now on; see `Converter` for what the arguments mean.

    Raises `InvalidTemplate` for a name that is no identifier or is built in, and for a pattern that does not compile.
    """
    if not name.isidentifier():
        raise InvalidTemplate(f"converter {quote(name)}: a name has letters, digits and '_', and starts with no digit.")
    if any(name == converter.name for converter in _BUILT_IN):
        raise InvalidTemplate(f"converter {name!r}: the name is built in. Choose another.")
    _registered[name] = Converter(name, pattern, type, parse)


def pattern_or_choices(constraint: Constraint, label: str) -> Accepts | frozenset[str]:
    """A predicate on the text of a level, or all texts it may be; `label` names the constraint in errors."""
    if isinstance(constraint, re.Pattern):
        return _pattern(_carry_over(constraint, label), label)
    if isinstance(constraint, str):
        return _pattern(constraint, label)
    return _choices(constraint, label)


def excludes(converter: Converter, constraint: Constraint, allowed: Accepts) -> str | None:
    """Why no text at all fits both a converter and a pattern; None: some do, or it takes more than a look to know.

    `allowed` is the predicate of the constraint.
    """
    pattern = constraint.pattern if isinstance(constraint, re.Pattern) else constraint
    if converter.name in {"int", "float"} and isinstance(pattern, str) and _DIGITLESS.fullmatch(pattern):
        return f"{converter.name!r} takes numbers, and what this pattern matches has no digit"
    if converter.name == "bool" and not any(map(allowed, _BOOLS)):
        return f"{converter.name!r} takes {', '.join(_BOOLS)}, and this pattern matches none of them"
    return None


def _choices(constraint: object, label: str) -> frozenset[str]:
    if isinstance(constraint, builtins.type) and issubclass(constraint, Enum):
        members: Collection[object] = list(constraint)
    elif isinstance(constraint, Collection) and not isinstance(constraint, (bytes, bytearray, Mapping)):
        members = constraint
    else:
        kinds = "a pattern, a collection of str, or an Enum class"
        raise InvalidTemplate(f"{label}: got {builtins.type(constraint).__name__}. Give {kinds}.")
    values = [member.value if isinstance(member, Enum) else member for member in members]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise InvalidTemplate(
                f"{label}: {quote(repr(value))} is no text. A level is a str: give what it looks like."
            )
    if not values:
        raise InvalidTemplate(f"{label}: empty, so no topic would match. Name at least one value.")
    return frozenset(str(value) for value in values)


def _carry_over(pattern: re.Pattern[str], label: str) -> str:
    if isinstance(pattern.pattern, bytes):  # type: ignore[unreachable]  # what the hint forbids, and people do
        raise InvalidTemplate(f"{label}: {quote(repr(pattern.pattern))} is for bytes. Compile it from a str.")
    if pattern.flags & re.VERBOSE:
        raise InvalidTemplate(
            f"{label}: re.VERBOSE means something else to Rust's regex. Write it without white space."
        )
    letters = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
    ascii_only = "-u" if pattern.flags & re.ASCII else ""
    return f"(?{letters}{ascii_only}:{pattern.pattern})" if letters or ascii_only else pattern.pattern


def _pattern(pattern: str, label: str) -> Accepts:
    try:
        # First as it is: wrapped, a pattern such as 'a)(b' would have its brackets closed by ours.
        for text in (pattern, rf"\A(?:{pattern})\z"):
            validator = SchemaValidator(core_schema.str_schema(pattern=text, strict=True))
    except SchemaError as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("error: ").removeprefix("SchemaError: ")
        raise InvalidTemplate(f"{label}: {quote(pattern)}: {reason.rstrip('.')}. {_NO_LOOK_AROUND}") from None
    return validator.isinstance_python


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{quote(text)} is too large for a float")
    return value


_HEX = "[0-9a-fA-F]"
_BOOLS: Final = ("true", "false", "1", "0")
_BUILT_IN: Final = (
    Converter("str", None),
    Converter("int", "-?[0-9]+", int, int),
    Converter("float", r"-?[0-9]+(?:\.[0-9]+)?", float, _finite),
    Converter("bool", "|".join(_BOOLS), bool, lambda text: text in ("true", "1")),
    Converter("uuid", f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}", UUID, UUID),
    Converter("slug", "[-a-zA-Z0-9_]+"),
    Converter("path", None),
)
_registered: dict[str, Converter] = {converter.name: converter for converter in _BUILT_IN}

known_converters: Final[Mapping[str, Converter]] = MappingProxyType(_registered)
"""The converters that every template knows, by name."""
