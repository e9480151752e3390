"""Vectors gathered from the test suites of brokers and clients; they lie beside a checkout, or these tests are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mqttapi.errors import InvalidTopic, InvalidTopicFilter
from mqttapi.topics import TopicTree, matches, split_share, validate_filter, validate_topic

_PATH = Path(__file__).parents[2].parent / "shared" / "topic_vectors.json"
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(_PATH.read_text("utf-8")) if _PATH.exists() else {}
pytestmark = pytest.mark.skipif(not VECTORS, reason="topic_vectors.json is not beside this checkout (../shared)")


def vectors(kind: str) -> list[dict[str, Any]]:
    return VECTORS.get(kind, [])


@pytest.mark.parametrize("vector", vectors("match"), ids=lambda v: f"{v['filter']} {v['topic']}")
def test_match(vector: dict[str, Any]) -> None:
    assert matches(vector["filter"], vector["topic"]) is vector["expected"]
    tree: TopicTree[int] = TopicTree()
    tree.add(vector["filter"], 1)
    assert tree.match(vector["topic"]) == [1] * vector["expected"]


@pytest.mark.parametrize("vector", vectors("filters_invalid"), ids=lambda v: repr(v["filter"]))
def test_invalid_filters(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidTopicFilter):
        validate_filter(vector["filter"])


@pytest.mark.parametrize("vector", vectors("filters_valid"), ids=lambda v: repr(v["filter"]))
def test_valid_filters(vector: dict[str, Any]) -> None:
    validate_filter(vector["filter"])


@pytest.mark.parametrize("vector", vectors("topics_invalid"), ids=lambda v: repr(v["topic"]))
def test_invalid_topics(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidTopic):
        validate_topic(vector["topic"])


@pytest.mark.parametrize("vector", vectors("topics_valid"), ids=lambda v: repr(v["topic"]))
def test_valid_topics(vector: dict[str, Any]) -> None:
    validate_topic(vector["topic"])


@pytest.mark.parametrize("vector", vectors("shared"), ids=lambda v: v["filter"])
def test_shared(vector: dict[str, Any]) -> None:
    assert split_share(vector["filter"]) == (vector["group"], vector["inner"])


@pytest.mark.parametrize("vector", vectors("utf8_malformed_bytes"), ids=lambda v: v["hex"])
def test_bytes_that_are_not_utf8_never_become_a_topic(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    with pytest.raises(UnicodeDecodeError):
        raw.decode()
    with pytest.raises(InvalidTopic):
        validate_topic(raw.decode(errors="surrogateescape"))
