"""Messages that are meant to hurt, by size, number or form, from brokers that let them through."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest

from mqttapi.transport import dialer
from tests.faults.support import AppProcess, Row, app_called, counting, publish_all, texts
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.packets import PacketType, connack, publish
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]

POISON = {
    "not UTF-8": b"s/\xff\xfe",
    "an overlong slash": b"s\xc0\xaf1",
    "a surrogate": b"s/\xed\xa0\x80",
    "a NUL": b"s/\x00",
    "a wildcard": b"s/+",
    "a wildcard for all": b"s/#",
    "empty": b"",
}


@pytest.mark.parametrize("qos", [0, 1])
async def test_poison_topics_are_counted_acknowledged_and_skipped(
    fake_broker: FakeBroker, fault: Row, qos: int
) -> None:
    fault(f"row 25; poison topics at QoS {qos}: {', '.join(POISON)}", "acknowledged, skipped, connection kept")
    app, handled = counting("poison", "#")
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        for number, topic in enumerate(POISON.values()):
            connection.publish(topic, b"bad", qos=qos, packet_id=2 * number + 1)
            connection.publish("s/1", str(number).encode(), qos=1, packet_id=2 * number + 2)
        await eventually(lambda: len(handled) == len(POISON), what=lambda: str(handled))
        acknowledged = await connection.wait_for(PacketType.PUBACK, len(POISON) * (1 + qos))
        assert not connection.closed
        assert app.stats.refused == len(POISON)
    assert len(acknowledged) == len(POISON) * (1 + qos)
    fault.settle(texts(len(POISON)), handled, seen=f"{len(POISON)} refused, each next one handled, connection kept")


async def test_a_topic_that_would_forge_a_line_of_the_log_does_not(
    fake_broker: FakeBroker, launch: Launch, fault: Row
) -> None:
    fault("a topic with a line break and a forged log line", "escaped, stays on one line")
    app = launch(
        fake_broker.url,
        """
        @app.topic("#")
        async def handle(payload: int): ...
        """,
    )
    app.launch()
    connection = await fake_broker.subscribed()
    connection.publish("a\nCRITICAL mqttapi: all is lost \x1b[31m", b"no number", qos=1, packet_id=1)
    await connection.wait_for(PacketType.PUBACK)
    assert await app.stop() == 0
    assert "rejected" in app.log
    assert "\nCRITICAL" not in app.log
    assert "\x1b" not in app.log
    fault.saw("one line, escaped")


async def test_a_payload_above_the_bound_is_skipped_without_being_held(
    forgetful_mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 26; 10 payloads of 4 MiB to an app with max_payload 1 MiB", "rejected, acknowledged, memory bounded")
    app = launch(
        forgetful_mosquitto.url,
        """
        @app.topic("s/<id>", dead_letter="dead/<id>")
        async def handle(payload: bytes):
            note("handled", payload[:3].decode())
        """,
    )
    await app.start()
    before = app.memory()
    for number in range(10):
        await publish_all(forgetful_mosquitto.url, "s/1", [b"x" * (4 * 2**20), str(number)])
    handled = await app.notes_of("handled", 10)
    grown = app.memory("VmHWM") - before
    assert "connection lost" not in app.log
    assert app.log.count("over max_payload") == 10, app.log
    assert await app.stop() == 0
    assert grown < 4 * 2**20, f"{grown / 2**20:.1f} MiB"
    fault.settle(texts(10), handled, seen=f"10 rejected, 10 handled, at most +{grown / 2**20:.1f} MiB")


async def test_a_packet_above_the_announced_size_is_dropped_by_the_broker(mosquitto: Mosquitto, fault: Row) -> None:
    """[MQTT-3.1.2-25]: the broker acts as if it had sent it."""
    fault("a packet above the announced Maximum Packet Size", "never arrives, connection kept")
    app, handled = counting("packet", settings={"max_packet": 100_000, "max_payload": 50_000})
    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, "s/1", ["x" * 200_000, "after"])
        await eventually(lambda: handled["after"])
        assert not app.readiness
    fault.settle(["after"], handled)


async def test_a_slow_consumer_under_a_burst_keeps_its_memory(
    forgetful_mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 27; slow handlers, a burst of 2,000 × 20 kB", "Receive Maximum holds, memory flat, nothing discarded")
    app = launch(
        forgetful_mosquitto.url,
        """
        @app.topic("s/<id>", concurrency=10)
        async def handle(payload: bytes):
            await asyncio.sleep(0.005)
            note("handled", payload[:4].decode())
        """,
        MQTTAPI_MAX_IN_FLIGHT="50",
    )
    await app.start()
    before = app.memory()
    payloads = [f"{number:04}".encode() + b"x" * 20_000 for number in range(2000)]
    await publish_all(forgetful_mosquitto.url, [f"s/{number}" for number in range(20)], payloads)
    handled = await app.notes_of("handled", 2000)
    grown = app.memory("VmHWM") - before
    assert await app.stop() == 0
    assert grown < 12 * 2**20, f"{grown / 2**20:.1f} MiB"
    assert "Discarding" not in app.log
    fault.settle([f"{number:04}" for number in range(2000)], handled, seen=f"2000 handled, at most +{grown >> 20} MiB")


async def test_a_flood_from_a_broker_that_ignores_every_bound_is_held_in_bytes(
    fake_broker: FakeBroker, launch: Launch, fault: Row
) -> None:
    fault("row 27; 640 MB of 64 KiB messages, QoS 1, from a broker without bounds", "stays near max_in_flight_bytes")
    app = launch(
        fake_broker.url,
        """
        @app.topic("s/<id>", concurrency=100)
        async def handle(payload: bytes):
            await asyncio.sleep(0.001)
        """,
        MQTTAPI_MAX_IN_FLIGHT_BYTES="4MiB",
    )
    app.launch()
    connection = await fake_broker.subscribed()
    await app.said("connected to")
    before = app.memory()
    payload = b"x" * 65_536
    for start in range(0, 10_000, 100):
        connection.send(
            b"".join(
                publish(f"s/{number % 50}", payload, qos=1, packet_id=number + 1)
                for number in range(start, start + 100)
            )
        )
        await connection.drain()
    acknowledged = await connection.wait_for(PacketType.PUBACK, 10_000, within=40)
    grown = app.memory("VmHWM") - before
    assert await app.stop() == 0
    assert [packet.packet_id for packet in acknowledged] == [*range(1, 10_001)]
    assert grown < 20 * 2**20, f"{grown / 2**20:.1f} MiB"
    fault.saw(f"10,000 acknowledged in order, at most +{grown / 2**20:.1f} MiB")
    fault.lost = fault.twice = 0


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "latest"])
async def test_a_qos_0_burst_is_bounded_as_the_route_says(
    fake_broker: FakeBroker, fault: Row, overflow: Literal["block", "drop_oldest", "drop_newest", "latest"]
) -> None:
    fault(
        f"row 28; 5,000 messages of QoS 0 while the handler is busy, overflow={overflow!r}",
        "bounded, what is dropped is counted",
    )
    app = app_called("burst")
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>", qos=0, overflow=overflow)
    async def handle(payload: str) -> None:
        await gate.wait()
        handled[payload] += 1

    @app.topic("end", qos=0)
    async def end() -> None:
        handled["end"] += 1

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.send(b"".join(publish("s/1", payload.encode()) for payload in texts(5000)))
        connection.publish("end")
        if overflow == "block":
            await eventually(lambda: app.stats.in_flight == 1000, what=lambda: str(app.stats))
            assert not handled["end"]
        else:
            await eventually(lambda: handled["end"], what=lambda: str(app.stats))
            assert app.stats.in_flight <= 1001
        gate.set()
        await eventually(lambda: not app.stats.in_flight and handled["end"])
        dropped = sum(route.overflowed for route in app.stats.routes.values())
    del handled["end"]
    assert len(handled) + dropped == 5000
    assert "4999" in handled or overflow == "drop_newest"
    if overflow == "block":
        assert dropped == 0
    fault.saw(f"{len(handled)} handled, {dropped} dropped and counted")
    fault.twice = sum(runs > 1 for runs in handled.values())
    assert not fault.twice


async def test_malformed_packets_end_the_connection_not_the_app(
    fake_broker: FakeBroker, fault: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(
        "malformed packets: cut properties, endless length, reserved type, QoS 3, packet id 0", "reconnects each time"
    )
    monkeypatch.setattr(dialer, "SHORT_LIFE", 0.0)  # else somebody else is taken to use the client id
    app, handled = counting("malformed")
    broken = [
        b"\x32\x05\x00\x01s\x00\x01",  # no properties
        b"\x30\xff\xff\xff\xff\x7f",
        b"\x00\x00",
        b"\x36\x07\x00\x01s\x00\x01\x00x",
        b"\x32\x07\x00\x01s\x00\x00\x00x",
        b"\x90\x00",
        b"\x62\x00",
    ]
    fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(session_present=not p.connect.clean_start))
    async with app.running(broker=fake_broker.url):
        for number, packet in enumerate(broken, start=1):
            connection = await fake_broker.subscribed(number)
            connection.send(packet)
            await eventually(partial(getattr, connection, "closed"), what=f"the end after {packet!r}")
        connection = await fake_broker.subscribed(len(broken) + 1)
        connection.publish("s/1", b"x", qos=1, packet_id=1)
        await connection.wait_for(PacketType.PUBACK)
    fault.settle(["x"], handled, seen=f"{len(broken)} reconnects, then handled")
