"""Publishes stamped messages to a broker until killed: so many per second, or as fast as they are acknowledged.

The packets are sent in a burst every millisecond; a message's stamp is the time at which its burst was built.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time

from benchmarks.workload import stamped, topic_of
from mqttapi.cli.fake_broker import count_acks, text, varint

TICK = 0.001
IN_FLIGHT = 100
TOPICS = [text(topic_of(number)) for number in range(1_000)]


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = text("MQTT") + b"\x04\x02\x00\x00" + text("feed")
    sock.sendall(b"\x10" + varint(len(body)) + body)
    if sock.recv(4) != b"\x20\x02\x00\x00":
        raise SystemExit("the broker refused the connection")
    return sock


def burst(first: int, count: int, qos: int) -> bytes:
    payload = stamped(time.monotonic_ns() // 1_000)
    out = bytearray()
    for number in range(first, first + count):
        packet_id = struct.pack("!H", number % 65_535 + 1) if qos else b""
        body = TOPICS[number % len(TOPICS)] + packet_id + payload
        out += bytes((0x30 | qos << 1,)) + varint(len(body)) + body
    return bytes(out)


def feed(sock: socket.socket, qos: int, rate: float) -> None:
    sent = acked = 0
    rest = b""
    began = time.monotonic()
    sock.settimeout(30)
    while True:
        due = int((time.monotonic() - began) * rate) - sent if rate else IN_FLIGHT
        count = min(due, IN_FLIGHT - (sent - acked)) if qos else due
        if count > 0:
            sock.sendall(burst(sent, count, qos))
            sent += count
        if qos and sent > acked:
            acks, _, rest = count_acks(rest + sock.recv(65_536))
            acked += acks
        if rate:
            time.sleep(TICK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--qos", type=int, choices=(0, 1), default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="messages per second; 0: as many as the broker takes")
    options = parser.parse_args()
    feed(connect(options.port), options.qos, options.rate)


if __name__ == "__main__":
    main()
