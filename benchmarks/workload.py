"""What every benchmark sends: the topics and the payload. Standard library only, for every environment has it."""

from __future__ import annotations

TEMPLATE = "sensors/<device_id>/data"
FILTER = "sensors/+/data"

_HEAD = b'{"temperature":21.5,"humidity":48.2,"status":"ok","timestamp":'
_EPOCH = 10**14
_DIGITS = 15


def topic_of(number: int) -> str:
    return f"sensors/{number}/data"


def stamped(microseconds: int) -> bytes:
    """The payload, 78 bytes; `microseconds` (of a monotonic clock) take the place of the timestamp."""
    return b"%s%d}" % (_HEAD, _EPOCH + microseconds)


def stamp_of(sent: bytes | int) -> int:
    """The microseconds in a payload made by `stamped`, or in its timestamp."""
    return (int(sent[-_DIGITS - 1 : -1]) if isinstance(sent, bytes) else sent) - _EPOCH


def payload_of(size: int) -> bytes:
    """The payload, of `size` bytes: a longer `status` makes the difference."""
    filler = size - len(PAYLOAD)
    if filler < 0:
        raise ValueError(f"payload size is {size}, must be at least {len(PAYLOAD)} bytes")
    return PAYLOAD.replace(b'"ok"', b'"ok%s"' % (b"." * filler))


PAYLOAD = stamped(0)
