"""Streams of bytes from servers, right and wrong, and a naive reader to compare a `Splitter` with."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from mqttapi.runtime.ledger import Entry, Ledger
from mqttapi.transport.packets import MalformedPacket, Refused, Splitter
from mqttapi.transport.properties import TopicAliasUsed, decode_properties

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Item", "Seen", "fuzz", "packet", "publish", "random_packet", "reference", "split", "text", "variable"]

MAX_PAYLOAD = 300
MAX_PACKET = 2000

Item = tuple[Any, ...]
"""What a callback got, with its name in front; the last one is `("malformed",)` when the stream was."""


def variable(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + variable(len(body)) + body


def publish(
    topic: str | bytes,
    payload: bytes = b"",
    *,
    flags: int = 0,
    packet_id: int = 1,
    block: bytes = b"",
    mqtt5: bool = True,
) -> bytes:
    """A PUBLISH with `flags` (DUP 8, QoS 2 and 4, RETAIN 1) and a block of encoded properties."""
    body = text(topic)
    if flags & 6:
        body += packet_id.to_bytes(2, "big")
    if mqtt5:
        body += variable(len(block)) + block
    return packet(0x30 | flags, body + payload)


class Seen:
    """A splitter and all that it called back with."""

    def __init__(
        self,
        *,
        mqtt5: bool = True,
        max_payload: int = MAX_PAYLOAD,
        max_packet: int = MAX_PACKET,
        pause_every: int = 0,
    ) -> None:
        self.items: list[Item] = []
        self.pause_every = pause_every
        self.splitter = Splitter(
            mqtt5=mqtt5,
            on_publish=lambda *arguments: self._note("publish", *arguments),
            on_refused=self._note_refused,
            on_ack=lambda *arguments: self._note("ack", *arguments),
            on_other=lambda *arguments: self._note("other", *arguments),
            max_payload=max_payload,
            max_packet=max_packet,
        )

    def _note(self, *item: object) -> None:
        self.items.append(item)
        if self.pause_every and len(self.items) % self.pause_every == 0:
            self.splitter.paused = True

    def _note_refused(self, refused: Refused) -> None:
        self._note("refused", refused.qos, refused.packet_id, refused.size)

    def feed(self, *chunks: bytes) -> list[Item]:
        """Everything so far, `chunks` included; nothing may come out but `MalformedPacket`."""
        try:
            for chunk in chunks:
                self.splitter.feed(chunk)
                while self.splitter.paused:
                    self.splitter.resume()
        except MalformedPacket:
            self.items.append(("malformed",))
        return self.items


def split(chunks: Iterable[bytes], *, mqtt5: bool = True, pause_every: int = 0) -> list[Item]:
    return Seen(mqtt5=mqtt5, pause_every=pause_every).feed(*chunks)


# ---------------------------------------------------------------------------------------------------- a naive reader


class _Wrong(Exception):
    pass


def reference(stream: bytes, *, mqtt5: bool = True) -> tuple[list[Item], bytes]:
    """What a splitter must see of the whole packets of `stream`, and the bytes behind them."""
    items: list[Item] = []
    try:
        while True:
            size = shift = 0
            for at in range(1, 5):
                if at >= len(stream):
                    return items, stream
                size |= (stream[at] & 0x7F) << shift
                shift += 7
                if stream[at] < 0x80:
                    break
            else:
                raise _Wrong
            if at + 1 + size > MAX_PACKET:
                raise _Wrong
            if len(stream) < at + 1 + size:
                return items, stream
            first, body, stream = stream[0], stream[at + 1 : at + 1 + size], stream[at + 1 + size :]
            items.append(_item(first, body, mqtt5))
    except _Wrong:
        return [*items, ("malformed",)], b""


def _item(first: int, body: bytes, mqtt5: bool) -> Item:
    kind, flags = first >> 4, first & 0x0F
    if kind == 3:
        return _publish_item(flags, body, mqtt5)
    if flags != (2 if kind == 6 else 0) or kind not in ({2, 4, 5, 6, 7, 9, 11, 13} | ({14, 15} if mqtt5 else set())):
        raise _Wrong
    if kind not in {4, 5, 6, 7}:
        return ("other", first, body)
    packet_id = int.from_bytes(body[:2], "big")
    if len(body) < 2 or not packet_id or (len(body) > 2 and not mqtt5):
        raise _Wrong
    return ("ack", kind << 4, packet_id, body[2] if len(body) > 2 else 0)


def _publish_item(flags: int, body: bytes, mqtt5: bool) -> Item:
    def take(size: int) -> bytes:
        nonlocal body
        if size > len(body):
            raise _Wrong
        taken, body = body[:size], body[size:]
        return taken

    qos = flags >> 1 & 3
    if qos == 3:
        raise _Wrong
    topic = take(int.from_bytes(take(2), "big"))
    packet_id = int.from_bytes(take(2), "big") if qos else 0
    if qos and not packet_id:
        raise _Wrong
    size = 0
    for place in range(4 if mqtt5 else 0):
        (byte,) = take(1)
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    else:
        if mqtt5:
            raise _Wrong
    block = take(size)
    try:
        if len(body) > MAX_PAYLOAD:
            raise ValueError
        name = topic.decode()
        if not name or set(name) & set("+#\0"):
            raise ValueError
        properties = decode_properties(block)
    except TopicAliasUsed:
        raise _Wrong from None
    except ValueError:
        return ("refused", qos, packet_id, len(body))
    return ("publish", name, body, qos, bool(flags & 1), bool(flags & 8), packet_id, properties)


# ------------------------------------------------------------------------------------------------------------- fuzz

_TOPICS = ("a", "plant/7/temperature", "ü/é", "a/" * 40, b"\xff\xfe", "", "a/+", "#", b"\xc0\xaf", "nul\0")
_BLOCKS = (
    b"",
    b"\x0b\x05",
    b"\x0b\xff\xff\xff\x7f\x0b\x01",
    b"\x03" + text("application/json") + b"\x26" + text("k") + text("v"),
    b"\x01\x01\x02\x00\x00\x00\x0a\x08" + text("r/1") + b"\x09" + text(b"\x00\xff"),
    b"\x26" + text("k") + text("v" * 150),
    b"\x26" + text(b"\xff") + text("v"),
    b"\x0b\x00",
    b"\x99",
    b"\x03\x00",
)


def random_packet(rng: random.Random, *, mqtt5: bool) -> bytes:
    """Mostly what a broker sends; some of it refused, none of it malformed."""
    kind = rng.random()
    if kind < 0.7:
        usual = rng.random() < 0.8
        return publish(
            rng.choice(_TOPICS[:4] if usual else _TOPICS),
            rng.randbytes(rng.choice((0, 1, 20, 100, 200, MAX_PAYLOAD, MAX_PAYLOAD + 1, 900))),
            flags=rng.choice((0, 1, 2, 3, 4, 5, 10, 12)),
            packet_id=rng.randint(1, 50),
            block=rng.choice(_BLOCKS[:4] if usual else _BLOCKS) if mqtt5 else b"",
            mqtt5=mqtt5,
        )
    if kind < 0.9:
        reason = rng.choice((b"", b"\x00", b"\x92\x00")) if mqtt5 else b""
        return packet(rng.choice((0x40, 0x50, 0x62, 0x70)), rng.randint(1, 50).to_bytes(2, "big") + reason)
    return packet(rng.choice((0x20, 0x90, 0xB0, 0xD0)), rng.randbytes(rng.choice((0, 2, 130))))


def _damaged(rng: random.Random, packets: list[bytes]) -> bytes:
    """Flip, cut out, repeat and insert bytes of a stream."""
    stream = bytearray(b"".join(packets))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(stream) + 1)
        match rng.randrange(4):
            case 0 if at < len(stream):
                stream[at] ^= 1 << rng.randrange(8)
            case 1:
                del stream[at : at + rng.randrange(1, 40)]
            case 2:
                stream[at:at] = stream[at : at + rng.randrange(1, 40)]
            case _:
                stream[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(stream)


def _chunks(rng: random.Random, stream: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((0, 1, 3, 20))))
    return [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def fuzz(packets: int, seed: int) -> dict[str, int]:
    """Have splitters and ledgers see `packets` packets of damaged streams; gives how many of each kind there were.

    Raises:
        AssertionError: A splitter saw something else than the naive reader, or an acknowledgement was wrong.
    """
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    seen = 0
    while seen < packets:
        mqtt5 = rng.random() < 0.7
        batch = [random_packet(rng, mqtt5=mqtt5) for _ in range(rng.randrange(1, 40))]
        stream = _damaged(rng, batch)
        items = split(_chunks(rng, stream), mqtt5=mqtt5, pause_every=rng.choice((0, 0, 1, 3)))
        expected, rest = reference(stream, mqtt5=mqtt5)
        if rest and items[-1:] == [("malformed",)]:  # the beginning of the last packet may tell
            expected.append(("malformed",))
        seen += len(items)
        assert items == expected, (seed, stream, items, expected)
        _check_acknowledgements(rng, items, mqtt5=mqtt5)
        for name, *_ in items:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _check_acknowledgements(rng: random.Random, items: list[Item], *, mqtt5: bool) -> None:
    """Each PUBACK and PUBREC is for a message that came, once, and all that came are acknowledged."""
    ledger = Ledger()
    ledger.connected(session_present=False, mqtt5=mqtt5)
    due: dict[tuple[int, int], str] = {}
    running: list[Entry] = []

    def flush() -> None:
        taken = ledger.take()
        while taken:
            qos = {0x40: 1, 0x50: 2}.get(taken[0])
            if qos:
                del due[qos, int.from_bytes(taken[2:4], "big")]
            taken = taken[2 + taken[1] :]

    for name, *arguments in items:
        if name == "publish" and arguments[2]:
            topic, payload, qos, _, dup, packet_id, _ = arguments
        elif name == "refused" and arguments[0]:
            topic, payload, dup = "", b"", False
            qos, packet_id, _ = arguments
        elif name == "ack" and arguments[0] == 0x60:
            ledger.release(arguments[1])
            if due.get((2, arguments[1])) == "repeat":
                del due[2, arguments[1]]
            continue
        else:
            continue
        entry = ledger.arrive(packet_id, qos, topic, payload, dup)
        if entry:
            running.append(entry)
            due[qos, packet_id] = "run"
        else:
            due.setdefault((qos, packet_id), "repeat")
        while running and rng.random() < 0.6:
            ledger.finish(running.pop(rng.randrange(len(running))))
        if rng.random() < 0.3:
            flush()
    for entry in running:
        ledger.finish(entry)
    flush()
    assert not due
    assert (ledger.held, ledger.held_bytes) == (0, 0)
