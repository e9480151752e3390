"""Sockets that take a write in part: what TLS and WebSockets have begun must be finished with the same bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

from mqttapi.transport.connection import Connection, Subscription
from tests.support.fake_broker import FakeBroker
from tests.support.packets import PacketReader, PacketType, publish
from tests.support.process import HOST
from tests.support.waiting import eventually
from tests.transport.options import options_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.packets import Packet

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Slow:
    """In front of a `FakeBroker`: a server with a tiny window that reads nothing until it is told to."""

    def __init__(self, broker: FakeBroker, *, websocket: bool) -> None:
        self.broker = broker
        self.websocket = websocket
        self.reading = asyncio.Event()
        self.reading.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, out = await asyncio.open_connection(HOST, self.broker.port)
        try:
            if self.websocket:
                await self._handshake(reader, writer)
            await asyncio.gather(
                self._pass(self._frame if self.websocket else self._bytes, reader, out.write),
                self._pass(self._bytes, upstream, self._wrapped(writer)),
            )
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            out.close()

    async def _pass(
        self,
        read: Callable[[asyncio.StreamReader], Awaitable[bytes]],
        reader: asyncio.StreamReader,
        write: Callable[[bytes], None],
    ) -> None:
        while True:
            await self.reading.wait()
            data = await read(reader)
            if not data:
                raise ConnectionResetError
            write(data)

    def _wrapped(self, writer: asyncio.StreamWriter) -> Callable[[bytes], None]:
        if self.websocket:
            return lambda data: writer.write(bytes([0x82, len(data)]) + data)
        return writer.write

    @staticmethod
    async def _bytes(reader: asyncio.StreamReader) -> bytes:
        return await reader.read(100)

    @staticmethod
    async def _frame(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(2)
        assert head[0] == 0x82
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
        mask = await reader.readexactly(4)
        data = await reader.readexactly(size)
        repeated = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(size)

    @staticmethod
    async def _handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        (line,) = [line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")]
        accept = base64.b64encode(hashlib.sha1(line.split(b":")[1].strip() + _GUID).digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")


@asynccontextmanager
async def slow_server(
    broker: FakeBroker, *, websocket: bool, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[Slow, int]]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind((HOST, 0))
    slow = Slow(broker, websocket=websocket)
    server = await asyncio.start_server(slow.serve, sock=listener, ssl=tls, limit=4096)
    try:
        yield slow, listener.getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_everything_arrives_once_and_in_order(scheme: str) -> None:
    authority = trustme.CA()
    server_tls = client_tls = None
    if scheme in {"mqtts", "wss"}:
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(HOST).configure_cert(server_tls)
        client_tls = ssl.create_default_context()
        authority.configure_trust(client_tls)
    async with (
        FakeBroker() as broker,
        slow_server(broker, websocket=scheme in {"ws", "wss"}, tls=server_tls) as (slow, port),
        Connection(options_for(f"{scheme}://{HOST}:{port}", tls=client_tls, timeout=30)) as connection,
    ):
        slow.reading.clear()
        wanted = bytearray()
        index = 0
        while connection.unsent < 300_000:
            packet = publish(f"a/{index}", bytes([index % 256]) * (10 + index * 37 % 9000), version=5)
            connection.write(packet)
            wanted += packet
            index += 1
        subscribed = asyncio.create_task(connection.subscribe_all([Subscription("s")]))
        await asyncio.sleep(0)
        for last in (b"1", b"2"):
            packet = publish("last", last, version=5)
            connection.write(packet)
            wanted += packet
        slow.reading.set()
        assert await subscribed == [1]
        peer = await broker.connected()
        await eventually(lambda: len(peer.packets(PacketType.PUBLISH)) == index + 2, within=30)
        kinds = [packet.kind for packet in peer.received[1:]]
        assert kinds == [PacketType.PUBLISH] * index + [PacketType.SUBSCRIBE] + [PacketType.PUBLISH] * 2
        assert raw(peer.packets(PacketType.PUBLISH)) == raw(PacketReader().feed(bytes(wanted)))
        assert connection.unsent == 0


def raw(packets: list[Packet]) -> list[bytes]:
    return [packet.raw for packet in packets]
