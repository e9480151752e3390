"""What a broker sends to somebody who publishes: acknowledgements, cut anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from paho.mqtt.packettypes import PacketTypes

from mqttapi.transport.handshake import make_properties
from mqttapi.transport.packets import MalformedPacket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Answers"]

_PUBACK, _PUBREC, _PUBCOMP = 0x40, 0x50, 0x70  # first bytes
_MOST: Final = 128 * 1024  # bytes of a packet that is waited for: answers have a reason and a few properties at most
_ANSWERS: Final = frozenset((_PUBACK, _PUBREC, _PUBCOMP))


class Answers:
    """Walks the bytes of one connection.

    Args:
        acknowledged: Called with packet id, reason code and reason at the end of a publish, whether well or badly.
        received: Called with packet id and reason code where PUBREL is to follow.
        other: Called with the first byte and the body of any other packet.
    """

    __slots__ = ("_acknowledged", "_other", "_received", "_rest")

    def __init__(
        self,
        acknowledged: Callable[[int, int, str], None],
        received: Callable[[int, int], None],
        other: Callable[[int, bytes], None],
    ) -> None:
        self._acknowledged = acknowledged
        self._received = received
        self._other = other
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Walk what one read has brought, behind what it left of the one before.

        Raises:
            MalformedPacket: The connection is of no more use.
        """
        if self._rest:
            data = self._rest + data
        acknowledged = self._acknowledged
        position, end = 0, len(data)
        while end - position >= 2:
            first, size, body = data[position], data[position + 1], position + 2
            if size > 0x7F:
                size, body = _long_size(data, position)
            if body + size > end or not body:
                if size > _MOST:
                    raise MalformedPacket(f"one of {size:,} bytes, where only answers come", reason_code=0x95)
                break
            if first == _PUBACK and size == 2:
                acknowledged(data[body] << 8 | data[body + 1], 0, "")
            elif first in _ANSWERS and size >= 2:
                self._handle(first, data[body : body + size])
            else:
                self._other(first, data[body : body + size])
            position = body + size
        self._rest = data[position:]

    def _handle(self, kind: int, body: bytes) -> None:
        packet_id = body[0] << 8 | body[1]
        code = body[2] if len(body) > 2 else 0
        reason = _reason_string(body) if len(body) > 4 else ""
        if kind == _PUBREC and code < 0x80:
            self._received(packet_id, code)
        elif kind == _PUBCOMP:
            self._acknowledged(packet_id, 0, reason)
        else:
            self._acknowledged(packet_id, code, reason)


def _long_size(data: bytes, position: int) -> tuple[int, int]:
    """The size of the packet at `position`, from two to four bytes, and where its body begins; 0 when bytes are missing.

    The fourth byte ends it, whatever it says: brokers do not send packets of 256 MiB here.
    """
    size = 0
    for index, byte in enumerate(data[position + 1 : position + 5]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80 or index == 3:
            return size, position + index + 2
    return 0, 0


def _reason_string(body: bytes) -> str:
    properties = make_properties(PacketTypes.PUBACK)
    try:
        properties.unpack(body[3:])  # type: ignore[no-untyped-call]  # paho's are not typed
    except Exception:  # noqa: BLE001  the code alone will do
        return ""
    return str(getattr(properties, "ReasonString", ""))
