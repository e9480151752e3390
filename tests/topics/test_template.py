from __future__ import annotations

import keyword
import logging
import re
from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mqttapi.errors import InvalidTemplate
from mqttapi.topics import Converter, TopicTemplate, TopicTree, matches, validate_filter
from tests.topics.oracle import LITERALS

# -- syntax and filters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("a/b", ("a/b",)),
        ("a/<x>", ("a/+",)),
        ("a/{x}/b", ("a/+/b",)),
        ("<x>", ("+",)),
        ("<x:int>/#", ("+/#",)),
        ("dev-<id>/x", ("+/x",)),
        ("a/<b>-{c}.json", ("a/+",)),
        ("a/<x?>", ("a", "a/+")),
        ("a/<n:int?>", ("a", "a/+")),
        ("a/<p:path>", ("a/+/#",)),
        ("a/<p:path?>", ("a/#",)),
        ("<p:path>", ("+/#",)),
        ("/<x>/", ("/+/",)),
        ("+/a/+/#", ("+/a/+/#",)),
        ("$SYS/<x>", ("$SYS/+",)),
        ("é/<x>", ("é/+",)),
    ],
)
def test_filters(text: str, filters: tuple[str, ...]) -> None:
    assert TopicTemplate(text).filters == filters


def test_parameters_tell_name_converter_and_type() -> None:
    template = TopicTemplate("<s>/{i:int}/<f:float>/<b:bool>/<u:uuid>/<g:slug>/<p:path?>", where={"s": "[a-z]+"})
    assert template.names == ("s", "i", "f", "b", "u", "g", "p")
    told = [(p.name, p.converter, p.type, p.optional, p.constrained) for p in template.parameters.values()]
    assert told == [
        ("s", "str", str, False, True),
        ("i", "int", int, False, True),
        ("f", "float", float, False, True),
        ("b", "bool", bool, False, True),
        ("u", "uuid", UUID, False, True),
        ("g", "slug", str, False, True),
        ("p", "path", str, True, False),
    ]
    assert repr(TopicTemplate("a/<x>")) == "TopicTemplate('a/<x>')"


@pytest.mark.parametrize("word", keyword.softkwlist)
def test_soft_keywords_are_names(word: str) -> None:
    if word != "_":
        assert TopicTemplate(f"<{word}>").names == (word,)


def test_more_levels_than_mosquitto_takes_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mqttapi"):
        TopicTemplate("/".join("a" * 200))
        assert not caplog.records
        TopicTemplate("/".join("a" * 201))
    assert "201 levels: mosquitto refuses more than 200" in caplog.text


# -- matching ----------------------------------------------------------------------------------------------------------

ID = "0b1e6a3c-1111-4222-8333-9a9b9c9d9e9f"


@pytest.mark.parametrize(
    ("text", "topic", "values"),
    [
        ("a/b", "a/b", ()),
        ("a/b", "a/c", None),
        ("a/b", "a", None),
        ("a/b", "a/b/c", None),
        ("a/<x>", "a/7", ("7",)),
        ("a/{x}", "a/7", ("7",)),
        ("<x>/b/<y>", "1/b/2", ("1", "2")),
        ("a/<x>", "a/", None),  # a parameter never matches an empty level
        ("a/<x>/<y>", "a/b/", None),
        ("a/+", "a/", ()),  # '+' does
        ("+/<x>", "/b", ("b",)),
        ("<x>", "$SYS", None),
        ("<x>/b", "$a/b", None),
        ("+/b", "$a/b", None),
        ("#", "$a/b", None),
        ("<p:path>", "$a/b", None),
        ("x-<a>", "$x-1", None),
        ("$SYS/<x>", "$SYS/uptime", ("uptime",)),
        ("a/<x>/#", "a/1", ("1",)),
        ("a/<x>/#", "a/1/2/3", ("1",)),
        ("a/#", "a", ()),
        ("a/#", "b", None),
        # optional
        ("a/<x?>", "a", (None,)),
        ("a/<x?>", "a/1", ("1",)),
        ("a/<x?>", "a/", None),
        ("a/<x?>", "a/1/2", None),
        ("a/<n:int?>", "a", (None,)),
        ("a/<n:int?>", "a/5", (5,)),
        ("a/<n:int?>", "a/x", None),
        # paths
        ("a/<p:path>", "a", None),
        ("a/<p:path>", "a/b", ("b",)),
        ("a/<p:path>", "a/b/c", ("b/c",)),
        ("a/<p:path>", "a/", None),
        ("a/<p:path>", "a/b//c", None),
        ("a/<p:path>", "a/b/", None),
        ("a/<p:path?>", "a", (None,)),
        ("a/<p:path?>", "a/", None),
        ("a/<p:path?>", "a/b/c", ("b/c",)),
        ("<p:path>", "a/b", ("a/b",)),
        ("<x>/<p:path>", "a/b/c", ("a", "b/c")),
        # converters
        ("<n:int>", "42", (42,)),
        ("<n:int>", "-7", (-7,)),
        ("<n:int>", "007", (7,)),
        ("<n:int>", "+7", None),
        ("<n:int>", "1_000", None),
        ("<n:int>", "٤٢", None),
        ("<n:int>", " 1", None),
        ("<n:int>", "1\n", None),
        ("<n:int>", "1" * 5_000, None),  # more digits than int() takes
        ("<f:float>", "1.5", (1.5,)),
        ("<f:float>", "-2", (-2.0,)),
        ("<f:float>", "1.", None),
        ("<f:float>", "nan", None),
        ("<f:float>", "9" * 400, None),  # infinity
        ("<b:bool>", "true", (True,)),
        ("<b:bool>", "0", (False,)),
        ("<b:bool>", "yes", None),
        ("<u:uuid>", ID, (UUID(ID),)),
        ("<u:uuid>", ID.replace("-", ""), None),
        ("<s:slug>", "my-device_7", ("my-device_7",)),
        ("<s:slug>", "my device", None),
        # part of a level
        ("dev-<id>", "dev-7", ("7",)),
        ("dev-<id>", "dev-", None),
        ("dev-<id>", "device-7", None),
        ("dev-<n:int>", "dev-x", None),
        ("<id>.json", "a.b.json", ("a.b",)),
        ("<id>.json", ".json", None),
        ("<a>-<b>", "x-y", ("x", "y")),
        ("<a>-<b>", "x-y-z", ("x", "y-z")),
        ("<a>-<b>", "-x", None),
        ("<a>-<b>", "x-", None),
        ("<a>-<b>", "--x", ("-", "x")),
        ("<a>--<b>", "x-y--z", ("x-y", "z")),
        ("<a:int>-<b:int>", "-1--2", (-1, -2)),
        ("v<a:int>.<b:int>.zip", "v1.2.zip", (1, 2)),
        ("aa<x>aa", "aaa", None),
        ("aa<x>aa", "aaaaa", ("a",)),
    ],
)
def test_match(text: str, topic: str, values: tuple[object, ...] | None) -> None:
    assert TopicTemplate(text).match(topic) == values


def test_an_empty_topic_matches_nothing() -> None:
    assert TopicTemplate("#").match("") is None
    assert TopicTemplate("<x>").match("") is None


# Levels that partial levels and converters are split differently by.
telling_topics = st.lists(
    st.sampled_from([*LITERALS, "7", "-7", "-", "a-b", "--b", "a-b-b"]), min_size=1, max_size=5
).map("/".join)
PARTS = [*LITERALS, "+", "<p>", "a<p>", "<p>b", "<p>-<q>", "<p:int>", "<p:slug>"]


@st.composite
def template_texts(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))
    last = draw(st.sampled_from(["", "", "#", "<p?>", "<p:path>", "<p:path?>", "<p:int?>"]))
    levels += [last] if last else []
    numbered = [re.sub("([pq])(?=[:?>])", rf"\g<1>{at}", level) for at, level in enumerate(levels)]
    text = "/".join(numbered)
    assume(text and not re.fullmatch(r"/<\w+(:\w+)?\?>", text))  # these are refused: nothing may be left of them
    return text


def as_regex(text: str) -> re.Pattern[str]:
    """A naive reading of a template: one regular expression, run by `re`."""
    converters = {"": "[^/]+?", "int": "-?[0-9]+", "slug": "[-a-zA-Z0-9_]+", "path": "[^/]+(?:/[^/]+)*"}
    out = ""
    for at, level in enumerate(text.split("/")):
        slash = "/" if at else ""
        if level == "#":
            out += f"(?:{slash}.*)?" if at else ".*"
        elif level == "+":
            out += f"{slash}[^/]*"
        elif "?>" in level:
            name, _, converter = level[1:-2].partition(":")
            out += f"(?:{slash}(?P<{name}>{converters[converter]}))?"
        else:
            pieces = re.split("(<[^>]*>)", level)
            out += slash
            for piece in pieces:
                if piece.startswith("<"):
                    name, _, converter = piece[1:-1].partition(":")
                    out += f"(?P<{name}>{converters[converter]})"
                else:
                    out += re.escape(piece)
    return re.compile(out, re.DOTALL)


@given(template_texts(), telling_topics.filter(bool))
def test_match_is_what_one_regular_expression_would_say(text: str, topic: str) -> None:
    template = TopicTemplate(text)
    found = as_regex(text).fullmatch(topic)
    wild = template.filters[0][0] in "+#"
    expected = None if found is None or (wild and topic[0] == "$") else found.groupdict()
    got = template.match(topic)
    assert (got is None) is (expected is None)
    if got is not None and expected is not None:
        texts = {name: None if value is None else str(value) for name, value in zip(template.names, got, strict=True)}
        assert texts == {name: value and _normal(name, value, text) for name, value in expected.items()}


def _normal(name: str, value: str, text: str) -> str:
    return str(int(value)) if f"{name}:int" in text else value


@given(template_texts(), telling_topics.filter(bool))
def test_the_filters_let_everything_through_that_matches(text: str, topic: str) -> None:
    template = TopicTemplate(text)
    got = template.match(topic)
    hits = [filter for filter in template.filters if matches(filter, topic)]
    assert len(hits) <= 1
    if hits:
        assert template.values(topic.split("/"), topic) == got
    else:
        assert got is None


# -- where -------------------------------------------------------------------------------------------------------------


class Kind(Enum):
    TEMPERATURE = "temperature"
    HUMIDITY = "humidity"


class Word(StrEnum):
    A = "a"


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        (r"[a-z]+", "abc", "ab1"),
        (r"a|bc", "bc", "bcd"),  # the whole level, also with alternatives
        (r"^a$", "a", "a\n"),
        (re.compile(r"[a-z]+"), "abc", "ABC"),
        (re.compile(r"[a-z]+", re.IGNORECASE), "ABC", "a1"),
        (re.compile(r"a.b", re.DOTALL), "a\nb", "ab"),
        (re.compile(r"a.b"), "axb", "a\nb"),
        (re.compile(r"\d+", re.ASCII), "12", "٤٢"),
        (re.compile(r"\d+"), "٤٢", "x"),
        (re.compile(r"(?i)a"), "A", "b"),
        ({"a", "b"}, "a", "c"),
        (["a", "b"], "b", "ab"),
        (("x.y",), "x.y", "xzy"),
        (Kind, "humidity", "HUMIDITY"),
        ({Kind.HUMIDITY}, "humidity", "temperature"),
        (Word, "a", "A"),
        (Number, "1", "ONE"),
    ],
)
def test_where(constraint: object, accepted: str, refused: str) -> None:
    template = TopicTemplate("s/<x>", where={"x": constraint})  # type: ignore[dict-item]  # one of each
    assert template.match(f"s/{accepted}") == (accepted,)
    assert template.match(f"s/{refused}") is None
    assert template.parameters["x"].constrained


def test_where_and_a_converter_both_hold() -> None:
    template = TopicTemplate("<n:int>", where={"n": "[0-9]{2}"})
    assert template.match("12") == (12,)
    assert template.match("123") is None
    assert TopicTemplate("<n:int>", where={"n": {"1", "2"}}).match("2") == (2,)


def test_where_on_a_path_sees_the_whole_path() -> None:
    template = TopicTemplate("f/<p:path>", where={"p": "a/.*"})
    assert template.match("f/a/b/c") == ("a/b/c",)
    assert template.match("f/b") is None


def test_where_on_an_optional_level_leaves_it_optional() -> None:
    template = TopicTemplate("f/<x?>", where={"x": {"a"}})
    assert template.match("f") == (None,)
    assert template.match("f/a") == ("a",)
    assert template.match("f/b") is None


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|a)*", "(a|aa)+", "([a-z]+)*"])
def test_patterns_that_ruin_re_are_harmless(pattern: str) -> None:
    """`re` needs more than 2 ** 30 steps for each; a result at all, for 10,000 characters, shows a linear engine."""
    template = TopicTemplate("<x>", where={"x": pattern})
    assert template.match("a" * 10_000) == ("a" * 10_000,)
    assert template.match("a" * 10_000 + "!") is None


def test_a_level_full_of_separators_is_harmless() -> None:
    template = TopicTemplate("<a>-<b>-<c>-<d>x")
    assert template.match("-" * 60_000) is None


def test_a_lone_surrogate_matches_no_pattern() -> None:
    assert TopicTemplate("<x>", where={"x": ".*"}).match("\udc80") is None


# -- converters --------------------------------------------------------------------------------------------------------


def test_a_converter_of_its_own() -> None:
    def parse(text: str) -> int:
        if text == "ff":
            raise ValueError("no match, then")
        return int(text, 16)

    template = TopicTemplate("<x:hex>", converters={"hex": Converter("hex", "[0-9a-f]+", int, parse)})
    assert template.parameters["x"].type is int
    assert template.match("1f") == (31,)
    assert template.match("xyz") is None
    assert template.match("ff") is None


def test_a_bug_in_a_converter_is_not_hidden() -> None:
    table: dict[str, str] = {}
    template = TopicTemplate("<x:k>", converters={"k": Converter("k", None, str, table.__getitem__)})
    with pytest.raises(KeyError):
        template.match("x")


# -- specificity -------------------------------------------------------------------------------------------------------


def test_the_most_specific_template_sorts_first() -> None:
    order = ["a/b", "a/x<p>", "a/<n:int>", "a/<x>", "a/<x>/b", "a/<x>/#", "a/<x?>", "a/<p:path>", "a/#", "<x>/b", "#"]
    templates = [TopicTemplate(text) for text in sorted(order)]
    assert [template.text for template in sorted(templates, key=lambda template: template.specificity)] == order


def test_after_the_tree_only_the_values_are_read() -> None:
    tree: TopicTree[TopicTemplate] = TopicTree()
    for text in ("s/<id>/data", "s/<id:int>/data", "s/<p:path>"):
        template = TopicTemplate(text)
        for filter in template.filters:
            tree.add(filter, template)
    topic = "s/x/data"
    found = {template.text: template.values(topic.split("/"), topic) for template in tree.match(topic)}
    assert found == {"s/<id>/data": ("x",), "s/<id:int>/data": None, "s/<p:path>": ("x/data",)}


@given(st.text("ab<>{}:?+#/$-", max_size=12))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        template = TopicTemplate(text)
    except InvalidTemplate:
        return
    for filter in template.filters:
        validate_filter(filter)
