"""The text of a template, read into levels.

template   level ('/' level)*
level      literal | '+' | '#' (last) | (literal? parameter)+ literal?
parameter  '<' name (':' converter)? '?'? '>'    or the same within '{' '}'; '?' only last, and alone in its level
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from keyword import iskeyword
from typing import NoReturn

from mqttapi.errors import InvalidTemplate
from mqttapi.topics.grammar import check_text, explain

__all__ = ["Level", "Slot", "parse", "refuse"]

_BRACKETS = re.compile(r"<([^<>{}]*)>|\{([^<>{}]*)\}")
_STRAY = re.compile(r"[<>{}]")
_UUID_CHARACTERS = frozenset("-0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a parameter. `position` counts the characters of the template before its bracket."""

    name: str
    converter: str
    optional: bool
    position: int


@dataclass(frozen=True, slots=True)
class Level:
    """One level: its slots, and the literal text before, between and after them (one more than there are slots)."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether a parameter fills the level."""
        return self.literals == ("", "")

    @property
    def filter(self) -> str:
        """What stands for this level in a topic filter."""
        return "+" if self.slots else self.literals[0]

    @property
    def is_literal(self) -> bool:
        """Whether exactly one text matches the level."""
        return not self.slots and self.literals[0] not in ("+", "#")

    def split(self, text: str) -> list[str] | None:
        """The texts in the slots, or None where the literals do not fit.

        Each slot has at least one character and ends at the first occurrence of the literal behind it, so the work is
        linear and there is only one way to read a level.
        """
        first, *between, last = self.literals
        end = len(text) - len(last)
        if not (text.startswith(first) and text.endswith(last)):
            return None
        start = len(first)
        texts: list[str] = []
        for literal in between:
            at = text.find(literal, start + 1, end)
            if at < 0:
                return None
            texts.append(text[start:at])
            start = at + len(literal)
        if start >= end:
            return None
        texts.append(text[start:end])
        return texts

    def fill(self, texts: list[str]) -> str:
        """The level with `texts` in its slots."""
        return self.literals[0] + "".join(map(str.__add__, texts, self.literals[1:]))


def parse(text: str) -> list[Level]:
    """The levels of a template; raises `InvalidTemplate` with the position of what is wrong."""
    check_text(text, "topic template", InvalidTemplate)
    levels: list[Level] = []
    position = 0
    for part in text.split("/"):
        levels.append(_level(text, part, position))
        position += len(part) + 1
    if levels[0].literals[0] == "$share":
        _, group, *rest = [*text.split("/", 2), "", ""]
        refuse(text, 0, f"a group is no part of a template. Write {rest[0]!r} and shared={group!r}.")
    if levels[0].slots and levels[0].literals[0].startswith("$"):
        refuse(text, 0, "'+' matches no topic that starts with '$' [MQTT-4.7.2-1]. Write the first level in full.")
    _check_last(text, levels)
    _check_names(text, levels)
    return levels


def refuse(text: str, position: int, rule: str) -> NoReturn:
    """Raise `InvalidTemplate` with a caret."""
    raise InvalidTemplate(explain("topic template", text, rule, position))


def _level(text: str, part: str, offset: int) -> Level:
    literals: list[str] = []
    slots: list[Slot] = []
    end = 0
    for bracket in _BRACKETS.finditer(part):
        literals.append(_literal(text, part[end : bracket.start()], offset + end))
        if slots and not literals[-1]:
            refuse(text, offset + end, "nothing tells two parameters in a row apart. Put a literal between them.")
        slots.append(_slot(text, bracket[1] if bracket[2] is None else bracket[2], offset + bracket.start()))
        end = bracket.end()
    literals.append(_literal(text, part[end:], offset + end))
    level = Level(tuple(literals), tuple(slots))
    if slots:
        _check_partial(text, level, offset)
    elif part == "#" and offset + len(part) != len(text):
        refuse(text, offset, "'#' must be the last level [MQTT-4.7.1-1]. Write '+' for one level.")
    elif part not in ("+", "#"):
        _check_wildcards(text, part, offset)
    return level


def _literal(text: str, literal: str, offset: int) -> str:
    if stray := _STRAY.search(literal):
        rule = "is not closed within its level" if stray[0] in "<{" else "closes nothing"
        refuse(text, offset + stray.start(), f"{stray[0]!r} {rule}. Write '<name>' or '{{name}}'.")
    return literal


def _slot(text: str, inside: str, position: int) -> Slot:
    spec, optional = inside.removesuffix("?"), inside.endswith("?")
    name, colon, converter = spec.partition(":")
    if not name.isidentifier():
        refuse(text, position + 1, f"{name!r} is no name. Use letters, digits and '_', and no digit first.")
    if iskeyword(name):
        refuse(text, position + 1, f"{name!r} is a keyword of Python, so no handler can take it. Write {name + '_'!r}.")
    if colon and not converter:
        refuse(text, position + len(name) + 2, "no converter follows the ':'. Write '<name>' or '<name:int>'.")
    return Slot(name, converter or "str", optional, position)


def _check_partial(text: str, level: Level, offset: int) -> None:
    for literal in level.literals:
        _check_wildcards(text, literal, offset)
    if level.is_whole:
        return
    for slot, literal in zip(level.slots, level.literals[1:], strict=True):
        if slot.optional:
            refuse(text, slot.position, f"only a whole level can be optional. Write '{slot.name}' without '?'.")
        if slot.converter == "path":
            refuse(text, slot.position, "a path takes whole levels. Put it in a level of its own, at the end.")
        if slot.converter == "uuid" and slot is not level.slots[-1] and _UUID_CHARACTERS.issuperset(literal):
            refuse(
                text, slot.position, f"{literal!r} may be part of a UUID, so it cannot end one. Put '.' or '_' there."
            )


def _check_wildcards(text: str, literal: str, offset: int) -> None:
    for wildcard, rule in (("#", "MQTT-4.7.1-1"), ("+", "MQTT-4.7.1-2")):
        if wildcard in literal:
            at = text.index(wildcard, offset)
            refuse(text, at, f"{wildcard!r} must fill its level [{rule}]. A part of a level is '<name>'.")


def _check_last(text: str, levels: list[Level]) -> None:
    for level in levels[:-1]:
        for slot in level.slots:
            if slot.converter == "path" or slot.optional:
                what = "a path" if slot.converter == "path" else "an optional parameter"
                refuse(text, slot.position, f"{what} must be the last level. Move it to the end.")
    for slot in levels[-1].slots:
        if slot.optional and not "/".join(level.filter for level in levels[:-1]):
            rule = f"without {slot.name!r} nothing is left. Remove the '?', or put a level before it."
            refuse(text, slot.position, rule)


def _check_names(text: str, levels: list[Level]) -> None:
    seen: set[str] = set()
    for slot in (slot for level in levels for slot in level.slots):
        if slot.name in seen:
            refuse(text, slot.position, f"{slot.name!r} is there twice. Give every parameter a name of its own.")
        seen.add(slot.name)
