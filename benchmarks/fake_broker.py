"""A broker that is never the bottleneck: it sends PUBLISH packets that were encoded beforehand, and counts what comes.

Whoever subscribes gets `--warmup` messages, a pause, then `--messages` more; whoever publishes is acknowledged and
counted. It prints its port on the first line; then JSON objects, one a line: when the warm-up is over, and what was
sent or counted when a connection with traffic ends. With `--once` it exits when its last connection has ended.

    python -m benchmarks.fake_broker --messages 1000000 --qos 1 --window 1000
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from itertools import accumulate

from benchmarks.workload import PAYLOAD, payload_of, topic_of

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 10, 12, 14
PINGRESP = b"\xd0\x00"
PACKET_IDS = 65_535
PRE_ENCODED_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a subscriber gets. `window`: QoS 1 messages in flight, lowered to the client's Receive Maximum unless `flood`."""

    messages: int = 100_000
    warmup: int = 1_000
    pause: float = 0.3
    qos: int = 0
    window: int = 1_000
    flood: bool = False
    topics: int = 1_000
    payload: bytes = PAYLOAD
    properties: bool = False


@dataclass(slots=True)
class Client:
    """What CONNECT and SUBSCRIBE said."""

    v5: bool = False
    receive_maximum: int = PACKET_IDS
    subscription_id: int | None = None


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


def publish_properties(plan: Plan, client: Client) -> bytes:
    if not client.v5:
        return b""
    body = b""
    if plan.properties:
        body += b"\x03" + text("application/json")
        body += b"\x26" + text("tenant") + text("north") + b"\x26" + text("trace") + text("4bf92f3577b34da6")
    if client.subscription_id is not None:
        body += b"\x0b" + varint(client.subscription_id)
    return varint(len(body)) + body


class Stream:
    """An endless cycle of PUBLISH packets; `slice` gives the bytes of some of them without encoding anything."""

    def __init__(self, plan: Plan, client: Client) -> None:
        self._payload = plan.payload
        self._length = plan.topics * max(1, PACKET_IDS // plan.topics) if plan.qos else plan.topics
        self._small = self._length * (len(plan.payload) + 64) < PRE_ENCODED_BYTES
        rounds = -(-self._length // PACKET_IDS)
        self.ids = -(-self._length // rounds)
        properties = publish_properties(plan, client)
        heads = [self._head(index, plan, properties) for index in range(self._length)]
        if self._small:
            packets = [head + plan.payload for head in heads]
            self._ends = [0, *accumulate(map(len, packets))]
            self._buffer = memoryview(b"".join(packets))
        else:
            self._heads = heads

    def _head(self, index: int, plan: Plan, properties: bytes) -> bytes:
        packet_id = struct.pack("!H", index % self.ids + 1) if plan.qos else b""
        variable = text(topic_of(index % plan.topics)) + packet_id + properties
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
    """One client, in a thread of its own."""

    def __init__(self, sock: socket.socket, plan: Plan) -> None:
        self._sock = sock
        self._plan = plan
        self._client = Client()
        self._received = 0

    def serve(self) -> dict[str, float] | None:
        """Serve until the client goes; what was sent or counted, if anything."""
        rest = b""
        began: float | None = None
        blasted: dict[str, float] | None = None
        while data := self._read():
            packets, rest = split(rest + data)
            answers = bytearray()
            subscribed = False
            for first, body in packets:
                kind = first >> 4
                if kind == PUBLISH:
                    self._received += 1
                    if first & 0x06:
                        end = 2 + (body[0] << 8) + body[1]
                        answers += b"\x40\x02" + body[end : end + 2]
                elif kind == DISCONNECT:
                    break
                else:
                    answers += self._answer(kind, body)
                    subscribed |= kind == SUBSCRIBE
            if self._received and began is None:
                began = time.perf_counter()
            if answers:
                self._sock.sendall(answers)
            if subscribed:
                blasted = self._blast()
        if blasted is not None:
            return blasted
        if began is not None:
            return {"received": self._received, "seconds": time.perf_counter() - began}
        return None

    def _read(self) -> bytes:
        try:
            return self._sock.recv(CHUNK_BYTES)
        except OSError:
            return b""

    def _answer(self, kind: int, body: bytes) -> bytes:
        client = self._client
        if kind == CONNECT:
            client.v5 = body[6] == 5
            if not client.v5:
                return b"\x20\x02\x00\x00"
            properties, end = read_properties(body, 10)
            client.receive_maximum = properties.get(0x21, PACKET_IDS)
            assigned = b"" if body[end : end + 2] != b"\x00\x00" else b"\x12" + text(f"assigned-{id(self)}")
            return b"\x20" + varint(3 + len(assigned)) + b"\x00\x00" + varint(len(assigned)) + assigned
        if kind in {SUBSCRIBE, UNSUBSCRIBE}:
            position = 2
            if client.v5:
                properties, position = read_properties(body, position)
                client.subscription_id = properties.get(0x0B)
            filters = 0
            while position < len(body):
                position += 2 + int.from_bytes(body[position : position + 2], "big") + (kind == SUBSCRIBE)
                filters += 1
            granted = bytes((self._plan.qos,)) * filters if kind == SUBSCRIBE else b"\x00" * filters * client.v5
            variable = body[:2] + b"\x00" * client.v5 + granted
            return bytes((0x90 if kind == SUBSCRIBE else 0xB0,)) + varint(len(variable)) + variable
        return PINGRESP if kind == PINGREQ else b""

    def _blast(self) -> dict[str, float]:
        plan = self._plan
        stream = Stream(plan, self._client)
        if plan.flood or not plan.qos:
            window = stream.ids
        else:
            window = min(plan.window, self._client.receive_maximum, stream.ids)
        time.sleep(plan.pause)
        self._sock.setblocking(False)
        try:
            sent, acked = self._send(stream, 0, plan.warmup, window)
            time.sleep(plan.pause)
            print(json.dumps({"warmed_up": sent}), flush=True)
            began, cpu = time.perf_counter(), time.process_time()
            more, more_acked = self._send(stream, sent, plan.messages, window)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        finally:
            self._sock.setblocking(True)
        return {"sent": sent + more, "acked": acked + more_acked, "seconds": seconds, "cpu": cpu}

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


def listen(plan: Plan, *, port: int = 0, once: bool = False) -> None:
    """Serve on a loopback port until killed (or, with `once`, until the last connection has ended)."""
    server = socket.create_server(("127.0.0.1", port))
    print(server.getsockname()[1], flush=True)
    lock = threading.Lock()
    open_connections = 0

    def serve(sock: socket.socket) -> None:
        nonlocal open_connections
        with sock:
            seen = Connection(sock, plan).serve()
        with lock:
            if seen is not None:
                print(json.dumps(seen), flush=True)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--warmup", type=int, default=1_000)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before the first and after the warm-up")
    parser.add_argument("--qos", type=int, choices=(0, 1), default=0)
    parser.add_argument("--window", type=int, default=1_000, help="QoS 1 messages in flight")
    parser.add_argument("--flood", action="store_true", help="ignore the client's Receive Maximum and the window")
    parser.add_argument("--topics", type=int, default=1_000)
    parser.add_argument("--payload", type=int, default=len(PAYLOAD), metavar="BYTES", help="size of the JSON")
    parser.add_argument("--properties", action="store_true", help="MQTT 5: content type and two user properties")
    parser.add_argument("--once", action="store_true", help="exit when the last connection has ended")
    options = vars(parser.parse_args())
    port, once = options.pop("port"), options.pop("once")
    options["payload"] = payload_of(options["payload"])
    listen(Plan(**options), port=port, once=once)


if __name__ == "__main__":
    main()
