from __future__ import annotations

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.errors import PublishRefused
from mqttapi.publisher import Publish
from mqttapi.transport.encoding import encode_publish, encode_pubrel, has_properties
from tests.support.packets import publish as publish_packet

topics = st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="+#"), min_size=1, max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
payloads = st.one_of(
    st.binary(max_size=200), st.sampled_from([0, 100, 127, 128, 16_000, 16_384, 2_097_152]).map(lambda n: b"x" * n)
)


@given(
    topic=topics,
    payload=payloads,
    qos=st.integers(0, 2),
    retain=st.booleans(),
    packet_id=st.integers(1, 65_535),
    expiry=st.none() | st.integers(0, 0xFFFF_FFFF),
    content_type=st.none() | texts,
    user_properties=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    response_topic=st.none() | topics,
    correlation_data=st.none() | st.binary(max_size=40),
    payload_format_indicator=st.sampled_from([0, 1]),
)
def test_a_packet_is_what_another_codec_writes(
    topic: str,
    payload: bytes,
    qos: int,
    retain: bool,
    packet_id: int,
    expiry: int | None,
    content_type: str | None,
    user_properties: tuple[tuple[str, str], ...],
    response_topic: str | None,
    correlation_data: bytes | None,
    payload_format_indicator: int,
) -> None:
    mine = encode_publish(
        Publish(
            topic,
            payload,
            qos,
            retain,
            expiry,
            content_type,
            user_properties,
            response_topic,
            correlation_data,
            payload_format_indicator=payload_format_indicator,
        ),
        packet_id if qos else 0,
        mqtt5=True,
    )
    theirs = mqtt5.PublishPacket(
        topic,
        payload,
        qos=mqtt5.QoS(qos),
        retain=retain,
        packet_id=packet_id if qos else None,
        message_expiry_interval=expiry,
        content_type=content_type,
        user_properties=list(user_properties),
        response_topic=response_topic,
        correlation_data=correlation_data,
        payload_format_indicator=payload_format_indicator,
    ).write()
    assert mine == theirs


@given(topic=topics, payload=payloads, qos=st.integers(0, 2), retain=st.booleans(), packet_id=st.integers(1, 65_535))
def test_mqtt_3_1_1_has_no_properties(topic: str, payload: bytes, qos: int, retain: bool, packet_id: int) -> None:
    publish = Publish(topic, payload, qos, retain, expiry=5, content_type="x", user_properties={"a": "b"})
    packet = encode_publish(publish, packet_id if qos else 0, mqtt5=False)
    assert packet == publish_packet(
        topic, payload, qos=qos, retain=retain, packet_id=packet_id if qos else 0, version=4
    )


def test_a_part_of_a_second_is_a_second() -> None:
    packet = encode_publish(Publish("a", b"", qos=0, expiry=0.2), 0, mqtt5=True)
    read, _ = mqtt5.read(memoryview(packet))
    assert isinstance(read, mqtt5.PublishPacket)
    assert read.message_expiry_interval == 1


def test_a_packet_beyond_the_largest_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 268_435_455

    with pytest.raises(PublishRefused) as caught:
        encode_publish(Publish("a", Huge(), qos=0), 0, mqtt5=True)
    assert str(caught.value) == "publish to 'a': 268435459 bytes are more than an MQTT packet holds (268435455)"
    assert caught.value.reason_code == 0x95


@given(packet_id=st.integers(1, 65_535), known=st.booleans())
def test_pubrel_is_what_another_codec_writes(packet_id: int, known: bool) -> None:
    code = mqtt5.PubRelReasonCode.SUCCESS if known else mqtt5.PubRelReasonCode.PACKET_ID_NOT_FOUND
    assert encode_pubrel(packet_id, known=known) == mqtt5.PubRelPacket(packet_id, reason_code=code).write()


def test_properties_are_what_mqtt_3_1_1_cannot_send() -> None:
    assert not has_properties(Publish("a", b"", 2, retain=True))
    assert has_properties(Publish("a", expiry=0))
    assert has_properties(Publish("a", correlation_data=b""))
    assert has_properties(Publish("a", payload_format_indicator=1))
