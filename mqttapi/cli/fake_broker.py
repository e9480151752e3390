"""A broker that is never the bottleneck: it sends PUBLISH packets that were encoded beforehand, and counts what comes.

The first client that subscribes to a topic of the plan gets `warmup` messages, and `messages` more; whoever publishes
is acknowledged and counted. It prints its port on the first line; then JSON objects, one a line: when the warm-up is
over, and what was sent or counted when a connection with traffic ends.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from typing import NoReturn

from mqttapi.topics import TopicTree

__all__ = ["Plan", "count_acks", "listen", "text", "varint"]

CONNECT, PUBLISH, PUBACK, PUBREL, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 6, 8, 10, 12, 14
PINGRESP = b"\xd0\x00"
PACKET_IDS = 65_535
PRE_ENCODED_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a subscriber gets.

    Attributes:
        topics: Each in turn.
        window: QoS 1 messages in flight, lowered to the client's Receive Maximum unless `flood`.
        pause: Seconds of silence that end the client's subscribing.
        properties: Whether MQTT 5 messages have a content type and two user properties.
    """

    topics: Sequence[str]
    payload: bytes
    messages: int = 100_000
    warmup: int = 1_000
    qos: int = 0
    window: int = 1_000
    flood: bool = False
    pause: float = 0.3
    properties: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "payload": base64.b64encode(self.payload).decode()})

    @classmethod
    def from_json(cls, line: str) -> Plan:
        given = json.loads(line)
        return cls(**{**given, "payload": base64.b64decode(given["payload"])})


@dataclass(slots=True)
class Client:
    """What CONNECT and SUBSCRIBE said."""

    v5: bool = False
    receive_maximum: int = PACKET_IDS
    subscriptions: TopicTree[int | None] = field(default_factory=TopicTree)
    """The identifiers by their filters; None: without one."""


# ---------------------------------------------------------------------------------------------------------- encoding


def varint(number: int) -> bytes:
    """A Variable Byte Integer (§1.5.5)."""
    out = bytearray()
    while True:
        number, digit = divmod(number, 128)
        out.append(digit | 0x80 if number else digit)
        if not number:
            return bytes(out)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def publish_properties(plan: Plan, client: Client, topic: str) -> bytes:
    if not client.v5:
        return b""
    body = b""
    if plan.properties:
        body += b"\x03" + text("application/json")
        body += b"\x26" + text("tenant") + text("north") + b"\x26" + text("trace") + text("4bf92f3577b34da6")
    body += b"".join(b"\x0b" + varint(number) for number in client.subscriptions.match(topic) if number is not None)
    return varint(len(body)) + body


class Stream:
    """An endless cycle of PUBLISH packets; `slice` gives the bytes of some of them without encoding anything."""

    def __init__(self, plan: Plan, client: Client, topics: Sequence[str]) -> None:
        self._payload = plan.payload
        self._length = len(topics) * max(1, PACKET_IDS // len(topics)) if plan.qos else len(topics)
        self._small = self._length * (len(plan.payload) + 64) < PRE_ENCODED_BYTES
        rounds = -(-self._length // PACKET_IDS)
        self.ids = -(-self._length // rounds)
        ends = [(text(topic), publish_properties(plan, client, topic)) for topic in topics]
        heads = [self._head(index, plan, *ends[index % len(ends)]) for index in range(self._length)]
        if self._small:
            packets = [head + plan.payload for head in heads]
            self._ends = [0, *accumulate(map(len, packets))]
            self._buffer = memoryview(b"".join(packets))
        else:
            self._heads = heads

    def _head(self, index: int, plan: Plan, topic: bytes, properties: bytes) -> bytes:
        packet_id = struct.pack("!H", index % self.ids + 1) if plan.qos else b""
        variable = topic + packet_id + properties
        return bytes((PUBLISH << 4 | plan.qos << 1,)) + varint(len(variable) + len(plan.payload)) + variable

    def slice(self, start: int, count: int) -> tuple[int, memoryview]:
        """Up to `count` packets from the position `start`: how many they are, and their bytes."""
        first = start % self._length
        if self._small:
            last = min(first + count, self._length, first + 2_000)
            return last - first, self._buffer[self._ends[first] : self._ends[last]]
        last = min(first + count, self._length, first + max(1, CHUNK_BYTES // len(self._payload)))
        return last - first, memoryview(b"".join(head + self._payload for head in self._heads[first:last]))


# ---------------------------------------------------------------------------------------------------------- decoding


def split(data: bytes | bytearray) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole packets in `data` as (first byte, body), and the rest."""
    packets: list[tuple[int, bytes]] = []
    position, end = 0, len(data)
    while end - position >= 2:
        length = shift = 0
        cursor = position + 1
        while cursor < end:
            digit = data[cursor]
            length |= (digit & 0x7F) << shift
            shift += 7
            cursor += 1
            if digit < 0x80:
                break
        else:
            break
        if cursor + length > end:
            break
        packets.append((data[position], bytes(data[cursor : cursor + length])))
        position = cursor + length
    return packets, bytes(data[position:])


def read_varint(body: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        digit = body[position]
        number |= (digit & 0x7F) << shift
        position += 1
        shift += 7
        if digit < 0x80:
            return number, position


_FIXED = {0x11: 4, 0x21: 2, 0x27: 4, 0x22: 2, 0x19: 1, 0x17: 1}


def read_properties(body: bytes, position: int) -> tuple[dict[int, int], int]:
    """The numeric properties of a CONNECT or SUBSCRIBE, and where they end."""
    length, position = read_varint(body, position)
    end = position + length
    found: dict[int, int] = {}
    while position < end:
        identifier = body[position]
        position += 1
        if identifier == 0x0B:
            found[identifier], position = read_varint(body, position)
        elif identifier in _FIXED:
            size = _FIXED[identifier]
            found[identifier] = int.from_bytes(body[position : position + size], "big")
            position += size
        else:  # a string, a binary, or a pair of strings
            for _ in range(2 if identifier == 0x26 else 1):
                position += 2 + int.from_bytes(body[position : position + 2], "big")
    return found, end


def count_acks(data: bytes) -> tuple[int, bool, bytes]:
    """How many PUBACKs are in `data`, whether a PINGREQ is, and the bytes of a packet that is not whole yet."""
    count, odd = divmod(len(data), 4)
    if not odd and data[::4] == b"\x40" * count and data[1::4] == b"\x02" * count:
        return count, False, b""
    packets, rest = split(data)
    kinds = [first >> 4 for first, _ in packets]
    return kinds.count(PUBACK), PINGREQ in kinds, rest


# ------------------------------------------------------------------------------------------------------- connections


class Connection:
    """One client, in a thread of its own.

    Args:
        begin: Called before the warm-up and before what is measured: it waits.
        claim: Whether this client is the one that the messages are for; it has subscribed to their topics.
    """

    def __init__(
        self, sock: socket.socket, plan: Plan, *, begin: Callable[[], object], claim: Callable[[], bool]
    ) -> None:
        self._sock = sock
        self._plan = plan
        self._begin = begin
        self._claim = claim
        self._client = Client()
        self._received = 0

    def serve(self) -> None:
        """Serve until the client goes."""
        rest = b""
        began: float | None = None
        subscribing = False
        while True:
            if subscribing and not select.select([self._sock], [], [], self._plan.pause)[0]:
                subscribing = False
                topics = [topic for topic in self._plan.topics if self._client.subscriptions.match(topic)]
                if topics and self._claim():
                    self._blast(topics)
            data = self._read()
            if not data:
                break
            packets, rest = split(rest + data)
            answers = b"".join(self._answer(first, body) for first, body in packets)
            subscribing |= any(first >> 4 == SUBSCRIBE for first, _ in packets)
            if self._received and began is None:
                began = time.perf_counter()
            if answers:
                self._sock.sendall(answers)
        if began is not None:
            _say({"received": self._received, "seconds": time.perf_counter() - began})

    def _read(self) -> bytes:
        try:
            return self._sock.recv(CHUNK_BYTES)
        except OSError:
            return b""

    def _answer(self, first: int, body: bytes) -> bytes:
        kind = first >> 4
        if kind == CONNECT:
            return self._connack(body)
        if kind in {SUBSCRIBE, UNSUBSCRIBE}:
            return self._suback(kind, body)
        if kind == PUBLISH:
            self._received += 1
            end = 2 + (body[0] << 8) + body[1]
            answer = {2: b"\x40\x02", 4: b"\x50\x02"}.get(first & 0x06)
            return answer + body[end : end + 2] if answer else b""
        if kind == PUBREL:
            return b"\x70\x02" + body[:2]
        return PINGRESP if kind == PINGREQ else b""

    def _connack(self, body: bytes) -> bytes:
        client = self._client
        client.v5 = body[6] == 5
        if not client.v5:
            return b"\x20\x02\x00\x00"
        properties, end = read_properties(body, 10)
        client.receive_maximum = properties.get(0x21, PACKET_IDS)
        assigned = b"" if body[end : end + 2] != b"\x00\x00" else b"\x12" + text(f"assigned-{id(self)}")
        return b"\x20" + varint(3 + len(assigned)) + b"\x00\x00" + varint(len(assigned)) + assigned

    def _suback(self, kind: int, body: bytes) -> bytes:
        client, position, number = self._client, 2, None
        if client.v5:
            properties, position = read_properties(body, position)
            number = properties.get(0x0B)
        codes = bytearray()
        while position < len(body):
            start, position = position + 2, position + 2 + int.from_bytes(body[position : position + 2], "big")
            if kind == SUBSCRIBE:
                client.subscriptions.add(body[start:position].decode(), number)
                codes.append(body[position] & 0x03)
                position += 1
            elif client.v5:
                codes.append(0)
        variable = body[:2] + b"\x00" * client.v5 + codes
        return bytes((0x90 if kind == SUBSCRIBE else 0xB0,)) + varint(len(variable)) + variable

    def _blast(self, topics: Sequence[str]) -> None:
        plan = self._plan
        stream = Stream(plan, self._client, topics)
        if plan.flood or not plan.qos:
            window = stream.ids
        else:
            window = min(plan.window, self._client.receive_maximum, stream.ids)
        self._sock.setblocking(False)
        self._begin()
        sent, acked = self._send(stream, 0, plan.warmup, window)
        _say({"sent": sent, "acked": acked})
        self._begin()
        began, cpu = time.perf_counter(), time.process_time()
        more, more_acked = self._send(stream, sent, plan.messages, window)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        self._sock.setblocking(True)
        _say({"sent": more, "acked": more_acked, "seconds": seconds, "cpu": cpu})

    def _send(self, stream: Stream, start: int, count: int, window: int) -> tuple[int, int]:
        """Send `count` messages and wait for their acknowledgements; ends early when the client goes.

        Freed places are filled at once, as brokers do. (Waiting until more are free lets Nagle's algorithm and delayed
        TCP acknowledgements stall clients that acknowledge one by one.)
        """
        sock, acknowledged = self._sock, bool(self._plan.qos)
        sent = acked = 0
        pending, rest = memoryview(b""), b""
        while sent < count or pending or (acknowledged and acked < count):
            room = window - (sent - acked) if acknowledged else window
            if not pending and sent < count and room > 0:
                taken, pending = stream.slice(start + sent, min(room, count - sent))
                sent += taken
            readable, _, _ = select.select([sock], [sock] if pending else [], [], 5)
            try:
                if readable:
                    data = sock.recv(CHUNK_BYTES)
                    if not data:
                        return sent, acked
                    acks, ping, rest = count_acks(rest + data)
                    acked += acks
                    if ping and not pending:  # else in the middle of a packet: the client asks again
                        sock.send(PINGRESP)
                if pending:
                    pending = pending[sock.send(pending) :]
            except BlockingIOError:
                continue
            except OSError:
                return sent, acked
        return sent, acked


# -------------------------------------------------------------------------------------------------------------- main


def _say(seen: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


def listen(plan: Plan, *, port: int = 0, once: bool = False, begin: Callable[[], object] | None = None) -> NoReturn:
    """Serve on a loopback port until killed (or, with `once`, until the last connection has ended).

    `begin` waits, before the warm-up and before what is measured; None: for the plan's `pause`.
    """
    server = socket.create_server(("127.0.0.1", port))
    print(server.getsockname()[1], flush=True)
    first, lock = threading.Lock(), threading.Lock()
    wait = begin or partial(time.sleep, plan.pause)
    open_connections = 0

    def serve(sock: socket.socket) -> None:
        nonlocal open_connections
        with sock:
            Connection(sock, plan, begin=wait, claim=partial(first.acquire, blocking=False)).serve()
        with lock:
            open_connections -= 1
            if once and not open_connections:
                os._exit(0)

    while True:
        sock, _ = server.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with lock:
            open_connections += 1
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def main() -> None:
    """Serve the plan that stdin has in its first line; each other line begins the next part, and its end is ours."""
    plan = Plan.from_json(sys.stdin.readline())
    begun = threading.Semaphore(0)

    def follow() -> None:
        while sys.stdin.readline():
            begun.release()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
    listen(plan, begin=begun.acquire)


if __name__ == "__main__":
    main()
