"""The properties of an MQTT 5 PUBLISH [MQTT5 §3.3.2.3]."""

from __future__ import annotations

from typing import Final

from mqttapi.message import NO_PROPERTIES, HeavyProperties, Properties

__all__ = ["TopicAliasUsed", "decode_properties"]

LIGHT: Final = 64
"""Bytes on the wire up to which properties count for nothing among the bytes that are held."""


class TopicAliasUsed(ValueError):
    """Raised when a PUBLISH has a topic alias: none was allowed, so its topic cannot be known [MQTT-3.3.2-9]."""


def decode_properties(block: bytes) -> Properties:
    """Decode what follows the length of the properties.

    Raises:
        ValueError: The block is malformed; the text says how, without values from it.
        TopicAliasUsed: It has a topic alias.
    """
    if not block:
        return NO_PROPERTIES
    try:
        properties = _decode(block)
        return properties if len(block) <= LIGHT else HeavyProperties.of(properties)
    except UnicodeDecodeError:
        raise ValueError("its properties have text that is not UTF-8 [MQTT-1.5.4-1]") from None
    except IndexError:
        raise ValueError("its properties end in the middle of one") from None


def _decode(block: bytes) -> Properties:
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    expiry: int | None = None
    format_indicator: int | None = None
    users: list[tuple[str, str]] = []
    ids: list[int] = []
    at, end = 0, len(block)
    while at < end:
        kind = block[at]
        if kind == 0x26:
            middle = at + 3 + (block[at + 1] << 8 | block[at + 2])
            stop = middle + 2 + (block[middle] << 8 | block[middle + 1])
            users.append((block[at + 3 : middle].decode(), block[middle + 2 : stop].decode()))
        elif kind == 0x0B:
            number, stop = _subscription_id(block, at + 1)
            ids.append(number)
        elif kind == 0x03 and content_type is None:
            stop = at + 3 + (block[at + 1] << 8 | block[at + 2])
            content_type = block[at + 3 : stop].decode()
        elif kind == 0x08 and response_topic is None:
            stop = at + 3 + (block[at + 1] << 8 | block[at + 2])
            response_topic = block[at + 3 : stop].decode()
        elif kind == 0x09 and correlation_data is None:
            stop = at + 3 + (block[at + 1] << 8 | block[at + 2])
            correlation_data = block[at + 3 : stop]
        elif kind == 0x02 and expiry is None:
            stop = at + 5
            expiry = int.from_bytes(block[at + 1 : stop], "big")
        elif kind == 0x01 and format_indicator is None:
            stop = at + 2
            format_indicator = block[at + 1]
        else:
            raise _unexpected(kind)
        at = stop
    if at > end:
        raise IndexError(at)
    if format_indicator is not None and format_indicator > 1:
        raise ValueError("its payload format indicator is neither 0 nor 1 [MQTT5 §3.3.2.3.2]")
    return Properties(
        content_type,
        response_topic,
        correlation_data,
        tuple(users),
        expiry,
        format_indicator or 0,
        tuple(ids),
    )


def _unexpected(kind: int) -> ValueError:
    if kind == 0x23:
        return TopicAliasUsed("a PUBLISH with a topic alias, though none was allowed [MQTT-3.3.2-9]")
    if kind in {0x01, 0x02, 0x03, 0x08, 0x09}:
        return ValueError(f"its properties have one twice (0x{kind:02X}) [MQTT5 §3.3.2.3]")
    return ValueError(f"its properties have one that a PUBLISH has not (0x{kind:02X}) [MQTT5 §2.2.2.2]")


def _subscription_id(block: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer of 1 to 268,435,455, and where it ends."""
    value = 0
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not value:
                break
            return value, at
    raise ValueError("its subscription identifier is not 1 to 268,435,455 [MQTT5 §3.3.2.3.8]")
