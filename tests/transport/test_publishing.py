"""`PublishingConnection`: each publish is confirmed once, whatever the broker and the network do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import mqtt5
import pytest

from mqttapi import App
from mqttapi.config import Settings
from mqttapi.errors import NotConnected, PublishQueueFull, PublishRefused
from mqttapi.publisher import Publish, Publisher, PublishResult
from mqttapi.runtime.links import subscription_id
from mqttapi.transport import dialer
from mqttapi.transport.publishing import PublishingConnection
from tests.support.fake_broker import FakeBroker
from tests.support.mqtt import client
from tests.support.packets import PacketType, ack, connack
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually
from tests.transport.options import options_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.fake_broker import Connection as Peer
    from tests.support.mosquitto import Mosquitto
    from tests.support.packets import Packet

PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = (
    PacketType.PUBLISH,
    PacketType.PUBACK,
    PacketType.PUBREC,
    PacketType.PUBREL,
    PacketType.PUBCOMP,
)


@pytest.fixture
async def fake() -> AsyncIterator[FakeBroker]:
    async with FakeBroker() as broker:
        yield broker


@asynccontextmanager
async def publishing_to(
    url: str, *, options: dict[str, Any] | None = None, **arguments: Any
) -> AsyncIterator[PublishingConnection]:
    async with PublishingConnection(options_for(url, **(options or {})), **arguments).running() as connection:
        yield connection


def resumed(peer: Peer, packet: Packet) -> bytes:
    """The reply of a broker that has kept the session."""
    return connack(session_present=not packet.connect.clean_start, version=peer.version)


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets]


# Being delivered


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_publish_arrives_as_it_was_said(shared_mosquitto: Mosquitto, qos: int, protocol: str) -> None:
    topic = f"published/{protocol}/{qos}"
    async with (
        client(shared_mosquitto.url) as watcher,
        publishing_to(shared_mosquitto.url, options={"protocol": protocol, "client_id": topic.replace("/", "-")}) as p,
    ):
        await watcher.subscribe(topic)
        result = await Publisher(p.sender).publish(
            topic,
            "é",
            qos=qos,
            expiry=60,
            content_type="text/plain",
            user_properties=[("k", "1"), ("k", "2")],
            response_topic="r",
            correlation_data=b"\x00\xff",
        )
        assert result == PublishResult(topic, qos, 1 if qos else 0)
        message = await watcher.message()
        assert (message.topic, message.payload, message.qos) == (topic, "é".encode(), qos)
        sent = message.publish
        if protocol == "5":
            assert sent.user_properties == [("k", "1"), ("k", "2")]
            assert (sent.content_type, sent.response_topic, sent.correlation_data) == ("text/plain", "r", b"\x00\xff")
            assert sent.message_expiry_interval in {59, 60}
        else:
            assert sent.user_properties == []


async def test_a_message_that_nobody_gets_is_told(shared_mosquitto: Mosquitto) -> None:
    async with publishing_to(shared_mosquitto.url) as connection:
        assert (await Publisher(connection.sender).publish("nobody/listens")).reason_code == 0x10


async def test_properties_that_3_1_1_drops_are_warned_of_once(
    fake: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with publishing_to(fake.url, options={"protocol": "3.1.1"}) as connection:
        for _ in range(2):
            await Publisher(connection.sender).publish("a", expiry=5)
    assert caplog.text.count("MQTT 3.1.1 has no message properties") == 1


async def test_one_turn_of_the_loop_is_one_write(fake: FakeBroker) -> None:
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        await publisher.publish("a")
        assert connection.sender.connection is not None
        writes: list[bytes] = []
        write = connection.sender.connection.write

        def recorded(data: bytes | bytearray) -> None:
            writes.append(bytes(data))
            write(data)

        connection.sender.connection.write = recorded  # type: ignore[method-assign]  # to count
        await asyncio.gather(*(publisher.publish_nowait("a", b"x", qos=index % 2) for index in range(20)))
        assert len(writes) == 1


async def test_answers_may_come_in_any_order_and_cut_anywhere(fake: FakeBroker) -> None:
    """Also one that is longer than 127 bytes, among packets that are not ours to answer."""
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", str(index)) for index in range(5)]
        peer = await fake.connected()
        ids = [packet.packet_id for packet in await peer.wait_for(PUBLISH, 5)]
        long = mqtt5.PubAckPacket(ids[3], reason_str="y" * 300).write()
        middle = b"\xd0\x00" + ack(PUBACK, ids[4]) + long + ack(PUBACK, ids[1], 0x10) + ack(PUBACK, 60_000)
        for byte in middle + ack(PUBACK, ids[0]) + ack(PUBACK, ids[2]):
            peer.send(bytes([byte]))
            await peer.drain()
            await asyncio.sleep(0)
        results = await asyncio.gather(*futures)
        assert [result.packet_id for result in results] == ids
        assert [result.reason_code for result in results] == [0, 0x10, 0, 0, 0]
        assert results[3].reason == "y" * 300


# Being refused


@pytest.mark.parametrize(
    ("qos", "answer"),
    [
        (1, lambda p: mqtt5.PubAckPacket(p, reason_code=mqtt5.PubAckReasonCode.NOT_AUTHORIZED, reason_str="no entry")),
        (2, lambda p: mqtt5.PubRecPacket(p, reason_code=mqtt5.PubRecReasonCode.NOT_AUTHORIZED, reason_str="no entry")),
    ],
)
async def test_a_refusal_is_an_error_and_frees_its_place(fake: FakeBroker, qos: int, answer: Any) -> None:
    fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(receive_max=1))
    fake.reply(PUBLISH, lambda peer, packet: answer(packet.packet_id))
    async with publishing_to(fake.url) as connection:
        for _ in range(3):
            with pytest.raises(PublishRefused) as caught:
                await Publisher(connection.sender).publish("a/b", qos=qos)
            assert str(caught.value) == "publish to 'a/b': the broker refuses it: Not authorized (0x87): no entry"
            assert caught.value.reason_code == 0x87
        assert connection.sender.messages == 0


@pytest.mark.parametrize(
    ("limit", "publish", "code", "text"),
    [
        (
            {"max_qos": mqtt5.QoS.AT_LEAST_ONCE},
            {"qos": 2},
            0x9B,
            "publish to 'a/b': the broker takes QoS 1 at most, not 2",
        ),
        ({"retain_available": False}, {"retain": True}, 0x9A, "publish to 'a/b': the broker does not retain messages"),
        (
            {"max_packet_size": 20},
            {"payload": "x" * 20},
            0x95,
            "publish to 'a/b': its packet of 30 bytes is larger than the broker takes (20)",
        ),
    ],
)
async def test_what_the_broker_announced_is_obeyed(
    fake: FakeBroker, limit: dict[str, Any], publish: dict[str, Any], code: int, text: str
) -> None:
    fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(**limit))
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        with pytest.raises(PublishRefused) as caught:
            await publisher.publish("a/b", **publish)
        assert (str(caught.value), caught.value.reason_code) == (text, code)
        assert (await publisher.publish("a/b", "ok")).packet_id
        assert payloads(fake.packets(PUBLISH)) == [b"ok"]


@pytest.mark.parametrize("qos", [1, 2])
async def test_receive_maximum_is_never_exceeded(fake: FakeBroker, qos: int) -> None:
    """QoS 2 counts until PUBCOMP; what waits goes in order; QoS 0 does not overtake it."""
    fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(receive_max=3))
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", str(index), qos=qos) for index in range(10)]
        futures.append(publisher.publish_nowait("a", "last", qos=0))
        peer = await fake.connected()
        for answered in range(10):
            sent = await peer.wait_for(PUBLISH, min(answered + 3, 10))
            peer.send(b"\xd0\x00")
            assert sum(packet.qos > 0 for packet in sent) - answered <= 3
            if qos == 1:
                peer.send(ack(PUBACK, sent[answered].packet_id))
            else:
                peer.send(ack(PUBREC, sent[answered].packet_id))
        await asyncio.gather(*futures)
        assert payloads(await peer.wait_for(PUBLISH, 11)) == [*(b"%d" % index for index in range(10)), b"last"]


async def test_rabbitmq_answers_qos_2_with_puback(fake: FakeBroker) -> None:
    fake.reply(PUBLISH, lambda peer, packet: ack(PUBACK, packet.packet_id))
    async with publishing_to(fake.url) as connection:
        assert (await Publisher(connection.sender).publish("a", qos=2)).reason_code == 0


async def test_a_pubrec_for_nothing_is_answered(fake: FakeBroker) -> None:
    async with publishing_to(fake.url):
        peer = await fake.connected()
        peer.send(ack(PUBREC, 99))
        (pubrel,) = await peer.wait_for(PUBREL)
        assert (pubrel.packet_id, pubrel.reason_code) == (99, 0x92)


# Going again


async def test_the_first_connection_starts_clean_and_later_ones_resume(fake: FakeBroker) -> None:
    async with publishing_to(fake.url, options={"client_id": "app-host-0"}):
        (await fake.connected()).reset()
        await fake.connected(2)
        connects = [peer.received[0].connect for peer in fake.connections]
        assert [packet.clean_start for packet in connects] == [True, False]
        assert {packet.session_expiry_interval for packet in connects} == {300}
        assert {packet.client_id for packet in connects} == {"app-host-0-pub"}


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_not_acknowledged_goes_again(fake: FakeBroker, qos: int, kept: bool) -> None:
    """DUP says so where the broker has kept the session, and only there; new messages come behind."""
    fake.reply(PUBLISH, None)
    if kept:
        fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", str(index), qos=qos) for index in range(3)]
        first = await fake.connected()
        sent = await first.wait_for(PUBLISH, 3)
        first.send(ack(PUBACK if qos == 1 else PUBREC, sent[1].packet_id, 0x80))
        with pytest.raises(PublishRefused):
            await futures[1]
        fake.reply(PUBLISH, lambda peer, packet: ack(PUBACK if qos == 1 else PUBREC, packet.packet_id))
        lost = connection.sender.connection
        first.reset()
        await eventually(
            lambda: connection.sender.connection is not lost, what="the loss"
        )  # which may last no time at all
        futures.append(publisher.publish_nowait("a", "3", qos=qos))
        await asyncio.gather(futures[0], *futures[2:])
        again = fake.connections[-1].packets(PUBLISH)
        assert payloads(again) == [b"0", b"2", b"3"]
        assert [packet.dup for packet in again] == [kept, kept, False]
        if kept:
            assert [packet.packet_id for packet in again[:2]] == [sent[0].packet_id, sent[2].packet_id]


async def test_a_resumed_session_respects_a_smaller_window(fake: FakeBroker) -> None:
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", str(index)) for index in range(6)]
        first = await fake.connected()
        await first.wait_for(PUBLISH, 6)
        fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_present=True, receive_max=2))
        first.reset()
        second = await fake.connected(2)
        for answered in range(6):
            sent = await second.wait_for(PUBLISH, min(answered + 2, 6))
            assert len(sent) <= answered + 2
            second.send(ack(PUBACK, sent[answered].packet_id))
        await asyncio.gather(*futures)
        assert payloads(second.packets(PUBLISH)) == [b"%d" % index for index in range(6)]


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_resumed_session_respects_new_limits(fake: FakeBroker, qos: int) -> None:
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a/b", payload, qos=qos) for payload in ("x" * 20, "ok")]
        first = await fake.connected()
        await first.wait_for(PUBLISH, 2)
        fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_present=True, max_packet_size=20))
        first.reset()
        with pytest.raises(PublishRefused, match=r"its packet of 30 bytes is larger than the broker takes \(20\)"):
            await futures[0]
        second = await fake.connected(2)
        (packet,) = await second.wait_for(PUBLISH)
        assert packet.payload == b"ok"
        second.send(ack(PUBACK, packet.packet_id))
        await futures[1]
        assert connection.sender.messages == 0


async def test_a_packet_that_is_no_answer_is_not_waited_for(fake: FakeBroker) -> None:
    """Else a broken stream would be kept in memory, up to 256 MiB."""
    async with publishing_to(fake.url) as connection:
        peer = await fake.connected()
        peer.send(b"\x40\xff\xff\xff\x7f" + bytes(1000))
        await Publisher(connection.sender).publish("a")
        (disconnect,) = await peer.wait_for(PacketType.DISCONNECT)
        assert disconnect.decode(mqtt5.DisconnectPacket).reason_code == 0x95
        await Publisher(connection.sender).publish("a")
        assert fake.connections[-1] is not peer


async def test_an_answer_before_its_turn_to_go_again_ends_it(fake: FakeBroker) -> None:
    """The acknowledgement was on its way when the connection broke: a broker may send it after the resume."""
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        futures = [Publisher(connection.sender).publish_nowait("a", str(index)) for index in range(2)]
        first = await fake.connected()
        ids = [packet.packet_id for packet in await first.wait_for(PUBLISH, 2)]
        fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_present=True, receive_max=1))
        first.reset()
        second = await fake.connected(2)
        await second.wait_for(PUBLISH, 1)
        futures.append(Publisher(connection.sender).publish_nowait("a", "2"))
        second.send(ack(PUBACK, ids[1]))
        await futures[1]
        assert connection.sender._window == 0
        second.send(ack(PUBACK, ids[0]))
        third = (await second.wait_for(PUBLISH, 2))[1]
        assert third.payload == b"2"
        second.send(ack(PUBACK, third.packet_id))
        await asyncio.gather(*futures)
        assert len(second.packets(PUBLISH)) == 2


async def test_a_pubrec_before_its_turn_to_go_again_ends_the_publish_phase(fake: FakeBroker) -> None:
    """PUBLISH behind its PUBREL would be a new message."""
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        futures = [Publisher(connection.sender).publish_nowait("a", str(index), qos=2) for index in range(2)]
        first = await fake.connected()
        ids = [packet.packet_id for packet in await first.wait_for(PUBLISH, 2)]
        fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_present=True, receive_max=1))
        first.reset()
        second = await fake.connected(2)
        await second.wait_for(PUBLISH, 1)
        second.send(ack(PUBREC, ids[1]), ack(PUBREC, ids[0]))
        await asyncio.gather(*futures)
        assert [(packet.kind, packet.packet_id) for packet in second.received[1:]] == [
            (PUBLISH, ids[0]),
            (PUBREL, ids[0]),
            (PUBREL, ids[1]),
        ]


async def test_what_is_released_again_respects_a_smaller_window(fake: FakeBroker) -> None:
    """And so does what is new, though an answer has come."""
    fake.reply(PUBREL, None)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", qos=2) for _ in range(3)]
        first = await fake.connected()
        ids = [packet.packet_id for packet in await first.wait_for(PUBREL, 3)]
        fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_present=True, receive_max=1))
        fake.reply(PUBLISH, None)
        first.reset()
        second = await fake.connected(2)
        for count, packet_id in enumerate(ids, start=1):
            assert len(await second.wait_for(PUBREL, count)) == count
            second.send(ack(PUBCOMP, packet_id))
            await futures[count - 1]
            futures.append(publisher.publish_nowait("a", str(count)))
        for count in (1, 2, 3):
            sent = await second.wait_for(PUBLISH, count)
            assert payloads(sent) == [b"1", b"2", b"3"][:count]
            second.send(ack(PUBACK, sent[-1].packet_id))
        await asyncio.gather(*futures)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("kept", [True, False])
async def test_what_goes_again_has_lived_meanwhile(fake: FakeBroker, kept: bool, qos: int) -> None:
    """A command must not be new again because the connection was lost; nothing is left of the one that has expired."""
    fake.reply(PUBLISH, None)
    if kept:
        fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        gone = publisher.publish_nowait("a", "open the door", qos=qos, expiry=1000)
        fresh = publisher.publish_nowait("a", "fresh", qos=qos, expiry=3600)
        first = await fake.connected()
        gone_id = (await first.wait_for(PUBLISH, 2))[0].packet_id
        for entry in connection.sender._in_flight.values():
            assert entry.deadline is not None
            entry.deadline -= 3000
        fake.reply(PUBLISH, lambda peer, packet: ack(PUBACK if qos == 1 else PUBREC, packet.packet_id))
        first.reset()
        with pytest.raises(NotConnected) as caught:
            await gone
        assert str(caught.value) == "publish to 'a': it expired while the broker was away"
        await fresh
        second = fake.connections[-1]
        (packet,) = second.packets(PUBLISH)
        assert (packet.payload, packet.dup) == (b"fresh", kept)
        assert packet.publish.message_expiry_interval in {599, 600}
        assert (gone_id in {each.packet_id for each in second.packets(PUBREL)}) == (kept and qos == 2)
        await connection.sender.flushed()
        assert (connection.sender._window, connection.sender._spent) == (65_000, [])


async def test_qos_2_is_released_and_never_sent_again_after_pubrec(fake: FakeBroker) -> None:
    fake.reply(PUBREL, None)
    fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        future = Publisher(connection.sender).publish_nowait("a", qos=2)
        first = await fake.connected()
        (pubrel,) = await first.wait_for(PUBREL)
        fake.reply(PUBREL, lambda peer, packet: ack(PUBCOMP, packet.packet_id))
        first.reset()
        assert (await future).packet_id == pubrel.packet_id
        second = await fake.connected(2)
        assert [packet.kind for packet in second.received[1:]] == [PUBREL]


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_broker_reached_through_a_bad_line_gets_everything(mosquitto: Mosquitto, qos: int) -> None:
    """At least once with QoS 1, exactly once with QoS 2, in order, over many broken connections."""
    count = 300
    async with (
        Proxy(mosquitto.port) as proxy,
        client(mosquitto.url) as watcher,
        publishing_to(proxy.url) as connection,
    ):
        await watcher.subscribe("line/#")
        publisher = Publisher(connection.sender)
        cut = 0
        futures = []
        for index in range(count):
            futures.append(publisher.publish_nowait("line/x", str(index), qos=qos))
            if index % 50 == 25:
                cut += 1
                proxy.cut_after(Direction.TO_BROKER if cut % 2 else Direction.TO_CLIENT, 60 + index)
            if index % 10 == 0:
                await asyncio.sleep(0.005)
        await asyncio.gather(*futures)
        assert len(proxy.connections) > 3
        wanted = [b"%d" % index for index in range(count)]
        await eventually(lambda: set(payloads(watcher.messages)) == set(wanted), what="all messages")
        received = payloads(watcher.messages)
        assert list(dict.fromkeys(received)) == wanted
        if qos == 2:
            assert received == wanted


# What the broker closes the connection over


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    monkeypatch.setattr(dialer, "RIVAL_PAUSE", 0.0)


def closes_over(payload: bytes, connections: list[Peer]) -> Callable[[Peer, Packet], bytes | None]:
    """A broker that closes the connection over one payload, and acknowledges all others."""

    def answer(peer: Peer, packet: Packet) -> bytes | None:
        if packet.payload == payload:
            connections.append(peer)
            peer.close()
        return ack(PUBACK if packet.qos == 1 else PUBREC, packet.packet_id) if packet.qos else None

    return answer


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_publish_that_ends_every_connection_fails_and_all_others_get_through(
    fake: FakeBroker, qos: int, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[Peer] = []
    fake.reply(PUBLISH, closes_over(b"bad", ended))
    if kept:
        fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        before, bad, *behind = (
            publisher.publish_nowait("a/b", payload, qos=qos) for payload in ("before", "bad", "1", "2")
        )
        await before
        with pytest.raises(PublishRefused) as caught:
            await bad
        text = "publish to 'a/b': the broker closed the connection 3 times when it got this and nothing else"
        assert (str(caught.value), caught.value.reason_code) == (text, 0x80)
        assert f"{text}; it is not sent again" in caplog.text
        await asyncio.gather(*behind)
        assert len(ended) in {6, 7}  # the first may have ended with a PUBREL of "before" as the oldest
        for peer in ended[-3:]:
            assert payloads(peer.packets(PUBLISH))[-1] == b"bad"
        results = await asyncio.gather(*(publisher.publish_nowait("a", "x", qos=qos) for _ in range(50)))
        assert len({result.packet_id for result in results}) == 50
        assert (connection.sender.messages, connection.sender.bytes, connection.sender._suspects) == (0, 0, set())
        assert connection.sender._window == 65_000 - len(connection.sender._spent)
        assert bool(connection.sender._spent) == (qos == 2 and kept)


@pytest.mark.usefixtures("soon")
async def test_nothing_is_left_of_one_whose_sender_has_given_up(fake: FakeBroker) -> None:
    fake.reply(PUBLISH, closes_over(b"bad", []))
    fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        Publisher(connection.sender).publish_nowait("a", "bad").cancel()
        bad = Publisher(connection.sender).publish_nowait("a", "bad")
        await asyncio.sleep(0)
        bad.cancel()
        await Publisher(connection.sender).publish("a", "good")
        await connection.sender.flushed()


@pytest.mark.usefixtures("soon")
async def test_the_code_of_a_disconnect_is_that_of_the_refusal(fake: FakeBroker) -> None:
    def refuse(peer: Peer, packet: Packet) -> mqtt5.DisconnectPacket:
        return mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE)

    fake.reply(PUBLISH, refuse)
    async with publishing_to(fake.url) as connection:
        with pytest.raises(PublishRefused, match=r"nothing else: the broker disconnected: Packet too large") as caught:
            await Publisher(connection.sender).publish("a")
        assert caught.value.reason_code == 0x95


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("reason", [mqtt5.DisconnectReasonCode.SERVER_SHUTTING_DOWN, None])
async def test_a_broker_that_goes_away_for_other_reasons_condemns_nothing(
    fake: FakeBroker, reason: mqtt5.DisconnectReasonCode | None
) -> None:
    """It says so, or it ends the connections whose publishes it has answered as well."""

    def close(peer: Peer, packet: Packet) -> Any:
        if len(fake.connections) > 20:
            return ack(PUBACK, packet.packet_id)
        if reason is not None:
            return mqtt5.DisconnectPacket(reason_code=reason)
        peer.send(ack(PUBACK, packet.packet_id))
        peer.close()
        return None

    fake.reply(PUBLISH, close)
    async with publishing_to(fake.url) as connection:
        await asyncio.gather(*(Publisher(connection.sender).publish_nowait("a") for _ in range(40)))


@pytest.mark.usefixtures("soon")
async def test_a_release_may_be_the_culprit(fake: FakeBroker) -> None:
    """Nothing else would ever get through; its id is not used again in this session."""

    def release(peer: Peer, packet: Packet) -> bytes | None:
        if packet.packet_id == bad_id:
            peer.close()
            return None
        return ack(PUBCOMP, packet.packet_id)

    fake.reply(PUBREL, release)
    fake.reply(PacketType.CONNECT, resumed)
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        bad_id = (await publisher.publish("a", qos=1)).packet_id + 2
        before, bad, behind = (publisher.publish_nowait("a/b", qos=2) for _ in range(3))
        with pytest.raises(PublishRefused) as caught:
            await asyncio.wait_for(bad, 20)
        assert str(caught.value) == (
            "publish to 'a/b': the broker closed the connection 3 times when it got its PUBREL and nothing else"
        )
        await asyncio.gather(before, behind)
        assert len(fake.packets(PUBLISH)) == 4
        assert connection.sender._spent == [bad_id]
        assert (connection.sender.messages, connection.sender._window) == (0, 64_999)


@pytest.mark.usefixtures("soon")
async def test_a_dead_letter_that_the_broker_closes_the_connection_over_goes_to_the_disk(
    fake: FakeBroker, tmp_path: Path
) -> None:
    fake.reply(PUBLISH, closes_over(b"bad", []))
    app = App("closes", settings=Settings(instance="test", grace=5.0, state_dir=tmp_path))

    @app.topic("in/<name>", dead_letter="dead/<name>")
    async def handle() -> None:
        raise ValueError

    async with app.running(broker=fake.url):
        peer = await fake.subscribed()
        peer.publish("in/1", b"bad", qos=1, packet_id=1, subscription_ids=[subscription_id("in/+")])
        await peer.wait_for(PUBACK)
        (counts,) = app.stats.routes.values()
        assert counts.spooled == 1


# While the broker is away


async def test_publishes_wait_for_the_broker(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        futures = [publisher.publish_nowait("a", str(index), qos=index % 3) for index in range(9)]
        await eventually(lambda: "Connection refused" in connection.state, what=lambda: connection.state)
        assert connection.sender.messages == 9
        await fake.start()
        await asyncio.gather(*futures)
        assert payloads(fake.packets(PUBLISH)) == [b"%d" % index for index in range(9)]
        assert connection.state == ""
        assert (connection.sender.messages, connection.sender.bytes) == (0, 0)


async def test_the_queue_is_bounded_and_keeps_a_reserve(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url, max_messages=10, max_bytes=1000) as connection:
        futures = [connection.sender.submit(Publish("a", b"x")) for _ in range(10)]
        connection.state = "nobody is there"
        with pytest.raises(PublishQueueFull) as caught:
            connection.sender.submit(Publish("a/b", b""))
        assert str(caught.value) == (
            "publish of 0 bytes to 'a/b': 10 publishes with 10 bytes are not done yet, and at most 10 with 1000 may be "
            "(MQTTAPI_MAX_OUTGOING, MQTTAPI_MAX_OUTGOING_BYTES); nobody is there"
        )
        futures.append(connection.sender.submit(Publish("dead", b""), reserved=True))
        with pytest.raises(PublishQueueFull):
            connection.sender.submit(Publish("dead", b""), reserved=True)
        assert connection.sender.messages == 11
        await fake.start()
        await asyncio.gather(*futures)


async def test_the_queue_is_bounded_in_bytes(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url, max_bytes=100) as connection:
        future = connection.sender.submit(Publish("a", b"x" * 100))
        with pytest.raises(PublishQueueFull):
            connection.sender.submit(Publish("a", b"x"))
        connection.sender.submit(Publish("a", b"x" * 10), reserved=True).cancel()
        future.cancel()
        await asyncio.sleep(0)
        assert (connection.sender.messages, connection.sender.bytes) == (0, 0)


async def test_a_time_out_gives_up_and_frees_its_place(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url, max_messages=1) as connection:
        for _ in range(3):
            with pytest.raises(NotConnected):
                await Publisher(connection.sender).publish("a", timeout=0.01)
        await fake.start()
        await Publisher(connection.sender).publish("a", "late")
        assert payloads(fake.packets(PUBLISH)) == [b"late"]


async def test_what_expires_while_it_waits_is_not_sent(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)
        gone = publisher.publish_nowait("a", "open the door", expiry=0)
        fresh = publisher.publish_nowait("a", "fresh", expiry=3600)
        await fake.start()
        with pytest.raises(NotConnected) as caught:
            await gone
        assert str(caught.value) == "publish to 'a': it expired while the broker was away"
        await fresh
        (packet,) = fake.packets(PUBLISH)
        assert packet.payload == b"fresh"
        assert packet.publish.message_expiry_interval in {3599, 3600}


@pytest.mark.parametrize("in_one_turn", [True, False])
async def test_a_broker_that_stops_reading_makes_publishes_wait(fake: FakeBroker, in_one_turn: bool) -> None:
    """QoS 0 is done when it is written, so a full socket holds it back, and memory stays bounded."""
    async with Proxy(fake.port) as proxy, publishing_to(proxy.url, max_messages=200) as connection:
        publisher = Publisher(connection.sender)
        await publisher.publish("a")
        proxy.pause(Direction.TO_BROKER)
        payload = b"x" * 200_000
        with pytest.raises(PublishQueueFull):
            while True:
                publisher.publish_nowait("a", payload, qos=0)
                if not in_one_turn:
                    await asyncio.sleep(0)
        assert connection.sender.connection is not None
        assert connection.sender.connection.unsent < 1_000_000
        proxy.resume()
        await asyncio.wait_for(connection.sender.flushed(), 20)
        assert await publisher.publish("a")


async def test_connections_that_stand_for_a_moment_come_ever_slower(fake: FakeBroker) -> None:
    def accept_and_close(peer: Peer, packet: Packet) -> None:
        peer.send(connack())
        peer.close()

    fake.reply(PacketType.CONNECT, accept_and_close)
    async with publishing_to(fake.url) as connection:
        await fake.connected(4)
        assert connection._dialer.failures >= 3


@pytest.mark.usefixtures("soon")
async def test_an_error_that_nobody_thought_of_is_logged_and_ends_nothing(
    fake: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing_to(fake.url) as connection:
        await Publisher(connection.sender).publish("a")
        fails = iter((True, True))
        open_, connected = connection._dialer.open, connection.sender.connected

        async def fail_to_open(*arguments: Any) -> Any:
            if next(fails, False):
                raise RuntimeError("thought of by nobody")
            monkeypatch.setattr(connection.sender, "connected", fail_behind)
            return await open_(*arguments)

        def fail_behind(*arguments: Any) -> None:
            connected(*arguments)
            monkeypatch.undo()
            raise RuntimeError("nor this")

        monkeypatch.setattr(connection._dialer, "open", fail_to_open)
        fake.connections[0].reset()
        await eventually(lambda: "nor this" in caplog.text, what="the errors")
        await Publisher(connection.sender).publish("a")
        assert caplog.text.count("test-pub failed: this is a bug in mqttapi; trying again") == 3
        assert fake.connections[-2].closed


# Threads, and the end


async def test_a_thread_may_publish(fake: FakeBroker) -> None:
    async with publishing_to(fake.url) as connection:
        publisher = Publisher(connection.sender)

        def work() -> list[asyncio.Future[PublishResult]]:
            return [publisher.publish_nowait("a", str(index), qos=index % 3) for index in range(30)]

        await asyncio.gather(*await asyncio.to_thread(work))
        assert payloads(fake.packets(PUBLISH)) == [b"%d" % index for index in range(30)]


async def test_a_thread_finds_the_queue_full(fake: FakeBroker) -> None:
    await fake.stop()
    async with publishing_to(fake.url, max_messages=5) as connection:

        def work() -> int:
            for count in range(100):
                try:
                    Publisher(connection.sender).publish_nowait("a").add_done_callback(
                        lambda future: future.exception()
                    )
                except PublishQueueFull:
                    return count
            return -1

        assert await asyncio.to_thread(work) == 5


async def test_flushed_waits_for_every_answer(fake: FakeBroker) -> None:
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        await connection.sender.flushed()
        future = Publisher(connection.sender).publish_nowait("a")
        flushed = asyncio.create_task(connection.sender.flushed())
        peer = await fake.connected()
        (packet,) = await peer.wait_for(PUBLISH)
        assert not flushed.done()
        peer.send(ack(PUBACK, packet.packet_id))
        await flushed
        assert future.done()


async def test_the_end_says_goodbye_and_gives_up_what_is_left(fake: FakeBroker) -> None:
    fake.reply(PUBLISH, None)
    async with publishing_to(fake.url) as connection:
        future = Publisher(connection.sender).publish_nowait("a")
        peer = await fake.connected()
        await peer.wait_for(PUBLISH)
    (disconnect,) = peer.packets(PacketType.DISCONNECT)
    assert disconnect.decode(mqtt5.DisconnectPacket).session_expiry_interval == 0
    with pytest.raises(NotConnected) as caught:
        await future
    assert str(caught.value) == "publish to 'a': the app has stopped before the broker confirmed it"


async def test_what_was_published_in_the_last_turn_is_written(fake: FakeBroker) -> None:
    async with publishing_to(fake.url) as connection:
        await Publisher(connection.sender).publish("a")
        future = Publisher(connection.sender).publish_nowait("a", "goodbye", qos=0)
    await future
    assert payloads(fake.packets(PUBLISH))[-1] == b"goodbye"


# The version


async def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_it(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, lambda peer, packet: connack(0 if peer.version == 4 else 1, version=4))
    async with publishing_to(fake.url, protocol_fallback=True) as connection:
        assert (await Publisher(connection.sender).publish("a", qos=2)).packet_id
        assert fake.connections[-1].version == 4


async def test_without_leave_there_is_no_fall_back(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, connack(1, version=4))
    async with publishing_to(fake.url) as connection:
        await fake.connected(2)
        assert "it does not speak this version of MQTT" in connection.state
        assert {peer.version for peer in fake.connections} == {5}
