from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttapi.errors import BrokerError
from mqttapi.message import Properties
from mqttapi.transport.packets import PUBACK, PUBCOMP, PUBREC, PUBREL, MalformedPacket, Refused, Splitter
from tests.support.streams import (
    MAX_PACKET,
    MAX_PAYLOAD,
    Item,
    Seen,
    fuzz,
    packet,
    publish,
    random_packet,
    reference,
    split,
    text,
    variable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBSCRIPTION = b"\x0b\xc1\x82\x83\x03"
IDS = Properties(subscription_ids=(0x41 | 0x02 << 7 | 0x03 << 14 | 0x03 << 21,))


def cut(stream: bytes, *places: int) -> list[bytes]:
    return [stream[a:b] for a, b in pairwise([0, *sorted(places), len(stream)])]


def ignore(*_: object) -> None:
    pass


# ------------------------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize("times", [1, 3])  # decoded, and known
@pytest.mark.parametrize("mqtt5", [True, False])
@pytest.mark.parametrize(
    ("flags", "qos", "retain", "dup"),
    [(0, 0, False, False), (1, 0, True, False), (2, 1, False, False), (0xA, 1, False, True), (0xD, 2, True, True)],
)
def test_a_publish_is_seen_as_it_was_sent(
    times: int, mqtt5: bool, flags: int, qos: int, retain: bool, dup: bool
) -> None:
    block = SUBSCRIPTION if mqtt5 else b""
    stream = publish("a/ü", b"payload", flags=flags, packet_id=0x1234, block=block, mqtt5=mqtt5)
    properties = IDS if mqtt5 else Properties()
    item = ("publish", "a/ü", b"payload", qos, retain, dup, 0x1234 if qos else 0, properties)
    assert split([stream * times], mqtt5=mqtt5) == [item] * times


def test_properties_are_decoded() -> None:
    block = SUBSCRIPTION + b"\x03" + text("text/plain") + b"\x26" + text("k") + text("v")
    expected = Properties(
        content_type="text/plain", user_properties=(("k", "v"),), subscription_ids=IDS.subscription_ids
    )
    for _, *_, properties in split([publish("t", block=block) * 2]):
        assert properties == expected


def test_long_properties_and_payloads_are_seen() -> None:
    block = b"\x26" + text("k") + text("v" * 1000)
    seen = Seen(max_payload=1 << 20, max_packet=1 << 21).feed(publish("t", b"x" * 200_000, block=block) * 2)
    assert [(item[2], item[7].user_properties) for item in seen] == [(b"x" * 200_000, (("k", "v" * 1000),))] * 2


def test_the_length_of_long_properties_is_not_taken_for_one_byte() -> None:
    """These decode at any even place, so that a known block is where a length of one byte would find it."""
    short, long = b"\x0b" * 130, b"\x0b" * (0x0B << 7 | 2)
    seen = Seen(max_payload=5000, max_packet=5000).feed(
        *[publish("t", b"1", block=short)] * 2, publish("t", b"2", block=long)
    )
    assert [(item[2], len(item[7].subscription_ids)) for item in seen] == [(b"1", 65), (b"1", 65), (b"2", 705)]


@pytest.mark.parametrize(
    ("body", "reason_code"), [(b"\x00\x07", 0), (b"\x00\x07\x92", 0x92), (b"\x00\x07\x10\x00", 0x10)]
)
@pytest.mark.parametrize(("first", "kind"), [(0x40, PUBACK), (0x50, PUBREC), (0x62, PUBREL), (0x70, PUBCOMP)])
def test_an_acknowledgement_is_decoded(first: int, kind: int, body: bytes, reason_code: int) -> None:
    assert split([packet(first, body)]) == [("ack", kind, 7, reason_code)]


@pytest.mark.parametrize("first", [0x20, 0x90, 0xB0, 0xD0, 0xE0, 0xF0])
@pytest.mark.parametrize("size", [0, 3, 127, 128, 1000])
def test_any_other_packet_is_handed_over_raw(first: int, size: int) -> None:
    assert split([packet(first, b"x" * size)]) == [("other", first, b"x" * size)]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("topic", "shown", "reason"),
    [
        (b"a/\xff", "a/\\xff", "its topic is not UTF-8 [MQTT-1.5.4-1]"),
        (b"\xc0\xaf", "\\xc0\\xaf", "its topic is not UTF-8 [MQTT-1.5.4-1]"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80", "its topic is not UTF-8 [MQTT-1.5.4-1]"),
        (b"", "", "its topic is empty [MQTT-4.7.3-1]"),
        (b"a/+", "a/+", "its topic has a wildcard [MQTT-3.3.2-2]"),
        (b"#", "#", "its topic has a wildcard [MQTT-3.3.2-2]"),
        (b"a\x00", "a\x00", "its topic has a null character [MQTT-1.5.4-2]"),
    ],
)
@pytest.mark.parametrize("mqtt5", [True, False])
def test_a_topic_that_is_none_is_refused_and_the_connection_lives(
    topic: bytes, shown: str, reason: str, mqtt5: bool
) -> None:
    refused: list[Refused] = []
    after: list[object] = []
    splitter = Splitter(
        mqtt5=mqtt5,
        on_publish=lambda topic, *_: after.append(topic),
        on_refused=refused.append,
        on_ack=ignore,
        on_other=ignore,
    )
    splitter.feed(publish(topic, b"12", flags=4, packet_id=9, mqtt5=mqtt5) + publish("next", mqtt5=mqtt5))
    assert refused == [Refused(topic=shown, qos=2, packet_id=9, size=2, reason=reason)]
    assert after == ["next"]


def test_properties_that_do_not_decode_are_refused() -> None:
    stream = publish("t", flags=2, packet_id=9, block=b"\x26" + text(b"\xff") + text("v")) + publish("t")
    assert [item[0] for item in split([stream])] == ["refused", "publish"]


@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 1500])
@pytest.mark.parametrize("flags", [0, 2, 4])
def test_a_payload_that_is_too_long_is_refused_when_all_of_it_has_come(size: int, flags: int) -> None:
    stream = publish("t", b"x" * size, flags=flags, packet_id=9, block=SUBSCRIPTION)
    seen = Seen()
    assert seen.feed(stream[:-1]) == []
    expected = ("refused", flags >> 1, 9 if flags else 0, size)
    assert seen.feed(stream[-1:]) == [expected]
    assert seen.feed(publish("t"))[1][:2] == ("publish", "t")
    assert split([stream]) == [expected]


def test_a_payload_of_the_limit_is_delivered() -> None:
    assert split([publish("t", b"x" * MAX_PAYLOAD)])[0][2] == b"x" * MAX_PAYLOAD


def test_a_payload_that_is_too_long_is_never_held() -> None:
    seen = Seen(max_payload=1000, max_packet=1 << 24)
    stream = publish("t", bytes(1 << 23), block=SUBSCRIPTION)
    for start in range(0, len(stream), 1 << 16):
        seen.feed(stream[start : start + (1 << 16)])
        assert len(seen.splitter._partial) + len(seen.splitter._data) <= 1 << 16
    assert seen.items == [("refused", 0, 0, 1 << 23)]


# --------------------------------------------------------------------------------------------------- what is malformed


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (packet(0x36, text("t") + b"\0\1\0"), "a PUBLISH of QoS 3 [MQTT-3.3.1-4]"),
        (packet(0x36, text("t") + b"\0\1\0payload"), "a PUBLISH of QoS 3 [MQTT-3.3.1-4]"),
        (publish("t", flags=2, packet_id=0), "a PUBLISH with packet id 0 [MQTT-2.2.1-4]"),
        (publish("t", b"payload", flags=2, packet_id=0), "a PUBLISH with packet id 0 [MQTT-2.2.1-4]"),
        (packet(0x30, b""), "a PUBLISH that ends before its topic"),
        (packet(0x30, b"\0"), "a PUBLISH that ends before its topic"),
        (packet(0x30, b"\0\5abcd"), "a PUBLISH whose topic reaches beyond its end"),
        (packet(0x30, b"\0\5abcd") + b"efgh", "a PUBLISH whose topic reaches beyond its end"),
        (packet(0x32, b"\0\4abcd\0"), "a PUBLISH whose topic reaches beyond its end"),
        (packet(0x30, text("t")), "a length that reaches beyond the packet's end"),
        (packet(0x30, text("abcd")), "a length that reaches beyond the packet's end"),
        (packet(0x30, text("t") + b"\5\1\1"), "a PUBLISH whose properties reach beyond its end"),
        (packet(0x30, text("t") + b"\5") + SUBSCRIPTION, "a PUBLISH whose properties reach beyond its end"),
        (packet(0x30, text("t") + b"\x80"), "a length that reaches beyond the packet's end"),
        (packet(0x30, text("t") + b"\xff\xff\xff\xff\1"), "a length of more than four bytes [MQTT5 §1.5.5]"),
        (b"\x30\xff\xff\xff\xff\1", "a length of more than four bytes [MQTT5 §1.5.5]"),
        (b"\x30" + variable(MAX_PACKET - 2), "one of 2,001 bytes, over max_packet (2,000)"),
        (packet(0x30, text("t") + bytes(MAX_PACKET - 5)), "one of 2,001 bytes, over max_packet (2,000)"),
        (b"\xd0\xff\xff\xff\x7f", "one of 268,435,460 bytes, over max_packet (2,000)"),
        (publish("t", block=b"\x23\0\1"), "a PUBLISH with a topic alias, though none was allowed [MQTT-3.3.2-9]"),
        (packet(0x40, b"\0"), "an acknowledgement (0x40) of 1 bytes"),
        (packet(0x62, b"\0\0"), "an acknowledgement (0x62) of packet id 0"),
        *((packet(first, b""), f"no server sends a packet that begins with 0x{first:02X}") for first in (0x00, 0x60)),
        (b"\x10", "no server sends a packet that begins with 0x10"),
    ],
)
@pytest.mark.parametrize("before", [b"", (publish("t", block=SUBSCRIPTION) + publish("abcd")) * 3])
def test_a_malformed_packet_says_what_is_wrong(before: bytes, stream: bytes, reason: str) -> None:
    """Whether its topic and its properties were decoded before or not."""
    for chunks in ([stream], cut(stream, *range(1, len(stream)))):
        splitter = Seen().splitter
        splitter.feed(before)
        with pytest.raises(MalformedPacket) as raised:
            for chunk in chunks:
                splitter.feed(chunk)
        assert raised.value.reason == reason
        assert str(raised.value) == f"the broker sent a malformed packet: {reason}"
        assert isinstance(raised.value, BrokerError)


@pytest.mark.parametrize(
    ("stream", "reason_code"),
    [(b"\x10", 0x81), (publish("t", block=b"\x23\0\1"), 0x94), (b"\x30\xff\xff\xff\x7f", 0x95)],
)
def test_a_malformed_packet_has_the_code_for_a_disconnect(stream: bytes, reason_code: int) -> None:
    with pytest.raises(MalformedPacket) as raised:
        Seen().splitter.feed(stream)
    assert raised.value.reason_code == reason_code


@pytest.mark.parametrize("stream", [packet(0xE0, b""), packet(0xF0, b""), packet(0x40, b"\0\1\0")])
def test_what_only_mqtt_5_has_is_malformed_in_3_1_1(stream: bytes) -> None:
    assert split([stream], mqtt5=False) == [("malformed",)]


def test_what_came_before_a_malformed_packet_was_seen() -> None:
    assert [item[0] for item in split([publish("t") + b"\x00\x00" + publish("t")])] == ["publish", "malformed"]


# ---------------------------------------------------------------------------------------------------- pause and resume


def test_nothing_comes_behind_a_pause_until_resume() -> None:
    seen = Seen(pause_every=1)
    seen.splitter.feed(publish("1") + publish("2") + publish("3")[:4])
    assert [item[1] for item in seen.items] == ["1"]
    seen.splitter.feed(publish("3")[4:])
    assert [item[1] for item in seen.items] == ["1"]
    seen.splitter.resume()
    assert [item[1] for item in seen.items] == ["1", "2"]
    seen.splitter.resume()
    assert [item[1] for item in seen.items] == ["1", "2", "3"]


def test_resume_within_a_callback_goes_on() -> None:
    topics: list[str] = []

    def on_publish(topic: str, *_: object) -> None:
        topics.append(topic)
        splitter.paused = True
        splitter.resume()

    splitter = Splitter(mqtt5=True, on_publish=on_publish, on_refused=ignore, on_ack=ignore, on_other=ignore)
    splitter.feed(publish("1") + publish("2") + publish("3"))
    assert topics == ["1", "2", "3"]


def test_an_exception_of_a_callback_costs_no_other_packet() -> None:
    topics: list[str] = []

    def on_publish(topic: str, *_: object) -> None:
        topics.append(topic)
        if topic == "bad":
            raise IndexError

    splitter = Splitter(mqtt5=True, on_publish=on_publish, on_refused=ignore, on_ack=ignore, on_other=ignore)
    with pytest.raises(IndexError):
        splitter.feed(publish("1") + publish("bad") + publish("2"))
    splitter.feed(publish("3"))
    assert topics == ["1", "bad", "2", "3"]


# ------------------------------------------------------------------------------------------------------- any stream


def packets(seed: int, count: int, *, mqtt5: bool) -> bytes:
    rng = random.Random(seed)
    return b"".join(random_packet(rng, mqtt5=mqtt5) for _ in range(count))


@given(st.integers(), st.booleans(), st.data())
def test_a_stream_gives_the_same_packets_however_it_is_cut_and_paused(
    seed: int, mqtt5: bool, data: st.DataObject
) -> None:
    stream = packets(seed, 10, mqtt5=mqtt5)
    places: Sequence[int] = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    expected, rest = reference(stream, mqtt5=mqtt5)
    assert not rest
    assert split(cut(stream, *places), mqtt5=mqtt5, pause_every=data.draw(st.integers(0, 3))) == expected


def test_a_stream_gives_the_same_packets_byte_by_byte() -> None:
    stream = packets(7, 40, mqtt5=True)
    assert split(cut(stream, *range(1, len(stream)))) == reference(stream)[0]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10), st.booleans())
@example(b"\x30\x80\x80\x80", [1, 2, 3], True)
def test_garbage_raises_nothing_but_malformed_packet(stream: bytes, places: list[int], mqtt5: bool) -> None:
    expected, rest = reference(stream, mqtt5=mqtt5)
    items = split(cut(stream, *(place % (len(stream) + 1) for place in places)), mqtt5=mqtt5)
    assert items == split([stream], mqtt5=mqtt5)
    assert _without_the_rest(items, rest) == expected


def _without_the_rest(items: list[Item], rest: bytes) -> list[Item]:
    return items[:-1] if rest and items[-1:] == [("malformed",)] else items


def test_damaged_streams_neither_crash_nor_hang_nor_are_acknowledged_wrongly() -> None:
    counts = fuzz(20_000, seed=random.randrange(1 << 32))
    assert min(counts[name] for name in ("publish", "refused", "ack", "other", "malformed")) > 100
