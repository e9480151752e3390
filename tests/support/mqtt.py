"""A small MQTT client for tests, of version 5 and 3.1.1, that shares no code with the project.

It acknowledges what it receives (or not: `acknowledge=False`), and shows every packet as it came.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import mqtt5

from tests.support.packets import Packet, PacketReader, PacketType, ack, encode, publish, text
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from tests.support.mosquitto import Mosquitto

__all__ = ["Client", "client", "publish_each"]

_ANSWERS = {
    PacketType.PUBREC: PacketType.PUBREL,
    PacketType.PUBREL: PacketType.PUBCOMP,
}


@asynccontextmanager
async def client(
    url: str,
    *,
    version: int = 5,
    client_id: str | None = None,
    clean: bool = True,
    expiry: int = 0,
    keepalive: int = 60,
    acknowledge: bool = True,
    receive_maximum: int = 65535,
    will: mqtt5.Will | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """Connect to `mqtt://[user:password@]host:port`, and disconnect at the end.

    Args:
        version: 5, or 4 for MQTT 3.1.1.
        clean: Clean start; False takes up the session of `client_id`.
        expiry: Seconds that the session lasts after the connection (MQTT 5).
        acknowledge: False leaves QoS 1 and 2 unanswered; then `Client.acknowledge(packet)` does it.
        will: For MQTT 5.
        tls: For a broker's TLS listener.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None, url
    assert parts.port is not None, url
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
    user = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password).encode() if parts.password is not None else None
    self = Client(reader, writer, version, acknowledge=acknowledge)
    name = uuid.uuid4().hex if client_id is None else client_id
    if version == 5:
        packet = mqtt5.ConnectPacket(
            name,
            username=user,
            password=password,
            clean_start=clean,
            keep_alive=keepalive,
            session_expiry_interval=expiry,
            receive_max=receive_maximum,
            will=will,
        ).write()
    else:
        flags = clean << 1 | (user is not None) << 7 | (password is not None) << 6
        body = text("MQTT") + bytes([4, flags]) + keepalive.to_bytes(2) + text(name)
        body += b"".join(text(value) for value in (user, password) if value is not None)
        packet = encode(PacketType.CONNECT, 0, body)
    self.send(packet)
    try:
        self.connack = await self._next(PacketType.CONNACK)
        if self.connack.reason_code:
            raise ConnectionRefusedError(f"CONNACK 0x{self.connack.reason_code:02X}")
        yield self
        if not writer.is_closing():
            self.send(encode(PacketType.DISCONNECT, 0, b""))
    finally:
        await self._close()


class Client:
    """One connection; made by `client()`."""

    connack: Packet

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int, *, acknowledge: bool
    ) -> None:
        self.version = version
        self.received: list[Packet] = []
        """Every packet that came."""
        self.closed = False
        """True when the broker, or the network, has ended the connection."""
        self._auto = acknowledge
        self._writer = writer
        self._ids = itertools.count(1)
        self._taken = 0
        self._task = asyncio.create_task(self._read(reader), name="test client")

    @property
    def session_present(self) -> bool:
        return bool(self.connack.body[0])

    @property
    def messages(self) -> list[Packet]:
        """Every PUBLISH that came: `.topic .payload .qos .retain .dup`, and `.publish` with all properties."""
        return [packet for packet in self.received if packet.kind is PacketType.PUBLISH]

    async def publish(
        self, topic: str, payload: bytes | str = b"", *, qos: int = 1, retain: bool = False, **properties: Any
    ) -> int:
        """Publish, wait for the end of the flow, and give its reason code (0x10: nobody has subscribed).

        `properties` are those of `mqtt5.PublishPacket`: `response_topic`, `correlation_data`, `content_type`,
        `user_properties`, `message_expiry_interval`, … (MQTT 5 only).
        """
        packet_id = next(self._ids) if qos else 0
        data = payload.encode() if isinstance(payload, str) else payload
        if properties:
            assert self.version == 5, "MQTT 3.1.1 has no properties"
            packet = mqtt5.PublishPacket(
                topic, data, qos=mqtt5.QoS(qos), retain=retain, packet_id=packet_id or None, **properties
            ).write()
        else:
            packet = publish(topic, data, qos=qos, packet_id=packet_id, retain=retain, version=self.version)
        self.send(packet)
        await self._writer.drain()
        if not qos:
            return 0
        answer = await self._next(PacketType.PUBACK if qos == 1 else PacketType.PUBREC, packet_id)
        if qos == 2 and answer.reason_code < 0x80:
            await self._next(PacketType.PUBCOMP, packet_id)
        return answer.reason_code

    async def subscribe(
        self,
        *filters: str,
        qos: int = 2,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        subscription_id: int | None = None,
    ) -> list[int]:
        """Subscribe, and give the codes of the SUBACK. The options are MQTT 5's."""
        packet_id = next(self._ids)
        if self.version == 5:
            packet = mqtt5.SubscribePacket(
                packet_id,
                [
                    mqtt5.TopicFilter(
                        each,
                        max_qos=mqtt5.QoS(qos),
                        no_local=no_local,
                        retain_as_published=retain_as_published,
                        retain_handling=mqtt5.RetainHandling(retain_handling),
                    )
                    for each in filters
                ],
                subscription_id=subscription_id,
            ).write()
        else:
            body = packet_id.to_bytes(2) + b"".join(text(each) + bytes([qos]) for each in filters)
            packet = encode(PacketType.SUBSCRIBE, 2, body)
        self.send(packet)
        return (await self._next(PacketType.SUBACK, packet_id)).reason_codes

    async def message(self, topic: str | None = None, *, within: float = 10.0) -> Packet:
        """The next PUBLISH that no earlier call has given (on `topic`, skipping others)."""

        def found() -> Packet | None:
            messages = self.messages
            while self._taken < len(messages):
                self._taken += 1
                if topic in (None, messages[self._taken - 1].topic):
                    return messages[self._taken - 1]
            return None

        message = await eventually(found, within=within, what=lambda: f"a message; came: {self.received}")
        assert message is not None
        return message

    async def wait_for(self, count: int, *, within: float = 10.0) -> list[Packet]:
        """Wait until at least `count` messages have come, and give all of them."""
        await eventually(
            lambda: len(self.messages) >= count,
            within=within,
            what=lambda: f"{count} messages; came: {len(self.messages)}",
        )
        return self.messages

    def acknowledge(self, packet: Packet, code: int = 0) -> None:
        """Answer a message of QoS 1 or 2."""
        kind = PacketType.PUBACK if packet.qos == 1 else PacketType.PUBREC
        self.send(ack(kind, packet.packet_id, code, version=self.version))

    async def ping(self) -> None:
        """PINGREQ and PINGRESP: the broker has read all that was sent before."""
        before = self._count(PacketType.PINGRESP)
        self.send(encode(PacketType.PINGREQ, 0, b""))
        await eventually(lambda: self._count(PacketType.PINGRESP) > before, what="PINGRESP")

    def send(self, data: bytes) -> None:
        """Write any bytes."""
        self._writer.write(data)

    def abort(self) -> None:
        """End the connection without DISCONNECT: the broker publishes the will."""
        self._writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        packets = PacketReader(self.version)
        with suppress(OSError):
            while data := await reader.read(65536):
                for packet in packets.feed(data):
                    self._answer(packet)
                    self.received.append(packet)
        self.closed = True

    def _answer(self, packet: Packet) -> None:
        if packet.kind is PacketType.PUBLISH and packet.qos and self._auto:
            self.acknowledge(packet)
        elif packet.kind in _ANSWERS and packet.reason_code < 0x80:
            self.send(ack(_ANSWERS[packet.kind], packet.packet_id, version=self.version))

    async def _next(self, kind: PacketType, packet_id: int = 0) -> Packet:
        def found() -> Packet | None:
            for packet in reversed(self.received):
                if packet.kind is kind and packet.packet_id == packet_id:
                    return packet
            if self.closed:
                raise ConnectionResetError(f"closed before {kind.name}; came: {self.received}")
            return None

        packet = await eventually(found, what=lambda: f"{kind.name}; came: {self.received}")
        assert packet is not None
        return packet

    def _count(self, kind: PacketType) -> int:
        return sum(packet.kind is kind for packet in self.received)

    async def _close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def publish_each(broker: Mosquitto, topic: str, *payloads: str) -> None:
    """Publish with QoS 1, one after the other, from a test that is a plain function."""

    async def send() -> None:
        async with client(broker.url) as publisher:
            for payload in payloads:
                await publisher.publish(topic, payload.encode(), qos=1)

    asyncio.run(send())
