"""`Connection` against a real broker on every transport, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING

import mqtt5
import pytest
from pydantic import SecretStr

from mqttapi.errors import BrokerError, ConnectionRefused, NotConnected
from mqttapi.publisher import Publish
from mqttapi.transport.connection import Closed, Connack, Connection, Subscription, internals_available
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType, connack, publish, suback
from tests.support.waiting import eventually
from tests.transport.options import options_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.fake_broker import Connection as Peer
    from tests.support.packets import Packet


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with Mosquitto(tls="mutual", websockets=True, unix=True) as mosquitto:
        yield mosquitto


@pytest.fixture
async def fake() -> AsyncIterator[FakeBroker]:
    async with FakeBroker() as fake_broker:
        yield fake_broker


async def refusal_of(connection: Connection) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        await connection.open()
    assert connection.closed.done()
    return caught.value


def test_the_internals_are_there() -> None:
    assert internals_available() == []


# Every transport


@pytest.mark.parametrize("transport", ["url", "tls_url", "websocket_url", "unix_url"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_everything_works_on_every_transport(broker: Mosquitto, transport: str, protocol: str) -> None:
    """Larger messages than a socket takes at once come back whole, between packets of paho's."""
    tls = broker.client_context() if transport == "tls_url" else None
    connection = Connection(options_for(getattr(broker, transport), protocol=protocol, tls=tls))
    received: list[bytes] = []
    connection.on_message = lambda message: received.append(bytes(message.payload))
    mqtt5_spoken = protocol == "5"
    connected = await connection.open()
    assert connected.subscription_ids_available is mqtt5_spoken
    connection.start()
    wanted = [Subscription("t/#", 0, id=7 if mqtt5_spoken else None), Subscription("u", 2), Subscription("v", 1)]
    assert await connection.subscribe_all(wanted) == [0, 2, 1]
    # mosquitto's WebSockets pass 4 KiB each 100 ms
    payloads = [bytes([index]) * (2_000 if transport == "websocket_url" else 400_000) for index in range(8)]
    for payload in payloads:
        connection.write(publish("t/x", payload, version=5 if mqtt5_spoken else 4))
    codes = await connection.unsubscribe_all(["u", "w"])
    assert codes == ([0, 0x11] if mqtt5_spoken else [])
    await eventually(lambda: len(received) == len(payloads), what=lambda: f"{len(received)} messages")
    assert received == payloads
    assert connection.unsent == 0
    await connection.close()
    assert connection.closed.result() == Closed("closed by us", by_us=True)


async def test_as_a_context_manager_it_opens_and_closes(broker: Mosquitto) -> None:
    async with Connection(options_for(broker.url)) as connection:
        assert await connection.subscribe_all([Subscription("a")]) == [1]
    assert connection.closed.result().by_us


# Opening


async def test_connack_is_a_value(fake: FakeBroker) -> None:
    fake.reply(
        PacketType.CONNECT,
        mqtt5.ConnAckPacket(
            session_present=True,
            receive_max=7,
            max_packet_size=1000,
            max_qos=mqtt5.QoS.AT_LEAST_ONCE,
            retain_available=False,
            wildcard_subscription_available=False,
            subscription_id_available=False,
            shared_subscription_available=False,
            session_expiry_interval=30,
            server_keep_alive=5,
            assigned_client_id="me",
            topic_alias_max=3,
            reason_str="hello",
            user_properties=[("a", "b")],
        ),
    )
    connection = Connection(options_for(fake.url))
    assert await connection.open() == Connack(
        session_present=True,
        receive_maximum=7,
        maximum_packet_size=1000,
        maximum_qos=1,
        retain_available=False,
        wildcard_available=False,
        subscription_ids_available=False,
        shared_available=False,
        session_expiry=30,
        server_keep_alive=5,
        assigned_client_id="me",
        topic_alias_maximum=3,
        reason="hello",
        user_properties=(("a", "b"),),
    )
    await connection.close()


async def test_connect_says_what_the_options_say(fake: FakeBroker) -> None:
    will = Publish("status", b"gone", 1, retain=True, content_type="text/plain", user_properties={"a": "b"})
    options = options_for(
        fake.url.replace("//", "//ada:secret@"),
        client_id="me",
        clean_start=False,
        session_expiry=77,
        receive_maximum=9,
        maximum_packet=1234,
        keepalive=33,
        will=will,
        will_delay=4,
    )
    connection = Connection(options)
    await connection.open()
    sent = (await fake.connected()).received[0].connect
    assert (sent.client_id, sent.username, sent.password) == ("me", "ada", b"secret")
    assert (sent.clean_start, sent.session_expiry_interval, sent.keep_alive) == (False, 77, 33)
    assert (sent.receive_max, sent.max_packet_size) == (9, 1234)
    assert sent.will is not None
    assert (sent.will.topic, sent.will.payload, int(sent.will.qos), sent.will.retain) == ("status", b"gone", 1, True)
    assert (sent.will.content_type, sent.will.will_delay_interval) == ("text/plain", 4)
    assert sent.will.user_properties == [("a", "b")]
    assert "secret" not in repr(options)
    await connection.close()


async def test_credentials_are_asked_for_at_each_connect(fake: FakeBroker) -> None:
    asked = iter(
        [("u", "one"), ("u", SecretStr("two")), SimpleNamespace(username=None, password="three"), (None, None)]
    )

    async def credentials() -> object:
        return next(asked)

    for _ in range(4):
        connection = Connection(options_for(fake.url.replace("//", "//x:y@"), credentials=credentials))
        await connection.open()
        await connection.close()
    sent = [packet.connect for packet in fake.packets(PacketType.CONNECT)]
    assert [(each.username, each.password) for each in sent] == [
        ("u", b"one"),
        ("u", b"two"),
        ("", b"three"),
        (None, None),
    ]


async def test_a_password_without_a_user_name_is_sent(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url.replace("//", "//:secret@")))
    await connection.open()
    await connection.close()
    assert fake.packets(PacketType.CONNECT)[0].connect.password == b"secret"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ValueError("hunter2"), "credentials: credentials() raised ValueError"),
        (None, "credentials: credentials() must return (username, password), both str or None, not NoneType"),
        (("hunter2",), "credentials: credentials() must return (username, password), both str or None, not (str)"),
        (
            ("u", b"hunter2"),
            "credentials: credentials() must return (username, password), both str or None, not (str, bytes)",
        ),
    ],
)
async def test_credentials_that_cannot_be_had_are_an_error_without_secrets(
    fake: FakeBroker, answer: object, text: str
) -> None:
    async def credentials() -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    error = await refusal_of(Connection(options_for(fake.url, credentials=credentials)))
    assert (type(error), str(error)) == (NotConnected, text)
    assert fake.connections == []


async def test_credentials_that_never_come_are_given_up(fake: FakeBroker) -> None:
    async def credentials() -> object:
        return await asyncio.get_running_loop().create_future()

    error = await refusal_of(Connection(options_for(fake.url, credentials=credentials, timeout=0.1)))
    assert str(error) == "credentials: credentials() took longer than 0.1 s"


async def test_on_3_1_1_a_session_that_ends_with_its_connection_is_clean(fake: FakeBroker) -> None:
    for expiry in (0, 60):
        connection = Connection(options_for(fake.url, protocol="3.1.1", clean_start=False, session_expiry=expiry))
        await connection.open()
        await connection.close()
    assert [packet.connect.clean_start for packet in fake.packets(PacketType.CONNECT)] == [True, False]


@pytest.mark.parametrize("code", [0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C])
async def test_a_refusal_for_good_is_told_from_others(fake: FakeBroker, code: int) -> None:
    fake.reply(PacketType.CONNECT, connack(code))
    error = await refusal_of(Connection(options_for(fake.url)))
    assert isinstance(error, ConnectionRefused)
    assert error.reason_code == code


@pytest.mark.parametrize("code", [0x80, 0x88, 0x89, 0x97, 0x9C, 0x9F])
async def test_any_other_refusal_may_pass(fake: FakeBroker, code: int) -> None:
    fake.reply(PacketType.CONNECT, connack(code))
    error = await refusal_of(Connection(options_for(fake.url)))
    assert isinstance(error, NotConnected)
    assert f"0x{code:02X}" in str(error)


@pytest.mark.parametrize(("code", "reason_code"), [(1, 0x84), (2, 0x85), (4, 0x86), (5, 0x87)])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_codes_of_3_1_1_are_given_as_those_of_5(
    fake: FakeBroker, code: int, reason_code: int, protocol: str
) -> None:
    """Also on a connection that asked for 5: brokers that do not know it answer in their own way."""
    fake.reply(PacketType.CONNECT, connack(code, version=4))
    error = await refusal_of(Connection(options_for(fake.url, protocol=protocol)))
    assert isinstance(error, ConnectionRefused)
    assert error.reason_code == reason_code


async def test_the_text_of_a_refusal() -> None:
    with Mosquitto(users={"ada": "secret"}) as mosquitto:
        error = await refusal_of(Connection(options_for(mosquitto.url.replace("//", "//ada:wrong@"))))
    assert str(error) == (
        f"{mosquitto.url} refuses the connection: Not authorized (0x87): "
        "check the user name, the password and the broker's access list"
    )


async def test_the_brokers_own_words_go_before_ours(fake: FakeBroker) -> None:
    reply = mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.NOT_AUTHORIZED, reason_str="pay first")
    fake.reply(PacketType.CONNECT, reply)
    error = await refusal_of(Connection(options_for(fake.url)))
    assert str(error) == f"{fake.url} refuses the connection: Not authorized (0x87): pay first"


async def test_a_broker_that_closes_without_a_word_is_noticed_at_once(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, lambda peer, packet: peer.close())
    error = await refusal_of(Connection(options_for(fake.url, timeout=60)))
    assert isinstance(error, NotConnected)
    assert error.closed_before_connack
    assert str(error) == (
        f"{fake.url} closed the connection before its CONNACK: does this port want TLS (mqtts:// or wss://)?"
    )


async def test_a_broker_that_says_nothing_is_given_up(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, None)
    error = await refusal_of(Connection(options_for(fake.url, timeout=0.1)))
    assert str(error) == f"no CONNACK from {fake.url} within 0.1 s"
    assert isinstance(error, NotConnected)
    assert not error.closed_before_connack


@pytest.mark.parametrize("answer", [b"\x20\x00", b"\x20\x01\x00", b"\x20\x03\x00\x00\x07", b"\x20\xff\xff\xff\xff\x01"])
async def test_a_malformed_connack_is_no_crash(fake: FakeBroker, answer: bytes) -> None:
    fake.reply(PacketType.CONNECT, answer)
    assert isinstance(await refusal_of(Connection(options_for(fake.url))), NotConnected)


async def test_something_else_than_a_broker_is_told(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    error = await refusal_of(Connection(options_for(fake.url)))
    assert str(error) == f"{fake.url} does not speak MQTT: its first bytes are 48 54 54 50 2f 31 2e 31"


async def test_an_unknown_host_is_told_with_the_setting() -> None:
    error = await refusal_of(Connection(options_for("mqtt://foo.invalid")))
    assert isinstance(error, NotConnected)
    assert str(error) == "cannot resolve broker host 'foo.invalid' (MQTT_URL)"


async def test_a_host_that_no_resolver_takes_is_told_with_the_setting() -> None:
    options = options_for("mqtt://foo.invalid")
    options = dataclasses.replace(options, broker=dataclasses.replace(options.broker, host="a..b"))
    error = await refusal_of(Connection(options))
    assert (type(error), str(error)) == (NotConnected, "cannot resolve broker host 'a..b' (MQTT_URL)")


async def test_nobody_listening_is_told(fake: FakeBroker) -> None:
    await fake.stop()
    error = await refusal_of(Connection(options_for(fake.url)))
    assert isinstance(error, NotConnected)
    assert str(error) == f"cannot connect to {fake.url}: Connection refused"


async def test_tls_to_a_plain_listener(broker: Mosquitto) -> None:
    error = await refusal_of(Connection(options_for(f"mqtts://127.0.0.1:{broker.port}", tls=broker.client_context())))
    assert isinstance(error, ConnectionRefused)
    where = f"127.0.0.1:{broker.port}"
    assert str(error) == f"TLS handshake with {where} failed: is port {broker.port} a plain listener? (MQTT_URL)"


async def test_plain_to_a_tls_listener(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, b"\x15\x03\x03\x00\x02\x02\x46")  # a TLS alert
    error = await refusal_of(Connection(options_for(fake.url)))
    assert isinstance(error, ConnectionRefused)
    assert str(error) == f"{fake.url} answers with TLS: use mqtts:// (or wss://) for this port"


async def test_a_certificate_that_nobody_vouches_for(broker: Mosquitto) -> None:
    error = await refusal_of(Connection(options_for(broker.tls_url)))
    assert isinstance(error, ConnectionRefused)
    where = f"localhost:{broker.tls_port}"
    assert str(error).startswith(f"TLS handshake with {where} failed: ")
    assert str(error).endswith("(checked with the system's CAs; MQTT_URL)")


async def test_a_certificate_that_we_lack(broker: Mosquitto) -> None:
    context = ssl.create_default_context(cafile=broker.ca_file)
    error = await refusal_of(Connection(options_for(broker.tls_url, tls=context)))
    assert isinstance(error, ConnectionRefused)
    assert str(error).endswith("the broker wants another client certificate (MQTT_TLS_CERT_FILE)")


async def test_a_web_socket_where_none_is(broker: Mosquitto) -> None:
    error = await refusal_of(Connection(options_for(f"ws://127.0.0.1:{broker.port}/x")))
    assert isinstance(error, NotConnected)
    assert "is '/x' the right path?" in str(error)


async def test_an_open_that_is_cancelled_leaves_nothing_behind(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, None)
    connection = Connection(options_for(fake.url))
    task = asyncio.create_task(connection.open())
    peer = await fake.connected()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: peer.closed, what="the end of the connection")


async def test_nothing_behind_the_connack_is_read_before_start(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, connack() + publish("a", b"1") + publish("a", b"2"))
    connection = Connection(options_for(fake.url))
    received: list[bytes] = []
    await connection.open()
    await asyncio.sleep(0)
    connection.on_message = lambda message: received.append(bytes(message.payload))
    connection.start()
    await eventually(lambda: received == [b"1", b"2"], what=lambda: repr(received))
    await connection.close()


# Reading


async def test_a_receiver_reads_what_the_socket_holds(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url))
    chunks: list[bytes | None] = []
    await connection.open()
    connection.start(lambda: chunks.append(connection.read()))
    packets = b"".join(publish("a", b"x" * 50) for _ in range(20))
    (await fake.connected()).send(packets)
    await eventually(lambda: b"".join(chunk or b"" for chunk in chunks) == packets, what=lambda: repr(chunks))
    assert connection.read() is None
    await connection.close()


async def test_tls_is_read_until_nothing_is_pending(broker: Mosquitto) -> None:
    """Several records wait decrypted after one readiness."""
    connection = Connection(options_for(broker.tls_url, tls=broker.client_context()))
    await connection.open()
    received = bytearray()

    def receive() -> None:
        received.extend(connection.read(1 << 20) or b"")
        assert connection._wire is not None
        assert not connection._wire.pending

    connection.start()
    await connection.subscribe_all([Subscription("tls/#", 0)])
    connection.receiver = receive
    connection.write(publish("tls/x", b"x" * 300_000, version=5))
    await eventually(lambda: len(received) > 300_000, what=lambda: f"{len(received)} bytes")
    await connection.close()


async def test_a_receiver_that_leaves_decrypted_bytes_is_called_again(broker: Mosquitto) -> None:
    """A read may end within a record: the socket reports nothing more, and yet there is something."""
    connection = Connection(options_for(broker.tls_url, tls=broker.client_context()))
    await connection.open()
    received = bytearray()
    connection.start()
    await connection.subscribe_all([Subscription("part/#", 0)])
    connection.receiver = lambda: received.extend(connection.read(1000) or b"")
    connection.write(publish("part/x", b"x" * 100_000, version=5))
    await eventually(lambda: len(received) > 100_000, what=lambda: f"{len(received)} bytes")
    await connection.close()


async def test_a_closed_connection_says_who_closed_it(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url))
    await connection.open()
    connection.start()
    (await fake.connected()).close()
    closed = await asyncio.wait_for(connection.closed, 5)
    assert closed == Closed("the broker closed the connection")


async def test_a_disconnect_says_why(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url))
    await connection.open()
    connection.start()
    reason = mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
    (await fake.connected()).send(mqtt5.DisconnectPacket(reason_code=reason, reason_str="a twin"))
    closed = await asyncio.wait_for(connection.closed, 5)
    assert closed == Closed("the broker disconnected: Session taken over (0x8E): a twin", reason_code=0x8E)


@pytest.mark.parametrize(
    ("packet", "code"),
    [(b"\x90\x01\x00", 0x81), (b"\x00\x00", 0x82), (b"\xd0\x01\x00", 0x82), (b"\xe0\x01\x01", 0x81)],
)
async def test_nonsense_ends_the_connection_with_its_reason(fake: FakeBroker, packet: bytes, code: int) -> None:
    connection = Connection(options_for(fake.url))
    await connection.open()

    def receive() -> None:
        if data := connection.read():
            connection.feed_packet(data[0], data[2:])

    connection.start(receive)
    peer = await fake.connected()
    peer.send(packet)
    (disconnect,) = await peer.wait_for(PacketType.DISCONNECT)
    assert disconnect.reason_code == code
    closed = await asyncio.wait_for(connection.closed, 5)
    assert closed.by_us


async def test_a_receiver_that_fails_ends_the_connection(fake: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection(options_for(fake.url))
    await connection.open()

    def fail() -> None:
        raise ZeroDivisionError

    connection.start(fail)
    (await fake.connected()).publish("a")
    closed = await asyncio.wait_for(connection.closed, 5)
    assert closed == Closed("internal error", by_us=True)
    assert "this is a bug in mqttapi" in caplog.text


# Keepalive and pauses


async def test_a_quiet_connection_pings(fake: FakeBroker) -> None:
    async with Connection(options_for(fake.url, keepalive=1)) as connection:
        await (await fake.connected()).wait_for(PacketType.PINGREQ, 2)
        assert not connection.closed.done()


async def test_the_servers_keep_alive_goes_before_ours(fake: FakeBroker) -> None:
    fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(server_keep_alive=1))
    async with Connection(options_for(fake.url, keepalive=600)):
        await (await fake.connected()).wait_for(PacketType.PINGREQ)


async def test_a_dead_peer_is_given_up(fake: FakeBroker) -> None:
    fake.reply(PacketType.PINGREQ, None)
    async with Connection(options_for(fake.url, keepalive=1)) as connection:
        closed = await asyncio.wait_for(asyncio.shield(connection.closed), 5)
        assert closed == Closed("the broker does not answer PINGREQ")


async def test_a_pause_longer_than_the_keepalive_pings_and_forgives(fake: FakeBroker) -> None:
    """The answers to our PINGREQs stay unread, and are no sign of death; nothing is lost over the pause."""
    async with Connection(options_for(fake.url, keepalive=1)) as connection:
        received: list[bytes] = []
        connection.on_message = lambda message: received.append(bytes(message.payload))
        connection.pause_reading()
        peer = await fake.connected()
        peer.publish("a", b"1")
        await peer.wait_for(PacketType.PINGREQ, 4)
        assert not connection.closed.done()
        assert not received
        connection.resume_reading()
        await eventually(lambda: received == [b"1"], what=lambda: repr(received))


# Writing


async def test_packets_of_both_kinds_leave_in_the_order_of_the_calls(fake: FakeBroker) -> None:
    """A write that the socket takes in part is finished before paho's SUBSCRIBE, and before the next write."""
    connection = Connection(options_for(fake.url))
    await connection.open()
    connection.start()
    big = b"x" * 20_000_000
    connection.write(publish("a", big, version=5))
    assert connection.unsent
    drained: list[bool] = []
    connection.on_drained = lambda: drained.append(True)
    subscribed = asyncio.create_task(connection.subscribe_all([Subscription("s")]))
    await asyncio.sleep(0)
    connection.write(publish("b", b"2", version=5))
    peer = await fake.connected()
    assert await subscribed == [1]
    await eventually(lambda: len(peer.received) == 4, what=lambda: repr(peer.received))
    kinds = [packet.kind for packet in peer.received[1:]]
    assert kinds == [PacketType.PUBLISH, PacketType.SUBSCRIBE, PacketType.PUBLISH]
    assert peer.received[1].payload == big
    assert drained == [True]
    await connection.close()


async def test_writing_to_a_lost_connection_does_nothing(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url))
    await connection.open()
    connection.abort(0x80, "enough")
    connection.write(b"\xc0\x00")
    assert connection.unsent == 0
    with pytest.raises(NotConnected, match="enough"):
        await connection.subscribe_all([Subscription("a")])


# Subscribing


async def test_one_subscribe_per_identifier(fake: FakeBroker) -> None:
    async with Connection(options_for(fake.url)) as connection:
        wanted = [
            Subscription("a", 0, id=1),
            Subscription("b", 1, id=2),
            Subscription("c", 2, id=1),
            Subscription("d", 1, no_local=True, retain_as_published=True, retain_handling=2),
        ]
        assert await connection.subscribe_all(wanted) == [0, 1, 2, 1]
        packets = [packet.subscribe for packet in (await fake.connected()).packets(PacketType.SUBSCRIBE)]
        assert [(p.subscription_id, [f.pattern for f in p.topic_filters]) for p in packets] == [
            (1, ["a", "c"]),
            (2, ["b"]),
            (None, ["d"]),
        ]
        last = packets[-1].topic_filters[0]
        assert (last.no_local, last.retain_as_published, int(last.retain_handling)) == (True, True, 2)


async def test_refused_filters_are_the_callers_business(fake: FakeBroker) -> None:
    fake.reply(PacketType.SUBSCRIBE, lambda peer, packet: suback(packet.packet_id, [0x87, 1]))
    async with Connection(options_for(fake.url)) as connection:
        assert await connection.subscribe_all([Subscription("a"), Subscription("b")]) == [0x87, 1]


async def test_a_suback_with_too_few_codes_ends_the_connection(fake: FakeBroker) -> None:
    fake.reply(PacketType.SUBSCRIBE, lambda peer, packet: suback(packet.packet_id, [0]))
    async with Connection(options_for(fake.url)) as connection:
        with pytest.raises(NotConnected, match=r"1 reason codes for 2 filters \[MQTT-3.9.3-1\]"):
            await connection.subscribe_all([Subscription("a"), Subscription("b")])
        assert connection.closed.done()


async def test_a_missing_suback_is_given_up(fake: FakeBroker) -> None:
    fake.reply(PacketType.SUBSCRIBE, None)
    fake.reply(PacketType.UNSUBSCRIBE, None)
    async with Connection(options_for(fake.url)) as connection:
        with pytest.raises(NotConnected) as caught:
            await connection.subscribe_all([Subscription("a")], timeout=0.05)
        assert str(caught.value) == f"no SUBACK from {fake.url} within 0.05 s"
        with pytest.raises(NotConnected, match="no UNSUBACK"):
            await connection.unsubscribe_all(["a"], timeout=0.05)


async def test_a_connection_lost_while_subscribing_is_told(fake: FakeBroker) -> None:
    fake.reply(PacketType.SUBSCRIBE, lambda peer, packet: peer.close())
    async with Connection(options_for(fake.url)) as connection:
        with pytest.raises(NotConnected, match=r"no SUBACK from .*: the broker closed the connection"):
            await connection.subscribe_all([Subscription("a")])


async def test_a_time_out_does_not_run_while_paused(fake: FakeBroker) -> None:
    waiting: list[tuple[Peer, Packet]] = []
    fake.reply(PacketType.SUBSCRIBE, lambda peer, packet: waiting.append((peer, packet)))
    async with Connection(options_for(fake.url, keepalive=1)) as connection:
        task = asyncio.create_task(connection.subscribe_all([Subscription("a")], timeout=0.05))
        peer = await fake.connected()
        await peer.wait_for(PacketType.SUBSCRIBE)
        connection.pause_reading()
        await peer.wait_for(PacketType.PINGREQ, 1)  # much longer than the time-out
        assert not task.done()
        peer.send(suback(waiting[0][1].packet_id, [1]))
        connection.resume_reading()
        assert await task == [1]


# Closing


async def test_a_normal_end_has_no_will(broker: Mosquitto) -> None:
    async with client(broker.url) as watcher:
        await watcher.subscribe("wills/#")
        for reason_code, expected in ((0, []), (0x04, [b"gone"])):
            options = options_for(broker.url, client_id=f"w{reason_code}", will=Publish("wills/x", b"gone", 0))
            connection = Connection(options)
            await connection.open()
            await connection.close(reason_code)
            await watcher.ping()
            assert [message.payload for message in watcher.messages] == expected


async def test_close_can_change_how_long_the_session_lasts(fake: FakeBroker) -> None:
    connection = Connection(options_for(fake.url, session_expiry=100))
    await connection.open()
    await connection.close(session_expiry=0)
    (packet,) = await (await fake.connected()).wait_for(PacketType.DISCONNECT)
    decoded = packet.decode(mqtt5.DisconnectPacket)
    assert decoded.session_expiry_interval == 0
    assert decoded.reason_code == 0


async def test_what_was_written_before_close_arrives_although_messages_are_unread(broker: Mosquitto) -> None:
    """A socket closed with bytes unread would be reset, and what it had sent could be lost."""
    async with client(broker.url) as watcher:
        await watcher.subscribe("last/#")
        connection = Connection(options_for(broker.url, client_id="closing"))
        await connection.open()
        connection.start()
        await connection.subscribe_all([Subscription("flood", 0)])
        connection.pause_reading()
        for _ in range(200):
            await watcher.publish("flood", b"x" * 1000, qos=0)
        await watcher.ping()
        for index in range(50):
            connection.write(publish(f"last/{index}", version=5))
        await connection.close()
        await watcher.wait_for(50)


@pytest.mark.parametrize("ids", [True, False])
async def test_subscribe_and_unsubscribe_obey_the_maximum_packet_size(fake: FakeBroker, ids: bool) -> None:
    fake.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(max_packet_size=100))
    async with Connection(options_for(fake.url)) as connection:
        filters = [f"plant/line-{index}/+" for index in range(20)]
        wanted = [Subscription(each, index % 3, id=268_435_455 if ids else None) for index, each in enumerate(filters)]
        assert await connection.subscribe_all(wanted) == [index % 3 for index in range(20)]
        assert await connection.unsubscribe_all(filters) == [0] * 20
        for kind in (PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE):
            packets = fake.packets(kind)
            assert [each for packet in packets for each in packet.filters] == filters
            assert 4 <= len(packets) <= 7
            assert max(len(packet.body) + 2 for packet in packets) <= 100
