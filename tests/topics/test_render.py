from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.errors import InvalidTopic
from mqttapi.topics import TopicTemplate, validate_topic

ID = UUID("0b1e6a3c-1111-4222-8333-9a9b9c9d9e9f")


class Kind(Enum):
    A = "a"


@pytest.mark.parametrize(
    ("text", "params", "topic"),
    [
        ("a/b", {}, "a/b"),
        ("a/<x>/b", {"x": "7"}, "a/7/b"),
        ("<x>/<y>", {"y": 1, "x": 2}, "2/1"),
        ("dev-<a>.<b>", {"a": 1, "b": "z"}, "dev-1.z"),
        ("a/<x?>", {}, "a"),
        ("a/<x?>", {"x": None}, "a"),
        ("a/<x?>", {"x": 1}, "a/1"),
        ("a/<p:path>", {"p": "b/c"}, "a/b/c"),
        ("a/<p:path?>", {}, "a"),
        ("a/<x>", {"x": True}, "a/true"),
        ("a/<x:bool>", {"x": False}, "a/false"),
        ("a/<x:float>", {"x": 1e22}, "a/10000000000000000000000"),
        ("a/<x:float>", {"x": 1e-7}, "a/0.0000001"),
        ("a/<x>", {"x": Decimal("1.50")}, "a/1.50"),
        ("a/<x:uuid>", {"x": ID}, f"a/{ID}"),
        ("a/<x>", {"x": date(2030, 1, 2)}, "a/2030-01-02"),
        ("a/<x>", {"x": Kind.A}, "a/a"),
        ("$SYS/<x>", {"x": "a"}, "$SYS/a"),
        ("a/<x>", {"x": "$b"}, "a/$b"),
    ],
)
def test_render(text: str, params: dict[str, object], topic: str) -> None:
    assert TopicTemplate(text).render(params) == topic


TEMPLATES = ["<x>", "<x>/b", "a/<x>", "a/<x>/b/<y>", "a-<x>", "<x>-<y>", "<x>.<y>/<z>", "a/<x?>", "<x>b<y>"]
VALUES = st.one_of(
    st.text("ab-./+#$\0\n\ud800é", max_size=5), st.text(max_size=5), st.integers(), st.none(), st.booleans()
)


@given(st.sampled_from(TEMPLATES), VALUES, VALUES, VALUES)
def test_no_value_injects_anything(text: str, x: object, y: object, z: object) -> None:
    """What comes out is a topic of as many levels as the template, without wildcards, and is read as what went in."""
    template = TopicTemplate(text)
    params = {name: value for name, value in {"x": x, "y": y, "z": z}.items() if name in template.names}
    try:
        topic = template.render(params)
    except InvalidTopic:
        return
    validate_topic(topic)
    absent = template.parameters["x"].optional and x is None
    assert topic.count("/") == text.count("/") - absent
    assert not topic.startswith("$")
    texts = tuple(
        {True: "true", False: "false"}[v] if isinstance(v, bool) else v if v is None else str(v)
        for v in params.values()
    )
    assert template.match(topic) == texts


@given(st.text("ab/+#$\0", max_size=6))
def test_a_path_injects_no_wildcard_and_no_empty_level(value: str) -> None:
    template = TopicTemplate("a/<p:path>")
    try:
        topic = template.render({"p": value})
    except InvalidTopic:
        return
    assert template.match(topic) == (value,)
    validate_topic(topic)


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("a/<x>", {"x": "b/c"}),
        ("a/<x>", {"x": "/"}),
        ("a/<x>", {"x": ""}),
        ("a/<x>", {"x": "+"}),
        ("a/<x>", {"x": "b#"}),
        ("a/<x>", {"x": "\0"}),
        ("a/<x>", {"x": "b\nc"}),
        ("a/<x>", {"x": "\udc80"}),
        ("a/<x>", {"x": None}),
        ("a/<x>", {"x": b"b"}),
        ("a/<x>", {"x": ["b"]}),
        ("a/<x>", {"x": object()}),
        ("<x>", {"x": "$SYS"}),
        ("<x>/y", {"x": "$"}),
        ("<p:path>", {"p": "$SYS/x"}),
        ("<x>", {}),
        ("<x>", {"x": 1, "y": 2}),
        ("<n:int>", {"n": "x"}),
        ("<n:int>", {"n": True}),
        ("a/+/<x>", {"x": 1}),
        ("a/#", {}),
        ("<x>", {"x": "é" * 32_768}),
    ],
)
def test_what_is_refused(text: str, params: dict[str, object]) -> None:
    with pytest.raises(InvalidTopic):
        TopicTemplate(text).render(params)


def test_where_holds_for_values_too() -> None:
    with pytest.raises(InvalidTopic, match="does not fit"):
        TopicTemplate("a/<x>", where={"x": {"b"}}).render({"x": "c"})


def test_a_parameter_may_take_a_whole_topic_where_the_caller_says_so() -> None:
    template = TopicTemplate("dead/<topic>/x")
    assert template.render({"topic": "/a//$b/"}, topics=("topic",)) == "dead//a//$b//x"
    with pytest.raises(InvalidTopic):
        template.render({"topic": "a/b"})
    with pytest.raises(InvalidTopic, match="wildcard"):
        template.render({"topic": "a/+"}, topics=("topic",))
    with pytest.raises(InvalidTopic, match="first level"):
        TopicTemplate("<topic>/x").render({"topic": "$SYS/a"}, topics=("topic",))


def test_renderable() -> None:
    assert TopicTemplate("a/<x>-<y>/<p:path>").renderable
    assert not TopicTemplate("a/+/<x>").renderable
    assert not TopicTemplate("a/#").renderable
