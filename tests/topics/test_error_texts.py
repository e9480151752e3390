"""Word for word: each error names the thing, the place, the rule and the way out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mqttapi.errors import InvalidTemplate, InvalidTopic, InvalidTopicFilter
from mqttapi.topics import TopicTemplate, register_converter, share, validate_filter, validate_topic

SHARE = "Write '$share/<group>/<filter>'."
BUILT_IN = "(str, int, float, bool, uuid, slug, path)"
LINEAR = "Patterns run in linear time, in Rust's regex syntax: no look-around, no back-references."


def pointed(what: str, text: str, column: int, rule: str) -> str:
    return f"{text!r} is not a {what}: column {column}: {rule}\n    {text}\n    {'^':>{column}}"


@pytest.mark.parametrize(
    ("text", "column", "rule"),
    [
        ("a/#/b", 3, "'#' must be the last level [MQTT-4.7.1-1]. Write '+' for one level."),
        ("a#", 2, "'#' must fill its level [MQTT-4.7.1-1]. Write '.../#'."),
        ("a/b+/c", 4, "'+' must fill its level [MQTT-4.7.1-2]. Write '.../+/...'."),
        ("+/a+", 4, "'+' must fill its level [MQTT-4.7.1-2]. Write '.../+/...'."),
        ("$share", 7, f"the group has no name [MQTT-4.8.2-1]. {SHARE}"),
        ("$share//t", 8, f"the group has no name [MQTT-4.8.2-1]. {SHARE}"),
        ("$share/g", 9, f"no filter follows the group [MQTT-4.8.2-2]. {SHARE}"),
        ("$share/g/", 10, f"no filter follows the group [MQTT-4.8.2-2]. {SHARE}"),
        ("$share/g+/t", 9, "the group's name holds '+' [MQTT-4.8.2-2]. Use letters and digits."),
        ("$share/g/$share/h/t", 10, "a shared filter within a shared filter. Name one group."),
        ("$share/g/a/b#", 13, "'#' must fill its level [MQTT-4.7.1-1]. Write '.../#'."),
    ],
)
def test_filters(text: str, column: int, rule: str) -> None:
    with pytest.raises(InvalidTopicFilter) as error:
        validate_filter(text)
    assert str(error.value) == pointed("topic filter", text, column, rule)


@pytest.mark.parametrize("wildcard", ["+", "#"])
def test_topics(wildcard: str) -> None:
    with pytest.raises(InvalidTopic) as error:
        validate_topic(f"a/{wildcard}")
    rule = f"{wildcard!r} is a wildcard, and a topic has none [MQTT-3.3.2-2]. Name the one topic to publish to."
    assert str(error.value) == pointed("topic", f"a/{wildcard}", 3, rule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a topic has at least one character [MQTT-4.7.3-1], got ''"),
        (b"a", """a topic is a str, got bytes: "b'a'\""""),
        (
            "x" * 65_536,
            f"'{'x' * 60}…{'x' * 10}' is not a topic: it has 65,536 UTF-8 bytes, and may have 65,535 [MQTT-4.7.3-3]",
        ),
        (
            "a\nb",
            (
                "'a\\nb' is not a topic: column 2: U+000A is a control or non-character, and brokers refuse it "
                "[MQTT5 §1.5.4]. Remove it.\n    a\\nb\n     ^"
            ),
        ),
        (
            "a\0",
            "'a\\x00' is not a topic: column 2: U+0000 is never allowed [MQTT-4.7.3-2]. Remove it.\n    a\\x00\n     ^",
        ),
        (
            "\ud800",
            (
                "'\\ud800' is not a topic: column 1: U+D800 is half a character, and not UTF-8 [MQTT-1.5.4-1]. Remove it."
                "\n    \\ud800\n    ^"
            ),
        ),
    ],
)
def test_texts_that_no_packet_can_carry(text: Any, expected: str) -> None:
    with pytest.raises(InvalidTopic) as error:
        validate_topic(text)
    assert str(error.value) == expected


def test_long_texts_are_cut_around_the_place() -> None:
    with pytest.raises(InvalidTopicFilter) as error:
        validate_filter("level/" * 40 + "b+" + "/level" * 40)
    start = "level/" * 10
    assert str(error.value) == (
        f"'{start}…evel/level' is not a topic filter: column 242: '+' must fill its level [MQTT-4.7.1-2]. "
        "Write '.../+/...'.\n"
        "    …/level/level/level/level/level/level/level/level/b+/level/level/level/level/leve…\n"
        "                                                       ^"
    )


@pytest.mark.parametrize("group", ["a/b", "", "+"])
def test_groups(group: str) -> None:
    with pytest.raises(InvalidTopicFilter) as error:
        share(group, "a")
    assert str(error.value) == (
        f"group {group!r}: the name of a group is 1 or more characters without '/', '+' and '#' [MQTT-4.8.2-1, -2]. "
        "Use letters and digits."
    )


def test_a_group_given_twice() -> None:
    with pytest.raises(
        InvalidTopicFilter, match=re.escape("group 'g': '$share/h/x' is shared already. Give the group")
    ):
        share("g", "$share/h/x")


@pytest.mark.parametrize(
    ("text", "column", "rule"),
    [
        ("a/{id}/{id}", 8, "'id' is there twice. Give every parameter a name of its own."),
        ("{a-b}", 2, "'a-b' is no name. Use letters, digits and '_', and no digit first."),
        ("a/<>", 4, "'' is no name. Use letters, digits and '_', and no digit first."),
        ("a/{id", 3, "'{' is not closed within its level. Write '<name>' or '{name}'."),
        ("a/<b/c>", 3, "'<' is not closed within its level. Write '<name>' or '{name}'."),
        ("<a}", 1, "'<' is not closed within its level. Write '<name>' or '{name}'."),
        ("a/id>", 5, "'>' closes nothing. Write '<name>' or '{name}'."),
        ("<a><b>", 4, "nothing tells two parameters in a row apart. Put a literal between them."),
        ("<class>/x", 2, "'class' is a keyword of Python, so no handler can take it. Write 'class_'."),
        ("$share/g/t/<x>", 1, "a group is no part of a template. Write 't/<x>' and shared='g'."),
        ("$<x>/a", 1, "'+' matches no topic that starts with '$' [MQTT-4.7.2-1]. Write the first level in full."),
        ("<x?>", 1, "without 'x' nothing is left. Remove the '?', or put a level before it."),
        ("/<p:path?>", 2, "without 'p' nothing is left. Remove the '?', or put a level before it."),
        ("<p:path>/a", 1, "a path must be the last level. Move it to the end."),
        ("a/<x?>/b", 3, "an optional parameter must be the last level. Move it to the end."),
        ("dev-<x?>", 5, "only a whole level can be optional. Write 'x' without '?'."),
        ("dev-<p:path>", 5, "a path takes whole levels. Put it in a level of its own, at the end."),
        ("<u:uuid>-<x>", 1, "'-' may be part of a UUID, so it cannot end one. Put '.' or '_' there."),
        ("<int:n>", 6, f"there is no converter 'n' {BUILT_IN}. The name comes first: write '<n:int>'."),
        ("<n:itn>", 4, f"there is no converter 'itn' {BUILT_IN}. Did you mean 'int'?"),
        ("<n:[0-9]+>", 4, f"there is no converter '[0-9]+' {BUILT_IN}. A pattern goes into where={{'n': ...}}."),
        ("<n:>", 4, "no converter follows the ':'. Write '<name>' or '<name:int>'."),
        ("a/#/<x>", 3, "'#' must be the last level [MQTT-4.7.1-1]. Write '+' for one level."),
        ("a/dev-+", 7, "'+' must fill its level [MQTT-4.7.1-2]. A part of a level is '<name>'."),
        ("a/<x>#", 6, "'#' must fill its level [MQTT-4.7.1-1]. A part of a level is '<name>'."),
    ],
)
def test_templates(text: str, column: int, rule: str) -> None:
    with pytest.raises(InvalidTemplate) as error:
        TopicTemplate(text)
    assert str(error.value) == pointed("topic template", text, column, rule)


WHERE = "where={'id': ...} of 's/<id>/<n:int>'"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (
            {"di": "x"},
            "where={'di': ...}: 's/<id>/<n:int>' has no parameter 'di' (id, n).",
        ),
        (
            {"idd": "x"},
            "where={'idd': ...}: 's/<id>/<n:int>' has no parameter 'idd' (id, n). Did you mean 'id'?",
        ),
        (
            {"id": "(?=a)b"},
            f"{WHERE}: '(?=a)b': look-around, including look-ahead and look-behind, is not supported. {LINEAR}",
        ),
        ({"id": r"(a)\1"}, f"{WHERE}: '(a)\\\\1': backreferences are not supported. {LINEAR}"),
        ({"id": "("}, f"{WHERE}: '(': unclosed group. {LINEAR}"),
        ({"id": "a)(b"}, f"{WHERE}: 'a)(b': unopened group. {LINEAR}"),
        (
            {"id": re.compile("a(?!b)", re.IGNORECASE)},
            f"{WHERE}: '(?i:a(?!b))': look-around, including look-ahead and look-behind, is not supported. {LINEAR}",
        ),
        (
            {"id": re.compile("a b", re.VERBOSE)},
            f"{WHERE}: re.VERBOSE means something else to Rust's regex. Write it without white space.",
        ),
        ({"id": re.compile(b"a")}, f"{WHERE}: \"b'a'\" is for bytes. Compile it from a str."),
        ({"id": 5}, f"{WHERE}: got int. Give a pattern, a collection of str, or an Enum class."),
        ({"id": b"ab"}, f"{WHERE}: got bytes. Give a pattern, a collection of str, or an Enum class."),
        ({"id": []}, f"{WHERE}: empty, so no topic would match. Name at least one value."),
        ({"id": [1.5]}, f"{WHERE}: '1.5' is no text. A level is a str: give what it looks like."),
        ({"id": ["a/b"]}, f"{WHERE}: 'a/b' never matches: it would add a level, and a parameter fills one. Remove it."),
        ({"id": [""]}, f"{WHERE}: '' never matches: it is empty, and a level with a parameter is not. Remove it."),
        (
            {"n": ["x"]},
            "where={'n': ...} of 's/<id>/<n:int>': 'x' never matches: it does not fit the converter 'int'. Remove it.",
        ),
        (
            {"n": "[a-z]+"},
            (
                "where={'n': ...} of 's/<id>/<n:int>': '[a-z]+' never matches: 'int' takes numbers, and what this pattern "
                "matches has no digit. Take one of them out."
            ),
        ),
    ],
)
def test_where(where: Any, expected: str) -> None:
    with pytest.raises(InvalidTemplate) as error:
        TopicTemplate("s/<id>/<n:int>", where=where)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("text", "params", "expected"),
    [
        ("a/<id>", {}, "'a/<id>' needs a value for 'id'. Write params={'id': ...}."),
        ("a/<id>", {"idd": 1}, "'a/<id>' has no parameter 'idd' (id). Did you mean 'id'?"),
        ("a/b", {"id": 1}, "'a/b' has no parameter 'id' (it has none)."),
        ("a/<id>", {"id": "x/y"}, "'a/<id>' cannot hold id='x/y': it would add a level, and a parameter fills one."),
        ("a/<id>", {"id": ""}, "'a/<id>' cannot hold id='': it is empty, and a level with a parameter is not."),
        (
            "a/<id>",
            {"id": "+"},
            "'a/<id>' cannot hold id='+': it holds the wildcard '+', and a topic has none [MQTT-3.3.2-2].",
        ),
        (
            "a/<id>",
            {"id": "x\ny"},
            (
                "'a/<id>' cannot hold id='x\\ny': it holds what no topic may: U+000A is a control or non-character, "
                "and brokers refuse it [MQTT5 §1.5.4]."
            ),
        ),
        (
            "a/<id>",
            {"id": None},
            "'a/<id>' cannot hold id, which is None. Give a str, a number, a UUID, a date or an Enum.",
        ),
        (
            "a/<id>",
            {"id": ["x"]},
            "'a/<id>' cannot hold id, which is a list. Give a str, a number, a UUID, a date or an Enum.",
        ),
        ("a/<n:int>", {"n": "x"}, "'a/<n:int>' cannot hold n='x': it does not fit the converter 'int', or where=."),
        (
            "a/<p:path>",
            {"p": "b//c"},
            "'a/<p:path>' cannot hold p='b//c': it holds an empty level, and a path has none.",
        ),
        (
            "<a>-<b>",
            {"a": "x-y", "b": "z"},
            "'<a>-<b>' cannot hold a='x-y', b='z': 'x-y-z' would be read as other values.",
        ),
        (
            "<id>/x",
            {"id": "$SYS"},
            (
                "'<id>/x' would become '$SYS/x': the first level may not start with '$' [MQTT5 §4.7.2]. "
                "Start the template with a literal."
            ),
        ),
    ],
)
def test_render(text: str, params: dict[str, object], expected: str) -> None:
    with pytest.raises(InvalidTopic) as error:
        TopicTemplate(text).render(params)
    assert str(error.value) == expected
    with pytest.raises(InvalidTopic) as error:
        TopicTemplate(text).render(params, source="topic_for('alert')")
    by_keyword = expected.replace("params={'id': ...}", "id=value")
    assert str(error.value) == f"topic_for('alert'): {by_keyword}"


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("int", "x", "converter 'int': the name is built in. Choose another."),
        ("a b", "x", "converter 'a b': a name has letters, digits and '_', and starts with no digit."),
        ("zz", "x(", f"converter 'zz': 'x(': unclosed group. {LINEAR}"),
    ],
)
def test_converters(name: str, pattern: str, expected: str) -> None:
    with pytest.raises(InvalidTemplate) as error:
        register_converter(name, pattern)
    assert str(error.value) == expected
