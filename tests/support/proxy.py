"""A TCP proxy that records the MQTT packets between clients and a broker, and breaks their connections."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Self

from tests.support.packets import PacketReader, PacketType
from tests.support.process import HOST, free_port
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.packets import Packet

__all__ = ["Direction", "Proxy", "ProxyConnection", "reset_connection"]

_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends RST


class Direction(Enum):
    """Where bytes go."""

    TO_BROKER = "to the broker"
    TO_CLIENT = "to the client"


TO_BROKER, TO_CLIENT = Direction


class Proxy:
    """`async with Proxy(broker.port) as proxy: ... proxy.url ...`.

    All methods are for the loop that runs it; tests without a loop use `tests.support.threads.threaded`.

    Args:
        target: The broker's port on loopback.
        parse: Record packets. False for TLS and WebSockets; `drop` and `packets` are of no use then.
    """

    def __init__(self, target: int, *, parse: bool = True) -> None:
        self.target = target
        self.port = free_port()
        self.parse = parse
        self.delay = 0.0
        """Seconds that each piece of the stream waits before it goes on, in either direction."""
        self.connections: list[ProxyConnection] = []
        """All of them, in order of arrival, also those that have ended."""
        self.gates = {direction: asyncio.Event() for direction in Direction}
        self.drops: dict[tuple[Direction, PacketType], float] = {}
        self.cuts: dict[Direction, int] = {}
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    # What happened.

    def packets(self, direction: Direction, kind: PacketType | None = None) -> list[Packet]:
        """All packets that came in that direction, dropped ones too, over all connections."""
        return [
            packet
            for connection in self.connections
            for packet in connection.packets[direction]
            if kind is None or packet.kind is kind
        ]

    async def wait_for(
        self, direction: Direction, kind: PacketType, count: int = 1, *, within: float = 10.0
    ) -> list[Packet]:
        """Wait until at least `count` packets of that type came; give all of them."""
        await eventually(
            lambda: len(self.packets(direction, kind)) >= count,
            within=within,
            what=lambda: f"{count} {kind.name} {direction.value}; came: {self.packets(direction)}",
        )
        return self.packets(direction, kind)

    # What it does to connections.

    def drop(self, direction: Direction, kind: PacketType, times: float = float("inf")) -> None:
        """Swallow the next `times` packets of that type; `times=0` ends it."""
        self.drops[direction, kind] = times

    def cut_after(self, direction: Direction, size: int) -> None:
        """Reset the next connection to send so much: once `size` bytes from now on have passed in that direction."""
        self.cuts[direction] = size

    def reset(self) -> None:
        """Reset all connections (RST), on both sides."""
        for connection in self.connections:
            connection.reset()

    def close(self) -> None:
        """End all connections in order (FIN), on both sides."""
        for connection in self.connections:
            connection.close()

    def pause(self, *directions: Direction) -> None:
        """Keep what comes (in both directions, if none is given): connections stand, nothing passes."""
        for direction in directions or Direction:
            self.gates[direction].clear()

    def resume(self) -> None:
        """Let pass again, what was kept first."""
        for gate in self.gates.values():
            gate.set()

    async def refuse(self) -> None:
        """Refuse new connections (`ECONNREFUSED`); those that stand are not touched."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Accept new connections again after `refuse`."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            with suppress(asyncio.CancelledError):  # asyncio's streams want to know how their callback ended
                await self._relay(reader, writer)
        finally:
            writer.close()  # also where it was cancelled before there was a connection to the target
            self._handlers.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            reset_connection(writer)
            return
        connection = ProxyConnection(self, {TO_BROKER: broker_writer, TO_CLIENT: writer})
        self.connections.append(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.pump(TO_BROKER, reader))
                group.create_task(connection.pump(TO_CLIENT, broker_reader))
        finally:
            connection.close()

    async def __aenter__(self) -> Self:
        self.resume()
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.reset()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


class ProxyConnection:
    """One client's connection, and the one to the broker behind it."""

    def __init__(self, proxy: Proxy, writers: dict[Direction, asyncio.StreamWriter]) -> None:
        self.packets: dict[Direction, list[Packet]] = {direction: [] for direction in Direction}
        self.times: dict[Direction, list[float]] = {direction: [] for direction in Direction}
        """When each of the packets came, on the clock of `time.monotonic()`."""
        self.ended = float("inf")
        """When the connection ended, on that clock."""
        self.passed = dict.fromkeys(Direction, 0)
        """Bytes that went on, by direction."""
        self._proxy = proxy
        self._writers = writers
        self._readers = {direction: PacketReader() for direction in Direction}

    @property
    def closed(self) -> bool:
        return any(writer.is_closing() for writer in self._writers.values())

    def close(self) -> None:
        self.ended = min(self.ended, time.monotonic())
        for writer in self._writers.values():
            writer.close()

    def reset(self) -> None:
        self.ended = min(self.ended, time.monotonic())
        for writer in self._writers.values():
            reset_connection(writer)

    async def pump(self, direction: Direction, reader: asyncio.StreamReader) -> None:
        """Pass on what comes until one side ends, then end the other."""
        proxy = self._proxy
        with suppress(OSError):
            while data := await reader.read(65536):
                await proxy.gates[direction].wait()
                if proxy.delay:
                    await asyncio.sleep(proxy.delay)
                for piece in self._pieces(direction, data):
                    await self._pass(direction, piece)
        self.close()

    def _pieces(self, direction: Direction, data: bytes) -> list[bytes]:
        if not self._proxy.parse:
            return [data]
        reader = self._readers[direction]
        packets = reader.feed(data)
        self._readers[TO_CLIENT].version = self._readers[TO_BROKER].version
        self.packets[direction] += packets
        self.times[direction] += [time.monotonic()] * len(packets)
        return [packet.raw for packet in packets if not self._dropped(direction, packet)]

    def _dropped(self, direction: Direction, packet: Packet) -> bool:
        left = self._proxy.drops.get((direction, packet.kind), 0)
        if left:
            self._proxy.drops[direction, packet.kind] = left - 1
        return bool(left)

    async def _pass(self, direction: Direction, data: bytes) -> None:
        writer = self._writers[direction]
        left = self._proxy.cuts.get(direction)
        if left is not None:
            if left <= len(data):
                del self._proxy.cuts[direction]
                writer.write(data[:left])
                await writer.drain()
                self.reset()
                raise ConnectionResetError
            self._proxy.cuts[direction] = left - len(data)
        writer.write(data)
        self.passed[direction] += len(data)
        await writer.drain()


def reset_connection(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: the other side sees "connection reset by peer"."""
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    writer.transport.abort()
