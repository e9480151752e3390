"""The first step of the receive path: bytes of any length in, whole MQTT packets out. No I/O.

A `Splitter` walks what a read has brought, in place, and calls back for each packet. It keeps only the packet that the
read has cut, so a stream gives the same packets however it is cut. Three things may be wrong with the bytes:

- A packet is not complete: it waits for the next read.
- A PUBLISH is *refused*: a whole packet, but no message for us. Its topic is not UTF-8, is empty or has a wildcard; its
  properties do not decode; its payload is over `max_payload`. It is reported with what an acknowledgement needs, and
  skipped: would it cost the connection, the broker would send it again, for ever. A payload that is too long is dropped
  while it comes in.
- The stream is *malformed*: nobody can tell where the next packet starts, or it is not MQTT from a server.
  `MalformedPacket` says why, and the connection is to be closed [MQTT-4.13.1-1].

Properties are decoded by `transport.properties` rather than by a codec's `read`, which wants the whole packet again, and
does not survive text that is not UTF-8. The same few blocks come again and again, so that most are one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from mqttapi.errors import BrokerError
from mqttapi.transport.decoded import Decoded
from mqttapi.transport.properties import TopicAliasUsed, decode_properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.message import Properties

    OnPublish = Callable[[str, bytes, int, bool, bool, int, Properties], object]
    """`(topic, payload, qos, retain, dup, packet_id, properties)`; the packet id of QoS 0 is 0."""
    OnAck = Callable[[int, int, int], object]
    """`(kind, packet_id, reason_code)`; kind is `PUBACK`, `PUBREC`, `PUBREL` or `PUBCOMP`."""
    OnOther = Callable[[int, bytes], object]
    """`(first_byte, body)`; the body is all that follows the remaining length."""

__all__ = ["PUBACK", "PUBCOMP", "PUBREC", "PUBREL", "MalformedPacket", "Refused", "Splitter", "decode_topic", "shown"]

PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x60
PUBCOMP: Final = 0x70

# The first bytes of packets that a server may send [MQTT5 §2.1.2, MQTT-2.1.3-1].
_PUBLISHES: Final = frozenset(range(0x30, 0x40))
_ACKS: Final = {0x40: PUBACK, 0x50: PUBREC, 0x62: PUBREL, 0x70: PUBCOMP}
_OTHERS: Final = frozenset((0x20, 0x90, 0xB0, 0xD0))  # CONNACK, SUBACK, UNSUBACK, PINGRESP
_OTHERS_OF_MQTT5: Final = frozenset((0xE0, 0xF0))  # DISCONNECT and AUTH


class MalformedPacket(BrokerError):
    """Raised when the broker's bytes are not MQTT, or more than a limit allows.

    `reason_code` is what a DISCONNECT should say: 0x81 malformed, 0x94 topic alias invalid, 0x95 packet too large.
    """

    def __init__(self, reason: str, *, reason_code: int = 0x81) -> None:
        super().__init__(f"the broker sent a malformed packet: {reason}")
        self.reason = reason
        self.reason_code = reason_code


@dataclass(frozen=True, slots=True)
class Refused:
    """A PUBLISH that is no message for us, to be counted and, with QoS 1 or 2, acknowledged."""

    topic: str
    """What was there, undecodable bytes as `\\xff`; escape it with `printable` for a log."""
    qos: int
    packet_id: int
    """0 for QoS 0."""
    size: int
    """Bytes of the payload."""
    reason: str
    """One line, without values from the payload."""


class _Missing(Exception):
    """The data has to reach up to `until` before more can be told."""

    def __init__(self, until: int) -> None:
        super().__init__(until)
        self.until = until


class _Head(NamedTuple):
    """What stands before the payload of a PUBLISH."""

    topic: bytes
    packet_id: int
    block: bytes
    """The properties."""
    end: int
    """Where the payload starts."""


class Splitter:
    """Takes the bytes of one connection and calls back for each packet, in order.

    A callback sets `paused` to stop behind its packet; `resume` goes on there. An exception of a callback comes out of
    `feed` or `resume`, and the packet counts as delivered.

    Args:
        mqtt5: Whether the connection speaks MQTT 5; else 3.1.1.
        max_payload: Bytes; a PUBLISH with a longer payload is refused, and its payload never held.
        max_packet: Bytes, the fixed header included; a longer packet is malformed. One of up to 129 bytes never is.
    """

    def __init__(
        self,
        *,
        mqtt5: bool,
        on_publish: OnPublish,
        on_refused: Callable[[Refused], object],
        on_ack: OnAck,
        on_other: OnOther,
        max_payload: int = 1 << 20,
        max_packet: int = 16 << 20,
    ) -> None:
        self.paused = False
        """Whether to stop behind the current packet; set it True at any time, and call `resume` to unset it."""
        self._mqtt5 = mqtt5
        self._from_server = _PUBLISHES | _ACKS.keys() | _OTHERS | (_OTHERS_OF_MQTT5 if mqtt5 else frozenset())
        self._on_publish = on_publish
        self._on_refused = on_refused
        self._on_ack = on_ack
        self._on_other = on_other
        self._max_payload = max_payload
        self._max_packet = max_packet
        self._topics = Decoded(decode_topic, 8192)
        self._blocks = Decoded(decode_properties, 2048)
        self._walking = False
        self._data = b""  # what is being walked, and where
        self._position = 0
        self._partial = bytearray()  # the beginning of a packet, and the size to wait for
        self._wanted = 0
        self._skipping = 0  # bytes still to come of a payload that is too long, and the packet it belongs to
        self._skipped: Refused | None = None

    def feed(self, data: bytes) -> None:
        """Walk what a read has brought. While `paused`, it is kept.

        Raises:
            MalformedPacket: The connection is of no more use.
        """
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        elif self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self._data = data
        self._position = 0
        if not self.paused:
            self._walk()

    def resume(self) -> None:
        """Go on behind the packet where `paused` was set; from within a callback, just do not stop.

        Raises:
            MalformedPacket: The connection is of no more use.
        """
        self.paused = False
        if not self._walking:
            self._walk()

    def _walk(self) -> None:
        """The hot loop: it handles the usual PUBLISH itself, and leaves everything else to others."""
        data, position = self._data, self._position
        end = len(data)
        mqtt5, max_payload, max_packet, on_publish = self._mqtt5, self._max_payload, self._max_packet, self._on_publish
        topics, blocks = self._topics.young, self._blocks.young
        block = b""
        self._walking = True
        try:
            if self._skipping:
                position = self._skip()
                if not self._skipping and self._skipped:
                    self._on_refused(self._skipped)
            while position + 1 < end and not self.paused:
                first = data[position]
                size = data[position + 1]
                body = position + 2
                if size >= 0x80:
                    if body < end and data[body] < 0x80:
                        size += (data[body] << 7) - 0x80
                        body += 1
                        if body + size - position > max_packet:
                            self._long_size(data, position)
                    else:
                        try:
                            size, body = self._long_size(data, position)
                        except _Missing:
                            break
                stop = body + size
                if stop > end:
                    break
                position = stop
                if not 0x30 <= first <= 0x3F:
                    self._other(first, data[body:stop])
                    continue
                if size < 4:
                    self._publish(first, body, stop)
                    continue
                topic_end = at = body + 2 + (data[body] << 8 | data[body + 1])
                qos = packet_id = 0
                if first & 0x06:
                    at += 2
                    qos = first >> 1 & 0x03
                    packet_id = data[topic_end] << 8 | data[topic_end + 1] if at < stop else 0
                    if qos == 3 or not packet_id:
                        self._publish(first, body, stop)
                        continue
                if mqtt5:
                    if at >= stop or data[at] >= 0x80:
                        self._publish(first, body, stop)
                        continue
                    before = at + 1
                    at = before + data[at]
                    block = data[before:at]
                if not 0 <= stop - at <= max_payload:
                    self._publish(first, body, stop)
                    continue
                topic = topics.get(data[body + 2 : topic_end])
                properties = blocks.get(block)
                if topic is None or properties is None:
                    self._deliver(first, data[body + 2 : topic_end], packet_id, block, data[at:stop])
                else:
                    on_publish(topic, data[at:stop], qos, first & 0x01 != 0, first & 0x08 != 0, packet_id, properties)
        finally:
            self._position = position
            self._walking = False
        if not self.paused:
            self._keep()

    def _publish(self, first: int, body: int, stop: int) -> None:
        """Deliver any PUBLISH that is complete, or refuse it, or find it malformed."""
        data = self._data
        head = self._head(data, first, body, stop)
        if stop - head.end > self._max_payload:
            self._on_refused(self._too_long(head, first, stop - head.end))
        else:
            self._deliver(first, head.topic, head.packet_id, head.block, data[head.end : stop])

    def _deliver(self, first: int, raw_topic: bytes, packet_id: int, block: bytes, payload: bytes) -> None:
        qos = first >> 1 & 0x03
        try:
            topic = self._topics[raw_topic]
            properties = self._blocks[block]
        except TopicAliasUsed as error:
            raise MalformedPacket(str(error), reason_code=0x94) from None
        except ValueError as error:
            self._on_refused(Refused(shown(raw_topic), qos, packet_id, len(payload), str(error)))
            return
        self._on_publish(topic, payload, qos, first & 0x01 != 0, first & 0x08 != 0, packet_id, properties)

    def _head(self, data: bytes, first: int, body: int, stop: int) -> _Head:
        """Take the beginning of a PUBLISH apart; raises `_Missing` when it is not all there."""
        qos = first >> 1 & 0x03
        if qos == 3:
            raise MalformedPacket("a PUBLISH of QoS 3 [MQTT-3.3.1-4]")
        end = body + 2
        if end > stop:
            raise MalformedPacket("a PUBLISH that ends before its topic")
        if end > len(data):
            raise _Missing(end)
        topic_end = end + (data[body] << 8 | data[body + 1])
        end = topic_end + (2 if qos else 0)
        if end > stop:
            raise MalformedPacket("a PUBLISH whose topic reaches beyond its end")
        if end > len(data):
            raise _Missing(end)
        packet_id = data[topic_end] << 8 | data[topic_end + 1] if qos else 0
        if qos and not packet_id:
            raise MalformedPacket("a PUBLISH with packet id 0 [MQTT-2.2.1-4]")
        block = b""
        if self._mqtt5:
            size, start = _variable_integer(data, end, stop)
            end = start + size
            if end > stop:
                raise MalformedPacket("a PUBLISH whose properties reach beyond its end")
            if end > len(data):
                raise _Missing(end)
            block = data[start:end]
        return _Head(data[body + 2 : topic_end], packet_id, block, end)

    def _other(self, first: int, body: bytes) -> None:
        """Deliver a packet that is no PUBLISH."""
        self._check(first)
        kind = _ACKS.get(first)
        if kind is None:
            self._on_other(first, body)
            return
        if len(body) < 2 or (len(body) > 2 and not self._mqtt5):
            raise MalformedPacket(f"an acknowledgement (0x{first:02X}) of {len(body)} bytes")
        packet_id = body[0] << 8 | body[1]
        if not packet_id:
            raise MalformedPacket(f"an acknowledgement (0x{first:02X}) of packet id 0")
        self._on_ack(kind, packet_id, body[2] if len(body) > 2 else 0)

    def _check(self, first: int) -> None:
        if first not in self._from_server:
            raise MalformedPacket(f"no server sends a packet that begins with 0x{first:02X}")

    def _long_size(self, data: bytes, position: int) -> tuple[int, int]:
        """A remaining length of more than one byte, and where the body begins."""
        size, body = _variable_integer(data, position + 1, position + 5)
        if body + size - position > self._max_packet:
            text = f"one of {body + size - position:,} bytes, over max_packet ({self._max_packet:,})"
            raise MalformedPacket(text, reason_code=0x95)
        return size, body

    def _keep(self) -> None:
        """Keep the packet that the data has cut, and know how much of it to wait for; not a payload too long, though."""
        data, position = self._data, self._position
        if position < len(data):
            self._check(data[position])
            self._wanted = self._extent(data, position) - position
            if not self._skipping:
                self._partial += data[position:]
        self._data, self._position = b"", 0

    def _extent(self, data: bytes, position: int) -> int:
        """Where the packet at `position` ends, or as much of it as more can be told from."""
        if position + 2 > len(data):
            return position + 2
        first, size, body = data[position], data[position + 1], position + 2
        try:
            if size >= 0x80:
                size, body = self._long_size(data, position)
            if size > self._max_payload and first in _PUBLISHES:
                head = self._head(data, first, body, body + size)
                payload_size = body + size - head.end
                if payload_size > self._max_payload:
                    self._skipped = self._too_long(head, first, payload_size)
                    self._skipping = body + size - len(data)
        except _Missing as missing:
            return missing.until
        return body + size

    def _skip(self) -> int:
        """Drop what has come of a payload that is too long; gives where the next packet starts."""
        position = min(self._skipping, len(self._data))
        self._skipping -= position
        return position

    def _too_long(self, head: _Head, first: int, size: int) -> Refused:
        reason = f"its payload of {size:,} bytes is over max_payload ({self._max_payload:,})"
        return Refused(shown(head.topic), first >> 1 & 0x03, head.packet_id, size, reason)


def _variable_integer(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A variable byte integer [MQTT5 §1.5.5] of a packet that reaches up to `stop`, and where it ends."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= stop:
            raise MalformedPacket("a length that reaches beyond the packet's end")
        if at >= len(data):
            raise _Missing(at + 1)
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise MalformedPacket("a length of more than four bytes [MQTT5 §1.5.5]")


def decode_topic(raw: bytes) -> str:
    """The topic of a PUBLISH; ValueError says why it is none."""
    try:
        topic = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("its topic is not UTF-8 [MQTT-1.5.4-1]") from None
    if not topic:
        raise ValueError("its topic is empty [MQTT-4.7.3-1]")
    if "+" in topic or "#" in topic:
        raise ValueError("its topic has a wildcard [MQTT-3.3.2-2]")
    if "\0" in topic:
        raise ValueError("its topic has a null character [MQTT-1.5.4-2]")
    return topic


def shown(topic: bytes) -> str:
    """A topic, whatever its bytes."""
    return topic.decode(errors="backslashreplace")
