"""A broker that does what a test says, also what no broker should do, and records all that clients send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from tests.support.packets import Packet, PacketReader, PacketType, ack, connack, encode, publish, suback, unsuback
from tests.support.process import HOST, free_port
from tests.support.proxy import reset_connection
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Connection", "FakeBroker", "Reply"]


class _Writes(Protocol):
    def write(self) -> bytes: ...


Answer: TypeAlias = bytes | _Writes | None
Reply: TypeAlias = Answer | Callable[["Connection", Packet], Answer]
"""Bytes, a packet of the `mqtt5` package, None for silence, or a function that gives one of these."""


class FakeBroker:
    """`async with FakeBroker() as broker: ... broker.url ...`.

    It speaks version 5 and 3.1.1 as the client does, accepts everything, and delivers nothing of its own accord.

        broker.reply(PacketType.CONNECT, connack(0x87))                     # refuses
        broker.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(receive_max=2))
        broker.reply(PacketType.SUBSCRIBE, lambda c, p: suback(p.packet_id, [0x8F], version=c.version))
        broker.reply(PacketType.PINGREQ, None)                              # falls silent

        connection = await broker.connected()
        connection.publish("a/b", b"1", qos=1, packet_id=7, subscription_ids=[3])
        (puback,) = await connection.wait_for(PacketType.PUBACK)
    """

    def __init__(self, replies: Mapping[PacketType, Reply] | None = None) -> None:
        self.port = free_port()
        self.connections: list[Connection] = []
        """All of them, in order of arrival, also those that have ended."""
        self._replies: dict[PacketType, Reply] = {**_REPLIES, **(replies or {})}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    def reply(self, kind: PacketType, reply: Reply) -> None:
        """From now on, answer packets of that kind so."""
        self._replies[kind] = reply

    def packets(self, kind: PacketType | None = None) -> list[Packet]:
        """What all clients have sent."""
        return [packet for connection in self.connections for packet in connection.packets(kind)]

    async def connected(self, count: int = 1, *, within: float = 10.0) -> Connection:
        """Wait for the `count`-th connection to send its CONNECT, and give it."""
        await eventually(
            lambda: len(self.connections) >= count and self.connections[count - 1].received,
            within=within,
            what=lambda: f"connection number {count}; there were {len(self.connections)}",
        )
        return self.connections[count - 1]

    async def subscribed(self, count: int = 1, *, within: float = 10.0) -> Connection:
        """Wait for the `count`-th connection that sends a SUBSCRIBE, and give it."""

        def consumers() -> list[Connection]:
            return [each for each in self.connections if each.packets(PacketType.SUBSCRIBE)]

        await eventually(
            lambda: len(consumers()) >= count, within=within, what=lambda: f"SUBSCRIBE; came: {self.packets()}"
        )
        return consumers()[count - 1]

    async def start(self) -> None:
        """Listen; for use after `stop`."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def stop(self) -> None:
        """Stop to listen, and reset all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in self.connections:
            connection.reset()
        await eventually(lambda: all(each.closed for each in self.connections), what="the end of the connections")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self._replies, writer)
        self.connections.append(connection)
        await connection.read(reader)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class Connection:
    """One client, as the broker sees it."""

    def __init__(self, replies: Mapping[PacketType, Reply], writer: asyncio.StreamWriter) -> None:
        self.received: list[Packet] = []
        self.closed = False
        """True when the client, or the test, has ended the connection."""
        self._replies = replies
        self._writer = writer
        self._reader = PacketReader()

    @property
    def version(self) -> int:
        """5, or 4 for MQTT 3.1.1: what the CONNECT said."""
        return self._reader.version

    @property
    def client_id(self) -> str:
        return self.received[0].connect.client_id

    def packets(self, kind: PacketType | None = None) -> list[Packet]:
        """What the client has sent."""
        return [packet for packet in self.received if kind is None or packet.kind is kind]

    async def wait_for(self, kind: PacketType, count: int = 1, *, within: float = 10.0) -> list[Packet]:
        """Wait until the client has sent at least `count` packets of that kind, and give all of them."""
        await eventually(
            lambda: len(self.packets(kind)) >= count,
            within=within,
            what=lambda: f"{count} {kind.name}; came: {self.received}",
        )
        return self.packets(kind)

    def publish(self, topic: str | bytes, payload: bytes = b"", **options: Any) -> None:
        """Send a PUBLISH, in the client's version; see `tests.support.packets.publish`."""
        self.send(publish(topic, payload, version=self.version, **options))

    def send(self, *packets: bytes | _Writes) -> None:
        """Send packets, or any bytes, in one write."""
        self._writer.write(b"".join(each if isinstance(each, bytes) else each.write() for each in packets))

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent."""
        await self._writer.drain()

    def close(self) -> None:
        """End the connection in order (FIN)."""
        self._writer.close()

    def reset(self) -> None:
        """Reset the connection (RST)."""
        reset_connection(self._writer)

    async def read(self, reader: asyncio.StreamReader) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    for packet in self._reader.feed(data):
                        self.received.append(packet)
                        self._answer(packet)
        finally:
            self.closed = True
            self._writer.close()

    def _answer(self, packet: Packet) -> None:
        reply = self._replies.get(packet.kind)
        answer = reply(self, packet) if callable(reply) else reply
        if answer is not None and not self._writer.is_closing():
            self.send(answer)


def _to_publish(connection: Connection, packet: Packet) -> bytes | None:
    kinds = (None, PacketType.PUBACK, PacketType.PUBREC)
    kind = kinds[packet.qos]
    return None if kind is None else ack(kind, packet.packet_id)


_REPLIES: dict[PacketType, Reply] = {
    PacketType.CONNECT: lambda c, p: connack(version=c.version),
    PacketType.PUBLISH: _to_publish,
    PacketType.PUBREC: lambda c, p: ack(PacketType.PUBREL, p.packet_id),
    PacketType.PUBREL: lambda c, p: ack(PacketType.PUBCOMP, p.packet_id),
    PacketType.SUBSCRIBE: lambda c, p: suback(
        p.packet_id, [int(each.max_qos) for each in p.subscribe.topic_filters], version=c.version
    ),
    PacketType.UNSUBSCRIBE: lambda c, p: unsuback(p.packet_id, [0] * len(p.filters), version=c.version),
    PacketType.PINGREQ: encode(PacketType.PINGRESP, 0, b""),
    PacketType.DISCONNECT: lambda c, p: c.close(),
}
