from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import mqtt5
import pytest

from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import Client, client
from tests.support.packets import PacketReader, PacketType, ack, connack, publish, suback
from tests.support.waiting import eventually

versions = pytest.mark.parametrize("version", [5, 4])


@versions
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_message_goes_round(shared_mosquitto: Mosquitto, version: int, qos: int) -> None:
    topic = f"round/{version}/{qos}"
    async with client(shared_mosquitto.url, version=version) as c:
        assert await c.subscribe(topic) == [2]
        assert await c.publish(topic, b"\x00\xff", qos=qos) == 0
        message = await c.message(topic)
        assert (message.topic, message.payload, message.qos, message.retain) == (topic, b"\x00\xff", qos, False)


async def test_the_broker_says_that_nobody_listens(shared_mosquitto: Mosquitto) -> None:
    async with client(shared_mosquitto.url) as c:
        assert await c.publish("nobody/listens") == 0x10


@versions
async def test_an_unanswered_message_comes_again_in_the_session(mosquitto: Mosquitto, version: int) -> None:
    def session(*, acknowledge: bool) -> AbstractAsyncContextManager[Client]:
        return client(mosquitto.url, version=version, client_id="s", clean=False, expiry=60, acknowledge=acknowledge)

    async with session(acknowledge=False) as c:
        assert not c.session_present
        await c.subscribe("again", qos=1)
        await c.publish("again", "1")
        await c.message()
        c.abort()
        await eventually(lambda: c.closed)
    mosquitto.restart()
    async with session(acknowledge=True) as c:
        assert c.session_present
        message = await c.message()
        assert (message.payload, message.dup) == (b"1", True)


async def test_a_wrong_password_is_refused() -> None:
    with Mosquitto(users={"alice": "secret"}) as broker:
        async with client(broker.url.replace("//", "//alice:secret@")) as c:
            await c.ping()
        with pytest.raises(ConnectionRefusedError, match="0x87"):
            async with client(broker.url.replace("//", "//alice:wrong@")):
                pass


async def test_tls_with_a_clients_certificate() -> None:
    with Mosquitto(tls="mutual") as broker:
        async with client(broker.tls_url, tls=broker.client_context()) as c:
            await c.ping()


@versions
async def test_the_fake_broker_accepts_everything(fake_broker: FakeBroker, version: int) -> None:
    async with client(fake_broker.url, version=version, client_id="it") as c:
        assert await c.subscribe("a/+", "b/#", qos=1) == [1, 1]
        assert await c.publish("a/b", "1", qos=1) == 0
        assert await c.publish("a/b", "2", qos=2) == 0
        connection = await fake_broker.subscribed()
        assert (connection.client_id, connection.version) == ("it", version)
        assert connection.packets(PacketType.SUBSCRIBE)[0].filters == ["a/+", "b/#"]
        assert [each.payload for each in connection.packets(PacketType.PUBLISH)] == [b"1", b"2"]
        connection.publish("a/x", b"!", qos=1, packet_id=7)
        (puback,) = await connection.wait_for(PacketType.PUBACK)
        assert puback.packet_id == 7


async def test_the_fake_broker_follows_its_script(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(receive_max=2, session_present=True))
    fake_broker.reply(PacketType.SUBSCRIBE, lambda c, p: suback(p.packet_id, [0x8F]))
    fake_broker.reply(PacketType.PUBLISH, lambda c, p: ack(PacketType.PUBACK, p.packet_id, 0x97))
    async with client(fake_broker.url) as c:
        assert c.session_present
        assert c.connack.connack.receive_max == 2
        assert await c.subscribe("a") == [0x8F]
        assert await c.publish("a") == 0x97
    fake_broker.reply(PacketType.CONNECT, connack(0x87))
    with pytest.raises(ConnectionRefusedError):
        async with client(fake_broker.url):
            pass


async def test_the_fake_broker_comes_back_on_its_port(fake_broker: FakeBroker) -> None:
    async with client(fake_broker.url) as c:
        await fake_broker.stop()
        await eventually(lambda: c.closed)
    with pytest.raises(ConnectionRefusedError):
        async with client(fake_broker.url):
            pass
    await fake_broker.start()
    async with client(fake_broker.url) as c:
        await c.ping()


def test_packets_come_out_of_any_pieces() -> None:
    stream = publish("a", b"x" * 200, qos=1, packet_id=9, subscription_ids=[1, 300]) + publish(b"\xff", version=5)
    for size in (1, 7, 1000):
        reader = PacketReader()
        first, second = [packet for at in range(0, len(stream), size) for packet in reader.feed(stream[at : at + size])]
        assert first.raw + second.raw == stream
        assert first.publish.subscription_ids == [1, 300]
        assert (first.packet_id, len(first.payload)) == (9, 200)


def test_a_will_of_version_3_1_1_is_read() -> None:
    body = b"\x00\x04MQTT\x04\x06\x00\x3c\x00\x01i\x00\x01w\x00\x02no"
    (packet,) = PacketReader().feed(bytes([0x10, len(body)]) + body)
    assert packet.version == 4
    assert packet.connect.will is not None
    assert (packet.connect.will.topic, packet.connect.will.payload) == ("w", b"no")
