from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from mqttapi.errors import ConfigurationError, InvalidTopic, InvalidTopicFilter
from mqttapi.topics import join, matches, share, split_share, validate_filter, validate_topic
from tests.topics.oracle import filters, textbook_match, topics

SPECIFICATION = [
    # 4.7.1.2, the multi-level wildcard
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "any/topic/at/all", True),
    # 4.7.1.3, the single-level wildcard
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player2", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    # 4.7.2, topics beginning with $
    ("#", "$SYS/uptime", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("$SYS/#", "$SYS/monitor/Clients", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    # 4.7.3, semantics: case, leading and trailing separators, spaces
    ("ACCOUNTS", "Accounts", False),
    ("/finance", "finance", False),
    ("Accounts payable", "Accounts payable", True),
    ("/", "/", True),
    # 4.8.2: the group has no part in matching
    ("$share/consumer1/sport/tennis/+", "sport/tennis/player1", True),
    ("$share/consumer1//finance", "/finance", True),
    ("$share/g/#", "$SYS/uptime", False),
]


@pytest.mark.parametrize(("filter", "topic", "expected"), SPECIFICATION)
def test_the_examples_of_the_specification(filter: str, topic: str, expected: bool) -> None:
    assert matches(filter, topic) is expected


@given(filters, topics)
def test_matches_what_the_textbook_matches(filter: str, topic: str) -> None:
    assert matches(filter, topic) is textbook_match(filter, topic)
    assert matches(f"$share/group/{filter}", topic) is textbook_match(filter, topic)


@given(filters, topics)
def test_matches_what_paho_matches(filter: str, topic: str) -> None:
    """Where paho 2.2 differs is in the next test."""
    assert matches(filter, topic) is topic_matches_sub(filter, topic)


def test_where_paho_differs() -> None:
    """paho takes a group for levels of the topic, answers for filters that are none, and for the empty topic."""
    assert not topic_matches_sub("$share/g/a", "a")
    assert matches("$share/g/a", "a")
    assert topic_matches_sub("a+", "a+")
    with pytest.raises(InvalidTopicFilter):
        matches("a+", "a+")
    assert topic_matches_sub("#", "")
    assert not matches("#", "")


def test_wildcards_in_an_arriving_topic_are_plain_text() -> None:
    assert not matches("a/b", "a/+")
    assert not matches("a/b", "#")
    assert matches("a/+", "a/#")


def test_an_empty_topic_matches_nothing() -> None:
    assert not matches("#", "")
    assert not matches("+", "")


def test_composed_and_decomposed_characters_differ() -> None:
    """[MQTT-4.7.3-4]: no normalisation."""
    assert not matches("é", "e\u0301")


@pytest.mark.parametrize("code", [0, 1, 0x0A, 0x1F, 0x7F, 0x9F, 0xD800, 0xDFFF, 0xFDD0, 0xFFFE])
def test_characters_that_brokers_refuse_are_refused(code: int) -> None:
    with pytest.raises(InvalidTopic, match=f"U\\+{code:04X}"):
        validate_topic(f"a{chr(code)}b")
    with pytest.raises(InvalidTopicFilter, match=f"U\\+{code:04X}"):
        validate_filter(f"a{chr(code)}/#")


def test_the_last_non_character_is_refused_and_the_byte_order_mark_is_not() -> None:
    with pytest.raises(InvalidTopic, match=r"U\+10FFFF"):
        validate_topic("\U0010ffff")
    validate_topic("\ufeffx")
    assert not matches("x", "\ufeffx")


@pytest.mark.parametrize("text", ["x" * 65_535, "é" * 32_767 + "x", "\U0001f600" * 16_383])
def test_65535_bytes_are_allowed(text: str) -> None:
    validate_topic(text)
    validate_filter(text)


@pytest.mark.parametrize("text", ["x" * 65_536, "é" * 32_768, "\U0001f600" * 16_384])
def test_one_byte_more_is_not(text: str) -> None:
    """[MQTT-4.7.3-3] counts UTF-8 bytes, not characters."""
    with pytest.raises(InvalidTopic, match="65,53"):
        validate_topic(text)
    with pytest.raises(InvalidTopicFilter, match="65,53"):
        validate_filter(text)


def test_the_bytes_of_the_group_count() -> None:
    assert share("g", "x" * (65_535 - len("$share/g/")))
    with pytest.raises(InvalidTopicFilter, match="65,536"):
        share("g", "x" * (65_536 - len("$share/g/")))


def test_errors_are_configuration_errors_and_value_errors() -> None:
    for error in (InvalidTopic, InvalidTopicFilter):
        assert issubclass(error, ConfigurationError)
        assert issubclass(error, ValueError)


@given(filters)
def test_what_share_joins_split_share_takes_apart(filter: str) -> None:
    assert split_share(share("group", filter)) == ("group", filter)
    assert split_share(share(None, filter)) == (None, filter)


@pytest.mark.parametrize("group", ["", "a/b", "+", "a#"])
def test_a_group_is_one_plain_level(group: str) -> None:
    with pytest.raises(InvalidTopicFilter, match=r"MQTT-4\.8\.2"):
        share(group, "a")


@pytest.mark.parametrize(
    ("prefix", "text", "expected"),
    [
        ("p", "x", "p/x"),
        ("/p/", "/x", "p/x"),
        ("p//", "//x", "p/x"),
        ("p/q", "x/", "p/q/x/"),
        ("", "/x", "/x"),
        ("/", "x", "x"),
        ("p/", "", "p"),
        ("p", "/", "p"),
    ],
)
def test_join_puts_exactly_one_slash(prefix: str, text: str, expected: str) -> None:
    assert join(prefix, text) == expected


@given(st.text("ab/+#$", max_size=8))
def test_filters_are_refused_exactly_where_the_rules_say(text: str) -> None:
    """4.7.1 and 4.7.3-1, level by level; `$share` has its own tests."""
    levels = text.split("/")
    well_formed = all(level in ("+", "#") or not set("+#") & set(level) for level in levels)
    if text and well_formed and "#" not in levels[:-1]:
        validate_filter(text)
    else:
        with pytest.raises(InvalidTopicFilter):
            validate_filter(text)


@given(st.text("ab/+#$", max_size=8))
def test_topics_are_refused_exactly_where_the_rules_say(text: str) -> None:
    if text and not set("+#") & set(text):
        validate_topic(text)
    else:
        with pytest.raises(InvalidTopic):
            validate_topic(text)
