"""MQTT packets as they are on the wire, of version 5 and 3.1.1, also those that no codec would write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import mqtt5

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Packet", "PacketReader", "PacketType", "ack", "connack", "encode", "publish", "suback", "text", "unsuback"]

_T = TypeVar("_T")


class PacketType(IntEnum):
    """[MQTT5 §2.1.2]."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: its kind and flags (the first byte), and all bytes behind the length."""

    kind: PacketType
    flags: int
    body: bytes
    version: int = 5
    """5 or 4 (MQTT 3.1.1), as the CONNECT of the connection said."""

    @property
    def raw(self) -> bytes:
        """The packet as it was on the wire, but for a length written with needless bytes."""
        return encode(self.kind, self.flags, self.body)

    @property
    def qos(self) -> int:
        return (self.flags >> 1) & 3

    @property
    def retain(self) -> bool:
        return bool(self.flags & 1)

    @property
    def dup(self) -> bool:
        return bool(self.flags & 8)

    @property
    def packet_id(self) -> int:
        """0 where the packet has none."""
        if self.kind is PacketType.PUBLISH:
            start = 2 + int.from_bytes(self.body[:2])
            return int.from_bytes(self.body[start : start + 2]) if self.qos else 0
        has_id = PacketType.PUBACK <= self.kind <= PacketType.UNSUBACK
        return int.from_bytes(self.body[:2]) if has_id else 0

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH."""
        return self.body[2 : 2 + int.from_bytes(self.body[:2])].decode()

    @property
    def reason_code(self) -> int:
        """The (first) reason code of an acknowledgement or a DISCONNECT; 0 where there is none."""
        match self.kind:
            case PacketType.SUBACK | PacketType.UNSUBACK:
                return (self.reason_codes or [0])[0]
            case PacketType.CONNACK:
                return self.body[1]
            case PacketType.DISCONNECT | PacketType.AUTH:
                return self.body[0] if self.body else 0
            case _:
                return self.body[2] if len(self.body) > 2 else 0

    @property
    def reason_codes(self) -> list[int]:
        """The codes of a SUBACK or UNSUBACK, one for each filter; none in an UNSUBACK of 3.1.1."""
        return list(self.body[2:] if self.version == 4 else self.body[2 + _properties_length(self.body[2:]) :])

    def decode(self, expected: type[_T]) -> _T:
        """The packet as an object of the `mqtt5` package; 3.1.1 is read as version 5 without properties."""
        packet, _ = mqtt5.read(memoryview(self.raw if self.version == 5 else self._as_version_5()))
        assert isinstance(packet, expected), f"{self.kind.name} is not a {expected.__name__}"
        return packet

    @property
    def connect(self) -> mqtt5.ConnectPacket:
        return self.decode(mqtt5.ConnectPacket)

    @property
    def connack(self) -> mqtt5.ConnAckPacket:
        return self.decode(mqtt5.ConnAckPacket)

    @property
    def publish(self) -> mqtt5.PublishPacket:
        return self.decode(mqtt5.PublishPacket)

    @property
    def payload(self) -> bytes:
        """The payload of a PUBLISH."""
        return self.publish.payload

    @property
    def subscribe(self) -> mqtt5.SubscribePacket:
        return self.decode(mqtt5.SubscribePacket)

    @property
    def filters(self) -> list[str]:
        """The filters of a SUBSCRIBE or UNSUBSCRIBE."""
        if self.kind is PacketType.SUBSCRIBE:
            return [each.pattern for each in self.subscribe.topic_filters]
        return self.decode(mqtt5.UnsubscribePacket).patterns

    def _as_version_5(self) -> bytes:
        body = self.body
        match self.kind:
            case PacketType.CONNECT:
                body = body[:6] + b"\x05" + body[7:10] + b"\x00" + self._with_will_properties(body[10:], body[7])
            case PacketType.PUBLISH:
                end = 2 + int.from_bytes(body[:2]) + (2 if self.qos else 0)
                body = body[:end] + b"\x00" + body[end:]
            case PacketType.CONNACK | PacketType.SUBSCRIBE | PacketType.UNSUBSCRIBE | PacketType.SUBACK:
                body = body[:2] + b"\x00" + body[2:]
            case _:
                pass
        return encode(self.kind, self.flags, body)

    @staticmethod
    def _with_will_properties(rest: bytes, flags: int) -> bytes:
        if not flags & 4:
            return rest
        end = 2 + int.from_bytes(rest[:2])  # of the client id
        return rest[:end] + b"\x00" + rest[end:]

    def __repr__(self) -> str:
        return f"<{self.kind.name} flags={self.flags:04b} {self.body[:60]!r}>"


class PacketReader:
    """Cuts a stream of bytes into packets."""

    def __init__(self, version: int = 5) -> None:
        self.version = version
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that `data` completes."""
        self._buffer += data
        packets = []
        while (packet := self._next()) is not None:
            packets.append(packet)
        return packets

    def _next(self) -> Packet | None:
        buffer = self._buffer
        length = 0
        for position in range(1, 5):
            if len(buffer) <= position:
                return None
            byte = buffer[position]
            length |= (byte & 0x7F) << 7 * (position - 1)
            if byte < 0x80:
                break
        else:
            raise AssertionError(f"a length of more than four bytes: {bytes(buffer[:6])!r}")
        start, end = position + 1, position + 1 + length
        if len(buffer) < end:
            return None
        kind, flags, body = PacketType(buffer[0] >> 4), buffer[0] & 0x0F, bytes(buffer[start:end])
        del buffer[:end]
        if kind is PacketType.CONNECT:
            self.version = body[6]
        return Packet(kind, flags, body, self.version)


def encode(kind: PacketType, flags: int, body: bytes) -> bytes:
    """Any packet, right or wrong."""
    return bytes([kind << 4 | flags]) + _variable_length(len(body)) + body


def text(value: str | bytes) -> bytes:
    """A length and the text; bytes are taken as they are, UTF-8 or not."""
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def connack(code: int = 0, *, session_present: bool = False, version: int = 5, properties: bytes = b"") -> bytes:
    """A CONNACK; `properties` are encoded ones (`mqtt5.ConnAckPacket(...).write()` writes whole packets)."""
    return encode(PacketType.CONNACK, 0, bytes([session_present, code]) + _properties(version, properties))


def publish(
    topic: str | bytes,
    payload: bytes = b"",
    *,
    qos: int = 0,
    packet_id: int = 0,
    retain: bool = False,
    dup: bool = False,
    version: int = 5,
    subscription_ids: Sequence[int] = (),
    properties: bytes = b"",
) -> bytes:
    """A PUBLISH; the topic may be anything, and `properties` are encoded ones."""
    for number in subscription_ids:
        properties += b"\x0b" + _variable_length(number)
    head = text(topic) + (packet_id.to_bytes(2) if qos else b"") + _properties(version, properties)
    return encode(PacketType.PUBLISH, dup << 3 | qos << 1 | retain, head + payload)


def ack(kind: PacketType, packet_id: int, code: int = 0, *, version: int = 5) -> bytes:
    """A PUBACK, PUBREC, PUBREL or PUBCOMP."""
    flags = 2 if kind is PacketType.PUBREL else 0
    return encode(kind, flags, packet_id.to_bytes(2) + (bytes([code]) if code and version == 5 else b""))


def suback(packet_id: int, codes: Sequence[int], *, version: int = 5) -> bytes:
    return encode(PacketType.SUBACK, 0, packet_id.to_bytes(2) + _properties(version) + bytes(codes))


def unsuback(packet_id: int, codes: Sequence[int], *, version: int = 5) -> bytes:
    return encode(
        PacketType.UNSUBACK, 0, packet_id.to_bytes(2) + (_properties(version) + bytes(codes) if version == 5 else b"")
    )


def _properties(version: int, encoded: bytes = b"") -> bytes:
    return _variable_length(len(encoded)) + encoded if version == 5 else b""


def _variable_length(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | 0x80 if number else low)
        if not number:
            return bytes(out)


def _properties_length(data: bytes) -> int:
    """The bytes that the properties take, with their own length."""
    length = 0
    for position, byte in enumerate(data):
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return position + 1 + length
    return 0
