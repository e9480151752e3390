"""Topic names and topic filters, as MQTT 5 §4.7 and §4.8.2 write them (3.1.1 has the same rules).

What the specification only advises against, control characters and non-characters [MQTT5 §1.5.4], is refused here
too: brokers close the connection over them. Topics that arrive are not checked; they are what the broker let through.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mqttapi.errors import InvalidTopic, InvalidTopicFilter
from mqttapi.message import printable

if TYPE_CHECKING:
    from mqttapi.errors import ConfigurationError

__all__ = ["covers", "join", "matches", "overlaps", "share", "split_share", "validate_filter", "validate_topic"]

_MAX_BYTES: Final = 65_535
_PREFIX: Final = "$share/"
_NON_CHARACTERS = "".join(chr(plane | last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
_UNWANTED = re.compile(f"[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NON_CHARACTERS}]")


def validate_topic(text: str) -> None:
    """Raise `InvalidTopic` unless `text` can be published to.

    A topic name has 1 to 65,535 UTF-8 bytes [MQTT-4.7.3-1, -3], no wildcards [MQTT-3.3.2-2], no NUL [MQTT-4.7.3-2],
    no lone surrogates [MQTT-1.5.4-1] and none of the characters of §1.5.4 that brokers refuse.
    """
    check_text(text, "topic", InvalidTopic)
    for wildcard in "+#":
        if wildcard in text:
            rule = f"{wildcard!r} is a wildcard, and a topic has none [MQTT-3.3.2-2]. Name the one topic to publish to."
            raise InvalidTopic(explain("topic", text, rule, text.index(wildcard)))


def validate_filter(text: str) -> None:
    """Raise `InvalidTopicFilter` unless `text` can be subscribed to; `$share/<group>/<filter>` is understood."""
    split_share(text)


def split_share(text: str) -> tuple[str | None, str]:
    """`("g", "a/+")` for `$share/g/a/+`, and `(None, "a/+")` for `a/+`.

    Raises `InvalidTopicFilter` where either half is not valid [MQTT-4.7.1-1, -2, MQTT-4.8.2-1, -2]. `$share` alone and a
    `$share` within a `$share` are always mistakes, and refused, though the specification does not forbid them.
    """
    check_text(text, "topic filter", InvalidTopicFilter)
    if text != "$share" and not text.startswith(_PREFIX):
        _check_wildcards(text, 0)
        return None, text
    group, _, filter = text[len(_PREFIX) :].partition("/")
    inner = min(len(_PREFIX) + len(group) + 1, len(text))
    if not group:
        _refuse_filter(
            text, "the group has no name [MQTT-4.8.2-1]. Write '$share/<group>/<filter>'.", min(len(_PREFIX), len(text))
        )
    for wildcard in "+#":
        if wildcard in group:
            at = text.index(wildcard)
            _refuse_filter(text, f"the group's name holds {wildcard!r} [MQTT-4.8.2-2]. Use letters and digits.", at)
    if not filter:
        _refuse_filter(text, "no filter follows the group [MQTT-4.8.2-2]. Write '$share/<group>/<filter>'.", inner)
    if filter == "$share" or filter.startswith(_PREFIX):
        _refuse_filter(text, "a shared filter within a shared filter. Name one group.", inner)
    _check_wildcards(text, inner)
    return group, filter


def share(group: str | None, filter: str) -> str:
    """`$share/<group>/<filter>`, or `filter` alone without a group. Raises `InvalidTopicFilter`."""
    shared, _ = split_share(filter)
    if group is None:
        return filter
    if shared is not None:
        raise InvalidTopicFilter(f"group {quote(group)}: {quote(filter)} is shared already. Give the group once.")
    if not group or any(character in group for character in "/+#"):
        rule = "the name of a group is 1 or more characters without '/', '+' and '#' [MQTT-4.8.2-1, -2]"
        raise InvalidTopicFilter(f"group {quote(group)}: {rule}. Use letters and digits.")
    text = f"{_PREFIX}{group}/{filter}"
    check_text(text, "topic filter", InvalidTopicFilter)
    return text


def matches(filter: str, topic: str) -> bool:
    """Whether `topic` matches `filter`; of `$share/<group>/<filter>` the group is left out.

    A filter that starts with a wildcard matches no topic that starts with `$` [MQTT-4.7.2-1], and `a/#` matches `a`
    [MQTT5 §4.7.1.2]. `topic` is taken as it is; a `filter` that is not valid raises `InvalidTopicFilter`.
    """
    wanted = _levels(filter)
    if not topic or (topic[0] == "$" and wanted[0] in "+#"):
        return False
    levels = topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position == len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def covers(cover: str, filter: str) -> bool:
    """Whether every topic that matches `filter` matches `cover` too. Groups are left out."""
    covering, wanted = _canonical(cover), _canonical(filter)
    if covering[0] == "+" and wanted[0].startswith("$"):
        return False
    for position, level in enumerate(covering):
        if level == "#":
            return True
        if position == len(wanted) or wanted[position] == "#" or level not in ("+", wanted[position]):
            return False
    return len(covering) == len(wanted)


def overlaps(a: str, b: str) -> bool:
    """Whether there is a topic that matches both filters. Groups are left out."""
    left, right = _canonical(a), _canonical(b)
    if (left[0] == "+" and right[0].startswith("$")) or (right[0] == "+" and left[0].startswith("$")):
        return False
    for x, y in zip(left, right, strict=False):
        if "#" in (x, y):
            return True
        if x != y and "+" not in (x, y):
            return False
    longer = left if len(left) > len(right) else right
    shorter = min(len(left), len(right))
    return len(left) == len(right) or longer[shorter] == "#"


def join(prefix: str, text: str) -> str:
    """`prefix` and `text` with exactly one `/` between; slashes around a prefix do not count: `/p/` + `/x` is `p/x`."""
    prefix = prefix.strip("/")
    if not prefix:
        return text
    text = text.lstrip("/")
    return f"{prefix}/{text}" if text else prefix


# -- shared by the modules of this package ---------------------------------------------------------------------------


def check_text(text: object, what: str, error: type[ConfigurationError]) -> None:
    """Raise `error` unless `text` may stand in a packet as a UTF-8 string that is not empty [MQTT5 §1.5.4]."""
    if not isinstance(text, str):
        raise error(f"a {what} is a str, got {type(text).__name__}: {quote(repr(text))}")
    if not text:
        raise error(f"a {what} has at least one character [MQTT-4.7.3-1], got ''")
    size = len(text)
    if not (text.isascii() and text.isprintable()):
        if found := unwanted(text):
            raise error(explain(what, text, f"{found[1]}. Remove it.", found[0]))
        size = len(text.encode())
    if size > _MAX_BYTES:
        raise error(f"{quote(text)} is not a {what}: it has {size:,} UTF-8 bytes, and may have 65,535 [MQTT-4.7.3-3]")


def unwanted(text: str) -> tuple[int, str] | None:
    """The position of the first character of `text` that no topic may hold, and why."""
    found = _UNWANTED.search(text)
    if found is None:
        return None
    code = ord(found[0])
    if code == 0:
        reason = "is never allowed [MQTT-4.7.3-2]"
    elif 0xD800 <= code <= 0xDFFF:
        reason = "is half a character, and not UTF-8 [MQTT-1.5.4-1]"
    else:
        reason = "is a control or non-character, and brokers refuse it [MQTT5 §1.5.4]"
    return found.start(), f"U+{code:04X} {reason}"


def explain(what: str, text: str, rule: str, position: int) -> str:
    """An error's text: what it is not, the rule with its way out, and a caret below the place."""
    start = max(0, position - 50)
    before = ("…" if start else "") + printable(text[start:position])
    after = printable(text[position : position + 30]) + ("…" if len(text) > position + 30 else "")
    caret = " " * len(before) + "^"
    return f"{quote(text)} is not a {what}: column {position + 1}: {rule}\n    {before}{after}\n    {caret}"


def quote(text: str) -> str:
    """`text` in quotes, on one line, and cut when it is long."""
    return repr(text if len(text) <= 80 else f"{text[:60]}…{text[-10:]}")


def _check_wildcards(text: str, start: int) -> None:
    if "+" not in text and "#" not in text:
        return
    position = start
    for level in text[start:].split("/"):
        end = position + len(level)
        if "#" in level and level != "#":
            at = text.index("#", position)
            _refuse_filter(text, "'#' must fill its level [MQTT-4.7.1-1]. Write '.../#'.", at)
        if level == "#" and end != len(text):
            _refuse_filter(text, "'#' must be the last level [MQTT-4.7.1-1]. Write '+' for one level.", position)
        if "+" in level and level != "+":
            at = text.index("+", position)
            _refuse_filter(text, "'+' must fill its level [MQTT-4.7.1-2]. Write '.../+/...'.", at)
        position = end + 1


def _refuse_filter(text: str, rule: str, position: int) -> None:
    raise InvalidTopicFilter(explain("topic filter", text, rule, position))


@lru_cache(maxsize=1024)
def _levels(filter: str) -> tuple[str, ...]:
    return tuple(split_share(filter)[1].split("/"))


def _canonical(filter: str) -> tuple[str, ...]:
    # Every topic has a level, so '#' and '+/#' match the same topics: the only two spellings of one set.
    levels = _levels(filter)
    return ("+", "#") if levels == ("#",) else levels
