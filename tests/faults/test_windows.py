"""Windows that are full, brokers that do not keep to them, subscriptions that overlap or have changed."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import trustme

from mqttapi import App
from mqttapi.service import Service
from tests.faults.support import AppProcess, Row, app_called, consumers, publish_all, texts
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.packets import Packet, PacketType, connack, publish
from tests.support.process import HOST, free_port
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]
Before = Callable[..., Awaitable[Proxy]]
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
TO_BROKER, TO_CLIENT = Direction


@VERSIONS
async def test_a_window_of_20_with_its_head_stuck_waits_and_then_flows(
    mosquitto: Mosquitto, proxy: Before, fault: Row, version: str
) -> None:
    fault(
        f"a window of 20 with the head stuck ({version})", "the others run, nothing overtakes, all flows once it ends"
    )
    between = await proxy(mosquitto.port)
    app = app_called("head", protocol=version)
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>")
    async def handle(id: str, payload: str) -> None:
        if id == "0":
            await gate.wait()
        handled[payload] += 1

    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(100)], texts(100))
        # mosquitto 2.0.11 sends more than its window, so how many run is its affair.
        await eventually(lambda: len(handled) >= 19)
        assert between.packets(TO_BROKER, PacketType.PUBACK) == []
        assert "0" not in handled
        gate.set()
        await between.wait_for(TO_BROKER, PacketType.PUBACK, 100)
        assert _ids(between, TO_BROKER, PacketType.PUBACK) == _ids(between, TO_CLIENT, PacketType.PUBLISH)
    fault.settle(texts(100), handled)


async def test_a_head_that_never_ends_is_given_up_at_its_timeout(mosquitto: Mosquitto, fault: Row) -> None:
    fault("a window of 20 with the head stuck for ever", "its time-out ends it, all flows")
    app = app_called("stuck")
    handled: Counter[str] = Counter()

    @app.topic("s/<id>", timeout=0.2)
    async def handle(id: str, payload: str) -> None:
        if id == "0":
            await asyncio.Event().wait()
        handled[payload] += 1

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(100)], texts(100))
        await eventually(lambda: len(handled) == 99)
    fault.settle(texts(99, 1), handled, seen="1 timed out, 99 handled")


async def test_a_pause_longer_than_twice_the_keepalive_costs_nothing(
    mosquitto: Mosquitto, proxy: Before, fault: Row
) -> None:
    fault("a pause of reading longer than twice the keepalive", "the connection lives, PINGREQ goes out")
    between = await proxy(mosquitto.port)
    app = app_called("pause", keepalive=1, max_in_flight=2)
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, "s/1", texts(50))
        await eventually(lambda: app.stats.in_flight == 2)
        (link,) = consumers(between)

        def pings() -> int:
            return sum(packet.kind is PacketType.PINGREQ for packet in link.packets[TO_BROKER])

        before = pings()  # there is one in each half of a keepalive
        await eventually(lambda: pings() >= before + 5, what="five more PINGREQ")
        gate.set()
        await eventually(lambda: len(handled) == 50)
        assert len(between.connections) == 2
    fault.settle(texts(50), handled)


@pytest.mark.parametrize("transport", ["TLS", "WebSockets"])
async def test_what_is_decoded_and_not_parsed_is_read_to_its_end(fault: Row, transport: str) -> None:
    """The socket has nothing more to read then, so nobody is called."""
    fault(f"{transport} with more than one record pending, reading paused and resumed at a window of 5", "all handled")
    with Mosquitto(persistence=False, tls=transport == "TLS", websockets=transport == "WebSockets") as mosquitto:
        app = app_called("records", max_in_flight=5, tls_ca_file=mosquitto.ca_file if mosquitto.tls else None)
        handled: Counter[str] = Counter()

        @app.topic("s/<id>")
        async def handle(payload: bytes) -> None:
            await asyncio.sleep(0)
            handled[payload[:4].decode()] += 1

        async with app.running(broker=mosquitto.tls_url if mosquitto.tls else mosquitto.websocket_url):
            payloads = [f"{number:04}".encode() + b"x" * (number * 37 % 5000) for number in range(800)]
            await publish_all(mosquitto.url, ["s/1", "s/2", "s/3"], payloads)
            await eventually(lambda: len(handled) == 800, within=20, what=lambda: f"{len(handled)} of 800")
    fault.settle([f"{number:04}" for number in range(800)], handled)


async def test_what_tls_has_decrypted_behind_the_connack_is_read_at_once(
    fake_broker: FakeBroker, fault: Row, tmp_path: Path
) -> None:
    """CONNACK and messages of the session in one record: the socket is empty, and stays so until they are answered."""
    fault(
        "TLS: messages in the record of the CONNACK, nothing behind it", "handled without another byte from the broker"
    )
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    messages = b"".join(publish("s/1", payload.encode(), qos=1, packet_id=int(payload) + 1) for payload in texts(5))
    fake_broker.reply(
        PacketType.CONNECT,
        lambda c, p: connack(session_present=True) + messages if not p.connect.clean_start else connack(),
    )
    fake_broker.reply(PacketType.SUBSCRIBE, None)
    app = app_called("pending", tls_ca_file=tmp_path / "ca.pem")
    handled: Counter[str] = Counter()

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        handled[payload] += 1

    async def run() -> None:
        async with app.running(broker=f"mqtts://localhost:{port}"):
            await asyncio.Event().wait()

    async with _tls_before(fake_broker.port, authority) as port:
        task = asyncio.create_task(run())
        connection = await fake_broker.subscribed()
        await connection.wait_for(PacketType.PUBACK, 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    fault.settle(texts(5), handled)


@asynccontextmanager
async def _tls_before(target: int, authority: trustme.CA) -> AsyncIterator[int]:
    """A port where TLS is taken off before `target`: what the broker writes at once is one record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):
            from_broker, to_broker = await asyncio.open_connection(HOST, target)
            await asyncio.gather(pump(reader, to_broker), pump(from_broker, writer))

    port = free_port()
    server = await asyncio.start_server(serve, "localhost", port, ssl=context)
    try:
        yield port
    finally:
        server.close()


async def test_a_suback_behind_a_full_window_is_waited_for(
    mosquitto: Mosquitto, proxy: Before, fault: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session has more than the window when the app comes back; its handlers take longer than the time-out of the
    SUBACK, which waits behind what is not read."""
    fault("SUBACK behind a full window", "no time-out while nothing is read; then ready")
    options = Service._options
    monkeypatch.setattr(Service, "_options", lambda self, *args: replace(options(self, *args), timeout=0.5))
    between = await proxy(mosquitto.port)

    def app_with(gate: asyncio.Event, handled: Counter[str]) -> App:
        app = app_called("suback", keepalive=1, max_in_flight=2)

        @app.topic("s/<id>")
        async def handle(payload: str) -> None:
            await gate.wait()
            handled[payload] += 1

        return app

    gate, handled = asyncio.Event(), Counter[str]()
    async with app_with(gate, handled).running(broker=between.url):
        pass
    await publish_all(mosquitto.url, [f"s/{number}" for number in range(50)], texts(50))
    app = app_with(gate, handled)

    async def run(ready: asyncio.Event, stop: asyncio.Event) -> None:
        async with app.running(broker=between.url):
            ready.set()
            await stop.wait()

    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(ready, stop))
    await eventually(lambda: app.stats.in_flight == 2, what=lambda: str(app.stats))
    link = consumers(between)[-1]
    await eventually(
        lambda: sum(packet.kind is PacketType.PINGREQ for packet in link.packets[TO_BROKER]) >= 3,
        what="three PINGREQ: longer than the time-out",
    )
    assert not ready.is_set()
    gate.set()
    await ready.wait()
    await eventually(lambda: len(handled) == 50)
    stop.set()
    await task
    assert len(consumers(between)) == 2
    fault.settle(texts(50), handled)


@pytest.mark.parametrize("bound", [1, 20])
async def test_a_broker_that_ignores_receive_maximum_is_not_read(
    fake_broker: FakeBroker, fault: Row, bound: int
) -> None:
    fault(f"a broker that ignores Receive Maximum {bound}: 5,000 at once", f"{bound} in memory, all handled, in order")
    app = app_called("greedy", max_in_flight=bound)
    gate, started, handled = asyncio.Event(), Counter[str](), Counter[str]()

    @app.topic("s/<id>", ordered_by=None)
    async def handle(payload: str) -> None:
        started[payload] += 1
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        assert connection.received[0].connect.receive_max == bound
        connection.send(
            b"".join(publish("s/1", payload.encode(), qos=1, packet_id=int(payload) + 1) for payload in texts(5000))
        )
        await eventually(lambda: len(started) == bound)
        assert app.stats.unacknowledged == bound
        gate.set()
        acknowledged = await connection.wait_for(PacketType.PUBACK, 5000, within=20)
    assert [packet.packet_id for packet in acknowledged] == [*range(1, 5001)]
    assert "0" in started
    fault.settle(texts(5000), handled)


async def test_what_ended_and_comes_again_takes_room_too(fake_broker: FakeBroker, fault: Row) -> None:
    """Behind a message that runs, those that have ended wait for their acknowledgement: they are held in memory."""
    fault("a full window comes again behind new messages, its head stuck", "max_in_flight holds over the reconnect")
    app = app_called("again", max_in_flight=11)
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>", ordered_by=None)
    async def handle(id: str, payload: str) -> None:
        if id == "stuck":
            await gate.wait()
        handled[payload] += 1

    first = [publish("s/stuck" if id == 1 else "s/1", str(id).encode(), qos=1, packet_id=id) for id in range(1, 11)]
    others = [publish("s/stuck", str(id).encode(), qos=1, packet_id=id) for id in range(11, 18)]
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.send(*first)
        await eventually(lambda: len(handled) == 9)
        fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(session_present=not p.connect.clean_start))
        connection.reset()
        second = await fake_broker.subscribed(2)
        second.send(*others, *first[1:], first[0])
        await eventually(lambda: app.stats.unacknowledged > 10, what=lambda: str(app.stats))
        assert app.stats.unacknowledged == 11
        gate.set()
        acknowledged = await second.wait_for(PacketType.PUBACK, 17)
    assert [packet.packet_id for packet in acknowledged] == [*range(11, 18), *range(2, 11), 1]
    fault.settle([str(id) for id in range(1, 18)], handled)


@VERSIONS
async def test_partial_overlaps_reach_each_route_once(mosquitto: Mosquitto, fault: Row, version: str) -> None:
    fault(f"partial overlaps: `z/+/t`, `z/1/+`, `z/#`, one of them twice ({version})", "each route once")
    app = app_called("overlaps", protocol=version)
    handled: Counter[str] = Counter()
    matching = {"z/<a>/t": {"z/1/t", "z/2/t"}, "z/1/<b>": {"z/1/t", "z/1/x"}, "z/#": {"z/1/t", "z/2/t", "z/1/x", "z"}}

    def route(template: str, name: str, qos: Literal[0, 1]) -> None:
        @app.topic(template, name=name, qos=qos)
        async def handle(payload: str) -> None:
            handled[f"{name} {payload}"] += 1

    for template in matching:
        route(template, template, 1)
    route("z/1/<b>", "z/1/<b> too", 0)
    matching["z/1/<b> too"] = matching["z/1/<b>"]
    topics = ["z/1/t", "z/2/t", "z/1/x", "z"]
    wanted = {
        f"{name} {topic} {turn}"
        for name, matched in matching.items()
        for topic in topics
        for turn in range(10)
        if topic in matched
    }
    async with app.running(broker=mosquitto.url):
        for turn in range(10):
            for topic in topics:
                await publish_all(mosquitto.url, topic, [f"{topic} {turn}"])
        await eventually(lambda: wanted <= set(handled), what=lambda: str(wanted - set(handled)))
        await publish_all(mosquitto.url, "z", ["end"])
        await eventually(lambda: handled["z/# end"])
    del handled["z/# end"]
    fault.settle(wanted, handled)


@VERSIONS
async def test_two_members_on_out_of_phase_filters_each_see_every_message_once(
    mosquitto: Mosquitto, fault: Row, version: str
) -> None:
    fault(f"two members of a group on `z/+/t` and `z/1/+` ({version})", "each route once over both members")
    handled: Counter[str] = Counter()

    def member(instance: str) -> App:
        app = app_called("member", protocol=version, instance=instance, group_name="m")

        @app.topic("z/<a>/t", shared=True)
        async def one(payload: str) -> None:
            handled[f"z/<a>/t {payload}"] += 1

        @app.topic("z/1/<b>", shared=True)
        async def two(payload: str) -> None:
            handled[f"z/1/<b> {payload}"] += 1

        return app

    async with member("a").running(broker=mosquitto.url), member("b").running(broker=mosquitto.url):
        # One in three moves the turn of the one filter and not of the other.
        await publish_all(mosquitto.url, ["z/2/t", "z/1/t", "z/1/t"], texts(150))
        await eventually(lambda: len(handled) == 250, what=lambda: f"{len(handled)} of 250")
        await publish_all(mosquitto.url, "z/1/t", ["150", "151"])
        await eventually(lambda: len(handled) == 254, what=lambda: f"{len(handled)} of 254")
    second = [f"z/1/<b> {number}" for number in range(152) if number % 3 or number > 149]
    fault.settle([*(f"z/<a>/t {number}" for number in range(152)), *second], handled)


@VERSIONS
async def test_a_redeploy_with_queued_messages_handles_them_once(
    mosquitto: Mosquitto, proxy: Before, launch: Launch, fault: Row, version: str
) -> None:
    """What waits bears the subscription identifiers of the version that subscribed. Until what that version left
    behind is unsubscribed, a message may come for it and for a new route as well."""
    fault(
        f"a redeploy with queued messages, routes changed meanwhile ({version})",
        "handled once by the routes of the new version; what is left behind is unsubscribed",
    )
    between = await proxy(mosquitto.port)
    app = launch(
        between.url,
        """
        @app.topic("s/<id>/t")
        async def narrow(payload: str):
            note("before", payload)

        @app.topic("gone/<id>")
        async def gone(payload: str):
            note("before", payload)
        """,
        MQTT_PROTOCOL=version,
    )
    await app.start()
    assert await app.stop() == 0
    await publish_all(mosquitto.url, ["s/1/t", "s/2/t"], texts(20))
    await publish_all(mosquitto.url, "gone/1", ["nobody's"])
    app.write(NEW_VERSION)
    await app.start()
    await app.notes_of("handled", 20)
    await eventually(
        lambda: {"s/+/t", "gone/+"} <= {text for packet in _unsubscribed(between) for text in packet.filters},
        what=lambda: f"UNSUBSCRIBE; the log:\n{app.log}",
    )
    await between.wait_for(TO_CLIENT, PacketType.UNSUBACK, len(_unsubscribed(between)))
    await publish_all(mosquitto.url, ["s/1/t", "s/2/t"], texts(20, 20))
    handled = await app.notes_of("handled", 40)
    narrow = await app.notes_of("narrow", 20)
    assert await app.stop() == 0
    assert not app.noted("before")
    assert narrow == {payload: 1 for payload in texts(40) if int(payload) % 2 == 0}
    fault.settle(texts(40), handled)


NEW_VERSION = """
@app.topic("s/#")
async def wide(payload: str):
    note("handled", payload)

@app.topic("s/1/<kind>")
async def narrow(payload: str):
    note("narrow", payload)
"""


def _unsubscribed(proxy: Proxy) -> list[Packet]:
    return proxy.packets(TO_BROKER, PacketType.UNSUBSCRIBE)


def _ids(proxy: Proxy, direction: Direction, kind: PacketType) -> list[int]:
    """The packet ids of QoS 1, in order, on the connection that subscribed."""
    (link,) = consumers(proxy)
    return [packet.packet_id for packet in link.packets[direction] if packet.kind is kind]
