"""The properties of an MQTT 5 PUBLISH [MQTT5 §3.3.2.3]."""

from __future__ import annotations

from typing import Any, Final

from mqttapi.message import NO_PROPERTIES, Properties

__all__ = ["TopicAliasUsed", "decode_properties"]

# By identifier; those that may be repeated (0x0B, 0x26) and the topic alias (0x23) are handled by themselves.
_NUMBERS: Final = {0x01: ("payload_format_indicator", 1), 0x02: ("message_expiry_interval", 4)}
_TEXTS: Final = {0x03: "content_type", 0x08: "response_topic"}
_BINARIES: Final = {0x09: "correlation_data"}


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
        return _decode(block)
    except UnicodeDecodeError:
        raise ValueError("its properties have text that is not UTF-8 [MQTT-1.5.4-1]") from None
    except IndexError:
        raise ValueError("its properties end in the middle of one") from None


def _decode(block: bytes) -> Properties:
    found: dict[str, Any] = {}
    users: list[tuple[str, str]] = []
    ids: list[int] = []
    at, end = 0, len(block)
    while at < end:
        kind = block[at]
        at += 1
        if kind == 0x0B:
            number, at = _subscription_id(block, at)
            ids.append(number)
            continue
        if kind == 0x26:
            middle = at + 2 + (block[at] << 8 | block[at + 1])
            stop = middle + 2 + (block[middle] << 8 | block[middle + 1])
            users.append((block[at + 2 : middle].decode(), block[middle + 2 : stop].decode()))
            at = stop
            continue
        value: object
        if kind in _NUMBERS:
            name, size = _NUMBERS[kind]
            value = int.from_bytes(block[at : at + size], "big")
            at += size
        elif kind in _TEXTS or kind in _BINARIES:
            stop = at + 2 + (block[at] << 8 | block[at + 1])
            raw = block[at + 2 : stop]
            name, value = (_TEXTS[kind], raw.decode()) if kind in _TEXTS else (_BINARIES[kind], raw)
            at = stop
        elif kind == 0x23:
            raise TopicAliasUsed("a PUBLISH with a topic alias, though none was allowed [MQTT-3.3.2-9]")
        else:
            raise ValueError(f"its properties have one that a PUBLISH has not (0x{kind:02X}) [MQTT5 §2.2.2.2]")
        if name in found:
            raise ValueError(f"its properties have {name} twice [MQTT5 §3.3.2.3]")
        found[name] = value
    if at > end:
        raise IndexError(at)
    if found.get("payload_format_indicator", 0) > 1:
        raise ValueError("its payload_format_indicator is neither 0 nor 1 [MQTT5 §3.3.2.3.2]")
    return Properties(user_properties=tuple(users), subscription_ids=tuple(ids), **found)


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
