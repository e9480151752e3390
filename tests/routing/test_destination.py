"""`Destination.patterns`: what the topics of a destination look like, before there is one."""

from __future__ import annotations

import pytest

from mqttapi.routing import Destination
from mqttapi.topics import TopicTemplate, matches


def destination(text: str, source: str) -> Destination:
    return Destination(text, source=TopicTemplate(source), route="the route", label="test")


@pytest.mark.parametrize(
    ("text", "source", "patterns"),
    [
        ("out", "a/<id>", ("out",)),
        ("out/<id>", "a/<id>", ("out/+",)),
        ("out/dev-<id>", "a/<id>", ("out/+",)),
        ("out/<route>", "a/<id>", ("out/the route",)),
        ("out/{route}/{topic}", "a/<id>", ("out/the route/a/+",)),
        ("dead/<topic>", "a/<id>/b", ("dead/a/+/b",)),
        ("dead/<topic>/x", "a/<id>", ("dead/a/+/x",)),
        ("dead/<topic>/x", "a/#", ("dead/a/#",)),
        ("dead/<topic>", "#", ("dead/#",)),
        ("dead/<topic>", "a/<id?>", ("dead/a", "dead/a/+")),
        ("out/<id?>", "a/<id?>", ("out", "out/+")),
        ("out/<rest:path>", "a/<rest:path>", ("out/+/#",)),
        ("dead/<topic>", "a/<topic>", ("dead/+",)),
        ("out/<route>", "a/<route>", ("out/+",)),
    ],
)
def test_patterns(text: str, source: str, patterns: tuple[str, ...]) -> None:
    assert destination(text, source).patterns == patterns


@pytest.mark.parametrize(
    ("text", "source", "topic"),
    [
        ("dead/<topic>", "a/<id?>", "a"),
        ("dead/<topic>", "a/<id?>", "a/7"),
        ("dead/<topic>/<id>", "a/<id>/#", "a/7/b/c"),
        ("x/<rest:path>", "a/<rest:path>", "a/b/c"),
        ("dead/<route>/<topic>", "+/<id>", "/7"),
        ("dead/<topic>", "$SYS/#", "$SYS/a"),
    ],
)
def test_a_pattern_matches_what_is_rendered(text: str, source: str, topic: str) -> None:
    to, values = destination(text, source), TopicTemplate(source).match(topic)
    assert values is not None
    assert any(matches(pattern, to.topic(values, topic)) for pattern in to.patterns)
