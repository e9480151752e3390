"""PUBLISH and its acknowledgements as bytes, by hand: the shortest way from a `Publish` to the socket."""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from mqttapi.errors import PublishRefused
from mqttapi.message import printable

if TYPE_CHECKING:
    from mqttapi.publisher import Publish

__all__ = ["DUP", "encode_publish", "encode_pubrel", "has_properties"]

DUP: Final = 0x08
"""The bit of a PUBLISH's first byte that says "again"."""
_MAX_REMAINING: Final = 268_435_455
_PACKET_TOO_LARGE: Final = 0x95


def encode_publish(publish: Publish, packet_id: int, *, mqtt5: bool) -> bytes:
    """The packet for a `Publish` whose payload is bytes; MQTT 3.1.1 has no room for properties.

    Raises:
        PublishRefused: the packet is longer than any may be.
    """
    topic = _prefixed(publish.topic)
    payload = publish.payload
    first = 0x30 | publish.qos << 1 | publish.retain
    identifier = packet_id.to_bytes(2, "big") if packet_id else b""
    properties = (_properties(publish) if has_properties(publish) else b"\0") if mqtt5 else b""
    remaining = len(topic) + len(identifier) + len(properties) + len(payload)
    if remaining < 128:
        return b"".join((bytes((first, remaining)), topic, identifier, properties, payload))
    if remaining > _MAX_REMAINING:
        raise PublishRefused(
            f"publish to {printable(publish.topic)!r}: {remaining} bytes are more than an MQTT packet holds "
            f"({_MAX_REMAINING})",
            reason_code=_PACKET_TOO_LARGE,
        )
    return b"".join((bytes((first,)), _varint(remaining), topic, identifier, properties, payload))


def encode_pubrel(packet_id: int, *, known: bool = True) -> bytes:
    """PUBREL; one that is not `known` says so (0x92, MQTT 5 only)."""
    return struct.pack("!BBH", 0x62, 2, packet_id) if known else struct.pack("!BBHB", 0x62, 3, packet_id, 0x92)


def has_properties(publish: Publish) -> bool:
    """Whether there is something that only MQTT 5 can send."""
    return bool(
        publish.user_properties
        or publish.expiry is not None
        or publish.content_type is not None
        or publish.response_topic is not None
        or publish.correlation_data is not None
        or publish.payload_format_indicator
    )


def _properties(publish: Publish) -> bytes:
    parts: list[bytes] = [b"\x01\x01"] if publish.payload_format_indicator else []
    if publish.expiry is not None:
        parts += b"\x02", math.ceil(publish.expiry).to_bytes(4, "big")
    if publish.content_type is not None:
        parts += b"\x03", _prefixed(publish.content_type)
    if publish.response_topic is not None:
        parts += b"\x08", _prefixed(publish.response_topic)
    if publish.correlation_data is not None:
        parts += b"\x09", len(publish.correlation_data).to_bytes(2, "big"), publish.correlation_data
    for name, value in cast("tuple[tuple[str, str], ...]", publish.user_properties):
        parts += b"\x26", _prefixed(name), _encoded(value)
    block = b"".join(parts)
    return _varint(len(block)) + block


def _prefixed(text: str) -> bytes:
    return _known(text) if len(text) <= 256 else _encoded(text)  # strangers choose Response Topics: see to memory


def _encoded(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


_known = lru_cache(maxsize=4096)(_encoded)  # the same topics, names and types again and again


def _varint(number: int) -> bytes:
    """A Variable Byte Integer [MQTT5 §1.5.5]."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
