from __future__ import annotations

import contextlib
from typing import Any

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.message import NO_PROPERTIES, HeavyProperties, Properties
from mqttapi.transport.properties import TopicAliasUsed, decode_properties
from tests.support.streams import text

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
TOPIC = st.text("ab/é€", min_size=1, max_size=20)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": TEXT,
            "response_topic": TOPIC,
            "correlation_data": st.binary(max_size=20),
            "message_expiry_interval": st.integers(0, 0xFFFFFFFF),
            "payload_format_indicator": st.sampled_from([0, 1]),
            "user_properties": st.lists(st.tuples(TEXT, TEXT), max_size=3),
            "subscription_ids": st.lists(st.integers(1, 268_435_455), max_size=3),
        },
    )
)
def test_what_another_codec_encodes_is_decoded(properties: dict[str, Any]) -> None:
    raw = mqtt5.PublishPacket("t", payload=b"", **properties).write()
    body = raw[2 + (raw[1] >= 0x80) :]
    rest = body[3:]  # behind the topic
    expected: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in properties.items()
    }
    assert decode_properties(rest[1 + (rest[0] >= 0x80) :]) == Properties(**expected)


def test_no_bytes_are_no_properties() -> None:
    assert decode_properties(b"") is NO_PROPERTIES


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\x26" + text(b"\xff") + text("v"), "its properties have text that is not UTF-8 [MQTT-1.5.4-1]"),
        (b"\x03" + text(b"\xc0\xaf"), "its properties have text that is not UTF-8 [MQTT-1.5.4-1]"),
        (b"\x03\0", "its properties end in the middle of one"),
        (b"\x03\0\5abc", "its properties end in the middle of one"),
        (b"\x26" + text("k"), "its properties end in the middle of one"),
        (b"\x26\0\xffk", "its properties end in the middle of one"),
        (b"\x0b\x80", "its properties end in the middle of one"),
        (b"\x02\0\0\0", "its properties end in the middle of one"),
        (b"\x99", "its properties have one that a PUBLISH has not (0x99) [MQTT5 §2.2.2.2]"),
        (b"\x1f" + text("x"), "its properties have one that a PUBLISH has not (0x1F) [MQTT5 §2.2.2.2]"),
        ((b"\x03" + text("a")) * 2, "its properties have one twice (0x03) [MQTT5 §3.3.2.3]"),
        (b"\x01\x02", "its payload format indicator is neither 0 nor 1 [MQTT5 §3.3.2.3.2]"),
        (b"\x0b\0", "its subscription identifier is not 1 to 268,435,455 [MQTT5 §3.3.2.3.8]"),
        (b"\x0b\xff\xff\xff\xff\x01", "its subscription identifier is not 1 to 268,435,455 [MQTT5 §3.3.2.3.8]"),
    ],
)
def test_malformed_properties_say_what_is_wrong(block: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        decode_properties(block)
    assert str(raised.value) == reason


def test_a_topic_alias_is_told_apart() -> None:
    with pytest.raises(TopicAliasUsed):
        decode_properties(b"\x0b\1\x23\0\1")


@given(st.binary(max_size=60))
def test_any_bytes_give_properties_or_a_value_error(block: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode_properties(block), Properties)


def test_properties_count_among_the_bytes_that_are_held_unless_they_are_few() -> None:
    few = decode_properties(b"\x26" + text("k") + text("v"))
    assert type(few) is Properties
    many = decode_properties((b"\x26" + text("k") + text("v" * 60_000)) * 16)
    assert isinstance(many, HeavyProperties)
    assert many.weight > 16 * 60_000
    tiny = decode_properties((b"\x26" + text("") + text("v")) * 100)
    assert isinstance(tiny, HeavyProperties)
    assert tiny.weight > 100 * 72  # as they are in memory, not as on the wire
