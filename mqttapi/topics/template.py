"""Topic templates: `sensors/<device_id>/data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from logging import getLogger
from operator import itemgetter
from sys import maxsize
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias
from uuid import UUID

from mqttapi.errors import InvalidTemplate, InvalidTopic
from mqttapi.topics.converters import excludes, known_converters, pattern_or_choices
from mqttapi.topics.grammar import covers, quote, unwanted, validate_topic
from mqttapi.topics.syntax import parse, refuse

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mqttapi.topics.converters import Accepts, Constraint, Converter
    from mqttapi.topics.syntax import Level, Slot

__all__ = ["TemplateParameter", "TopicTemplate"]

Values: TypeAlias = tuple[object, ...]

_logger = getLogger(__name__)
_MAX_LEVELS: Final = 200  # of mosquitto, which refuses more


@dataclass(frozen=True, slots=True)
class TemplateParameter:
    """A parameter of a template. `type` is what its values are: `int` for `<n:int>`, and `str` without a converter."""

    name: str
    converter: str
    type: builtins.type[object]
    optional: bool
    """Whether its level may be missing; its value is None then."""
    constrained: bool
    """Whether a converter or `where=` refuses some levels."""
    accepts: Accepts | None = field(repr=False)
    """Whether a text may stand here; None: any text that is not empty."""
    parse: Callable[[str], object] | None = field(repr=False)
    """From the text to the value; None: the value is the text."""


class TopicTemplate:
    """A topic with named parts, to subscribe to, to match and to build topics with. It never changes.

    `<x>` and `{x}` are the same. `<x:converter>` restricts the level and converts it: `str int float bool uuid slug`,
    a registered one, or one of `converters`; `<p:path>` at the end takes one level or more. At the end `<x?>` may be
    missing. `dev-<id>` is a part of a level; a parameter there ends where the text behind it first occurs. `+` and `#`
    are MQTT's own. No parameter matches an empty level, nor a path that holds one; `+` and `#` do.

    `where` restricts parameters further: a pattern for the whole level (linear-time syntax of Rust's regex), a
    collection of texts, or an Enum class. Raises `InvalidTemplate`.
    """

    __slots__ = ("_counts", "_levels", "_literals", "filters", "names", "parameters", "specificity", "text", "values")

    text: Final[str]
    """As it was written."""
    names: Final[tuple[str, ...]]
    """The parameters, from left to right."""
    filters: Final[tuple[str, ...]]
    """What to subscribe to: one filter, or two where the last level is optional. No topic matches both."""
    parameters: Final[Mapping[str, TemplateParameter]]
    """By name, in the order of `names`."""
    specificity: Final[tuple[int, ...]]
    """A key to sort by: most specific first, compared level by level."""
    values: Final[Callable[[Sequence[str], str], Values | None]]
    """`values(levels, topic)`: what `match` gives, for a topic that is known to match one of `filters`."""

    def __init__(
        self,
        text: str,
        *,
        where: Mapping[str, Constraint] | None = None,
        converters: Mapping[str, Converter] | None = None,
    ) -> None:
        levels = parse(text)
        slots = [slot for level in levels for slot in level.slots]
        where = where or {}
        self.text = text
        self.names = tuple(slot.name for slot in slots)
        for name in where:
            if name not in self.names:
                raise InvalidTemplate(f"where={{{name!r}: ...}}: {self._unknown(name)}")
        available = {**known_converters, **(converters or {})}
        parameters = {slot.name: _parameter(text, slot, available, where.get(slot.name)) for slot in slots}
        self.parameters = MappingProxyType(parameters)
        self.filters = _filters(levels)
        self.specificity = tuple(_rank(level, parameters) for level in levels)
        self.values = _reader(levels, parameters)
        self._levels: Final = levels
        self._counts: Final = _counts(levels)
        self._literals: Final = [(at, level.literals[0]) for at, level in enumerate(levels) if level.is_literal]
        if len(levels) > _MAX_LEVELS:
            _logger.warning("%s has %d levels: mosquitto refuses more than %d", quote(text), len(levels), _MAX_LEVELS)

    @property
    def renderable(self) -> bool:
        """Whether `render` can make a topic of it: it has no `+` and no `#`."""
        return all(level.slots or level.is_literal for level in self._levels)

    def match(self, topic: str) -> Values | None:
        """The values of the parameters in the order of `names`, or None where `topic` does not match."""
        if not topic or (topic[0] == "$" and not self.text.startswith("$")):
            return None
        levels = topic.split("/")
        if len(levels) not in self._counts:
            return None
        for position, literal in self._literals:
            if levels[position] != literal:
                return None
        return self.values(levels, topic)

    def covers(self, other: TopicTemplate) -> bool:
        """Whether each topic that `other` matches is matched by this one.

        It is True only where that is certain: two patterns are compared as they are, and not for what they mean.
        """
        if other.renderable and not other.names:
            return self.match(other.text) is not None
        if not all(any(covers(wide, narrow) for wide in self.filters) for narrow in other.filters):
            return False
        if self.names and not other.renderable:
            return False  # '+' and '#' match an empty level, and a parameter does not
        return not self.narrows or self._shape == other._shape

    @property
    def narrows(self) -> bool:
        """Whether it refuses topics that its filters match, empty levels aside."""
        parameters = self.parameters.values()
        partial = any(level.slots and not level.is_whole for level in self._levels)
        return partial or any(parameter.constrained or parameter.parse for parameter in parameters)

    @property
    def _shape(self) -> object:
        """The template without the names of its parameters."""
        return [
            (
                level.literals,
                [(self.parameters[slot.name].accepts, slot.converter, slot.optional) for slot in level.slots],
            )
            for level in self._levels
        ]

    def render(self, params: Mapping[str, object], *, source: str = "", topics: Collection[str] = ()) -> str:
        """The topic with `params` put in; `source` says in errors who asked, by keywords.

        A value must be one level that its parameter matches, so that nobody can add levels, wildcards or a leading `$`
        through it; that of a `path` may have several levels. Parameters named in `topics` take a whole topic, as it
        came. An optional parameter may be missing or None. Raises `InvalidTopic`.
        """
        for name in params:
            if name not in self.parameters:
                raise InvalidTopic(f"{_says(source)}{self._unknown(name)}")
        levels: list[str] = []
        for level in self._levels:
            if not level.slots:
                levels.append(level.literals[0])
            elif not (level.slots[0].optional and params.get(level.slots[0].name) is None):
                levels.append(self._fill(level, params, source, topics))
        topic = "/".join(levels)
        if topic.startswith("$") and not self.text.startswith("$"):
            rule = "the first level may not start with '$' [MQTT5 §4.7.2]. Start the template with a literal"
            self._refuse(source, f"would become {quote(topic)}: {rule}")
        validate_topic(topic)
        return topic

    def _fill(self, level: Level, params: Mapping[str, object], source: str, topics: Collection[str]) -> str:
        texts: list[str] = []
        for slot in level.slots:
            if slot.name not in params:
                write = f"{slot.name}=value" if source else f"params={{{slot.name!r}: ...}}"
                self._refuse(source, f"needs a value for {slot.name!r}. Write {write}")
            value, parameter = params[slot.name], self.parameters[slot.name]
            text = _text(value, parameter.type)
            if text is None:
                kind = "None" if value is None else f"a {type(value).__name__}"
                self._refuse(
                    source, f"cannot hold {slot.name}, which is {kind}. Give a str, a number, a UUID, a date or an Enum"
                )
            if not (slot.name in topics and level.is_whole):
                problem = _problem(text, slot.converter == "path") or _mismatch(text, parameter)
                if problem:
                    self._refuse(source, f"cannot hold {slot.name}={quote(text)}: it {problem}")
            texts.append(text)
        filled = level.fill(texts)
        if len(texts) > 1 and level.split(filled) != texts:
            values = ", ".join(f"{slot.name}={quote(text)}" for slot, text in zip(level.slots, texts, strict=True))
            self._refuse(source, f"cannot hold {values}: {quote(filled)} would be read as other values")
        return filled

    def _refuse(self, source: str, rule: str) -> NoReturn:
        raise InvalidTopic(f"{_says(source)}{quote(self.text)} {rule}.")

    def _unknown(self, name: object) -> str:
        near = get_close_matches(name, self.names, 1) if isinstance(name, str) else ()
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{quote(self.text)} has no parameter {name!r} ({', '.join(self.names) or 'it has none'}).{hint}"

    def __repr__(self) -> str:
        return f"TopicTemplate({self.text!r})"


def _says(source: str) -> str:
    return f"{source}: " if source else ""


def _parameter(
    text: str, slot: Slot, available: Mapping[str, Converter], constraint: Constraint | None
) -> TemplateParameter:
    converter = available.get(slot.converter)
    if converter is None:
        at = slot.position + len(slot.name) + 2
        near = get_close_matches(slot.converter, available, 1)
        if slot.name in available and slot.converter.isidentifier():
            hint = f"The name comes first: write '<{slot.converter}:{slot.name}>'."
        elif near:
            hint = f"Did you mean {near[0]!r}?"
        else:
            hint = f"A pattern goes into where={{{slot.name!r}: ...}}."
        refuse(text, at, f"there is no converter {slot.converter!r} ({', '.join(available)}). {hint}")
    accepts = converter.accepts
    if constraint is not None:
        label = f"where={{{slot.name!r}: ...}} of {quote(text)}"
        allowed = pattern_or_choices(constraint, label)
        if isinstance(allowed, frozenset):
            _check_choices(allowed, converter, label)
            accepts = allowed.__contains__
        else:
            if reason := excludes(converter, constraint, allowed):
                raise InvalidTemplate(f"{label}: {constraint!r} never matches: {reason}. Take one of them out.")
            accepts = allowed if accepts is None else _both(accepts, allowed)
    return TemplateParameter(
        name=slot.name,
        converter=slot.converter,
        type=converter.type,
        optional=slot.optional,
        constrained=accepts is not None,
        accepts=accepts,
        parse=None if converter.parse is str else converter.parse,
    )


def _both(first: Accepts, second: Accepts) -> Accepts:
    return lambda text: first(text) and second(text)


def _check_choices(allowed: frozenset[str], converter: Converter, label: str) -> None:
    for choice in sorted(allowed):
        problem = _problem(choice, converter.name == "path")
        if problem is None and converter.accepts is not None and not converter.accepts(choice):
            problem = f"does not fit the converter {converter.name!r}"
        if problem:
            raise InvalidTemplate(f"{label}: {quote(choice)} never matches: it {problem}. Remove it.")


def _problem(text: str, is_path: bool) -> str | None:
    """Why `text` is no level, or no path, of a topic; None: it is one."""
    if not text:
        return "is empty, and a level with a parameter is not"
    if "/" in text and not is_path:
        return "would add a level, and a parameter fills one"
    if "" in text.split("/"):
        return "holds an empty level, and a path has none"
    for wildcard in "+#":
        if wildcard in text:
            return f"holds the wildcard {wildcard!r}, and a topic has none [MQTT-3.3.2-2]"
    found = unwanted(text)
    return f"holds what no topic may: {found[1]}" if found else None


def _mismatch(text: str, parameter: TemplateParameter) -> str | None:
    if parameter.accepts is None or parameter.accepts(text):
        return None
    return f"does not fit the converter {parameter.converter!r}, or where="


def _text(value: object, expected: type[object]) -> str | None:
    """How a value looks in a topic; None: it has no place there."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # 1e+22 holds a wildcard
    if isinstance(value, (int, UUID, Decimal, date)) or (expected is not str and isinstance(value, expected)):
        return str(value)
    return None


def _filters(levels: Sequence[Level]) -> tuple[str, ...]:
    head, last = [level.filter for level in levels[:-1]], levels[-1]
    optional = last.slots and last.slots[0].optional
    if last.slots and last.slots[0].converter == "path":
        return ("/".join([*head, "#"] if optional else [*head, "+", "#"]),)
    whole = "/".join([*head, last.filter])
    return ("/".join(head), whole) if optional else (whole,)


def _counts(levels: Sequence[Level]) -> range:
    """How many levels a topic may have."""
    last, count = levels[-1], len(levels)
    can_be_missing = last.filter == "#" or (last.slots and last.slots[0].optional)
    has_no_end = last.filter == "#" or (last.slots and last.slots[0].converter == "path")
    return range(count - 1 if can_be_missing else count, maxsize if has_no_end else count + 1)


def _rank(level: Level, parameters: Mapping[str, TemplateParameter]) -> int:
    if not level.slots:
        return {"+": 3, "#": 6}.get(level.literals[0], 0)
    if not level.is_whole:
        return 1
    parameter = parameters[level.slots[0].name]
    if parameter.converter == "path":
        return 5
    if parameter.optional:
        return 4
    return 2 if parameter.constrained else 3


def _reader(
    levels: Sequence[Level], parameters: Mapping[str, TemplateParameter]
) -> Callable[[Sequence[str], str], Values | None]:
    holders = [(at, level) for at, level in enumerate(levels) if level.slots]
    found = list(parameters.values())
    if not holders:
        return lambda levels, topic: ()
    if all(level.is_whole for _, level in holders) and all(map(_is_plain, found)):
        return _plain_reader([at for at, _ in holders])
    steps = [(at, _splitter(level, at)) for at, level in holders]
    checks = [(parameter.accepts, parameter.parse) for parameter in found]

    def read(levels: Sequence[str], topic: str) -> Values | None:
        texts: list[str | None] = []
        for at, split in steps:
            if at == len(levels):  # only an optional level can be missing
                texts.append(None)
                continue
            parts = split(levels, topic)
            if parts is None:
                return None
            texts += parts
        values: list[object] = []
        for text, (accepts, convert) in zip(texts, checks, strict=True):
            if text is None:
                values.append(None)
                continue
            if accepts is not None and not accepts(text):
                return None
            values.append(text if convert is None else convert(text))
        return tuple(values)

    return read if all(parameter.parse is None for parameter in found) else _unless_value_error(read)


def _is_plain(parameter: TemplateParameter) -> bool:
    return not (parameter.optional or parameter.constrained or parameter.parse or parameter.converter == "path")


def _plain_reader(positions: Sequence[int]) -> Callable[[Sequence[str], str], Values | None]:
    """The common case: every parameter takes a whole level as it is."""
    if len(positions) == 1:
        (position,) = positions

        def read_one(levels: Sequence[str], topic: str) -> Values | None:
            text = levels[position]
            return (text,) if text else None

        return read_one
    pick: Callable[[Sequence[str]], tuple[str, ...]] = itemgetter(*positions)

    def read_many(levels: Sequence[str], topic: str) -> Values | None:
        texts = pick(levels)
        return None if "" in texts else texts

    return read_many


def _splitter(level: Level, at: int) -> Callable[[Sequence[str], str], Sequence[str] | None]:
    """From a topic to the texts in the slots of its level at `at`, or None where they do not fit."""
    if level.slots[0].converter == "path":
        return lambda levels, topic: None if "" in levels[at:] else (topic.split("/", at)[at],)
    if level.is_whole:
        return lambda levels, topic: (levels[at],) if levels[at] else None
    return lambda levels, topic: level.split(levels[at])


def _unless_value_error(
    read: Callable[[Sequence[str], str], Values | None],
) -> Callable[[Sequence[str], str], Values | None]:
    def careful(levels: Sequence[str], topic: str) -> Values | None:
        try:
            return read(levels, topic)
        except ValueError:  # 'does not match', says `Converter`; and int() refuses more than 4,300 digits
            return None

    return careful
