"""QoS 2 under faults: PUBREC only after the handlers, and once where the process lives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mqttapi import Session
from tests.faults.support import AppProcess, Row, app_called, consumers, counting, publish_all, texts
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType, connack, encode
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]
Before = Callable[..., Awaitable[Proxy]]
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
TO_BROKER, TO_CLIENT = Direction

GATED = """
@app.topic("s/<id>", qos=2)
async def handle(payload: str):
    note("started", payload)
    await opened("go")
    note("handled", payload)
"""


@VERSIONS
async def test_a_window_of_1_flows(proxy: Before, fault: Row, version: str) -> None:
    """What waits for PUBREL takes no room: else nothing would come any more."""
    fault(f"QoS 2 with a window of 1 ({version})", "all handled once, PUBREC after each handler")
    with Mosquitto(max_inflight=1) as mosquitto:
        between = await proxy(mosquitto.port)
        app = app_called("narrow", protocol=version, max_in_flight=1)
        handled: Counter[str] = Counter()

        @app.topic("s/<id>", qos=2)
        async def handle(payload: str) -> None:
            assert len(between.packets(TO_BROKER, PacketType.PUBREC)) <= len(handled)
            await asyncio.sleep(0)
            handled[payload] += 1

        async with app.running(broker=between.url):
            await publish_all(mosquitto.url, ["s/1", "s/2"], texts(100), qos=2)
            await between.wait_for(TO_BROKER, PacketType.PUBCOMP, 100)
    fault.settle(texts(100), handled)


@VERSIONS
async def test_a_head_that_is_stuck_holds_up_qos_2_only(
    mosquitto: Mosquitto, proxy: Before, fault: Row, version: str
) -> None:
    fault(f"the head of the QoS 2 queue stuck ({version})", "no PUBREC overtakes, QoS 1 is acknowledged meanwhile")
    between = await proxy(mosquitto.port)
    app = app_called("head", protocol=version)
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>", qos=2)
    async def handle(id: str, payload: str) -> None:
        if id == "stuck":
            await gate.wait()
        handled[payload] += 1

    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, "s/stuck", ["stuck"], qos=2)
        await publish_all(mosquitto.url, "s/1", texts(5), qos=2)
        await publish_all(mosquitto.url, "s/1", texts(5, 5))
        await between.wait_for(TO_BROKER, PacketType.PUBACK, 5)
        assert between.packets(TO_BROKER, PacketType.PUBREC) == []
        gate.set()
        await between.wait_for(TO_BROKER, PacketType.PUBCOMP, 6)
    fault.settle(["stuck", *texts(10)], handled)


@pytest.mark.parametrize("lost", [PacketType.PUBREC, PacketType.PUBCOMP])
async def test_an_answer_that_is_lost_brings_no_second_run(
    mosquitto: Mosquitto, proxy: Before, fault: Row, lost: PacketType
) -> None:
    fault(f"row 15; {lost.name} lost, then reset", "handled once")
    between = await proxy(mosquitto.port)
    app, handled = counting("lost", qos=2)
    async with app.running(broker=between.url):
        between.drop(TO_BROKER, lost, times=1)
        await publish_all(mosquitto.url, "s/1", ["x"], qos=2)
        await between.wait_for(TO_BROKER, lost)
        consumers(between)[0].reset()
        await between.wait_for(TO_BROKER, PacketType.PUBCOMP, 2 if lost is PacketType.PUBCOMP else 1)
        await publish_all(mosquitto.url, "s/1", ["y"], qos=2)
        await eventually(lambda: handled["y"])
    fault.settle(["x", "y"], handled)


@pytest.mark.parametrize("lost", [PacketType.PUBREC, PacketType.PUBCOMP])
async def test_a_publish_cut_in_the_middle_is_published_once(
    mosquitto: Mosquitto, proxy: Before, fault: Row, lost: PacketType
) -> None:
    fault(f"row 15, the other way: the app's QoS 2 publish, {lost.name} lost, then reset", "published once")
    between = await proxy(mosquitto.port)
    app, _ = counting("out")
    async with client(mosquitto.url) as observer:
        await observer.subscribe("out")
        async with app.running(broker=between.url):
            between.drop(TO_CLIENT, lost, times=1)
            waits = asyncio.create_task(app.publish("out", "x", qos=2))
            await between.wait_for(TO_CLIENT, lost)
            between.reset()
            await waits
            await app.publish("out", "y", qos=2)
        received = Counter(packet.payload.decode() for packet in await observer.wait_for(2))
    sent = [packet for packet in between.packets(TO_BROKER, PacketType.PUBLISH) if packet.payload == b"x"]
    assert len(sent) == (2 if lost is PacketType.PUBREC else 1)  # behind PUBREC only PUBREL may follow
    fault.settle(["x", "y"], received)


async def test_a_kill_while_a_handler_runs_loses_nothing(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 1; `kill -9` while a QoS 2 handler runs", "redelivered to the restarted app")
    app = launch(mosquitto.url, GATED)
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "s/2", "s/3"], texts(3), qos=2)
    await app.notes_of("started", 3)
    await app.kill()
    app.open("go")
    await app.start()
    handled = await app.notes_of("handled", 3)
    assert await app.stop() == 0
    fault.settle(texts(3), handled)


async def test_a_kill_between_pubrec_and_pubrel_brings_no_second_run(
    mosquitto: Mosquitto, proxy: Before, launch: Launch, fault: Row
) -> None:
    fault("`kill -9` between PUBREC and PUBREL", "handled once; the unknown PUBREL is answered with 0x92")
    between = await proxy(mosquitto.port)
    app = launch(between.url, GATED)
    app.open("go")
    await app.start()
    between.drop(TO_CLIENT, PacketType.PUBREL, times=1)
    await publish_all(mosquitto.url, "s/1", ["x"], qos=2)
    await between.wait_for(TO_CLIENT, PacketType.PUBREL)
    await app.kill()
    await app.start()
    (completed,) = await between.wait_for(TO_BROKER, PacketType.PUBCOMP)
    assert completed.reason_code == 0x92
    await publish_all(mosquitto.url, "s/1", ["y"], qos=2)
    handled = await app.notes_of("handled", 2)
    assert await app.stop() == 0
    fault.settle(["x", "y"], handled)


@pytest.mark.parametrize("how", ["stopped", "killed while cut off", "killed while the broker is away"])
async def test_a_pubrec_that_is_lost_before_a_restart_brings_no_second_run(
    mosquitto: Mosquitto, proxy: Before, launch: Launch, fault: Row, how: str
) -> None:
    fault(f"row 15; PUBREC lost, connection cut, the app {how} and started again", "handled once")
    between = await proxy(mosquitto.port)
    app = launch(between.url, GATED)
    app.open("go")
    await app.start()
    between.drop(TO_BROKER, PacketType.PUBREC)
    await publish_all(mosquitto.url, ["s/1", "s/2", "s/1"], texts(3), qos=2)
    await between.wait_for(TO_BROKER, PacketType.PUBREC, 3)
    if how == "stopped":
        assert await app.stop() == 0
    else:
        await between.refuse() if how == "killed while cut off" else mosquitto.stop()
        between.reset()
        await app.said("connection lost")
        await app.kill()
        mosquitto.start() if mosquitto.process is None else await between.accept()
    between.drop(TO_BROKER, PacketType.PUBREC, times=0)
    await app.start()
    completed = await between.wait_for(TO_BROKER, PacketType.PUBCOMP, 3)
    assert not any(packet.reason_code for packet in completed)
    assert list(app.directory.glob("state/**/*unreleased*")) == []
    await publish_all(mosquitto.url, "s/1", ["y"], qos=2)
    handled = await app.notes_of("handled", 4)
    assert await app.stop() == 0
    fault.settle([*texts(3), "y"], handled)


async def test_a_kill_while_connected_runs_again_what_the_broker_has_no_pubrec_of(
    mosquitto: Mosquitto, proxy: Before, launch: Launch, fault: Row
) -> None:
    fault("PUBREC lost, `kill -9` while connected", "the one rule by which QoS 2 runs twice")
    between = await proxy(mosquitto.port)
    app = launch(between.url, GATED)
    app.open("go")
    await app.start()
    between.drop(TO_BROKER, PacketType.PUBREC, times=1)
    await publish_all(mosquitto.url, "s/1", ["x"], qos=2)
    await between.wait_for(TO_BROKER, PacketType.PUBREC)
    await app.kill()
    await app.start()
    await between.wait_for(TO_BROKER, PacketType.PUBCOMP)
    await publish_all(mosquitto.url, "s/1", ["y"], qos=2)
    handled = await app.notes_of("handled", 2)
    assert await app.stop() == 0
    assert handled["x"] == 2
    fault.settle(["x", "y"], handled, twice=["x"])


async def test_a_message_that_is_refused_does_not_end_what_is_known_of_the_others(
    fake_broker: FakeBroker, launch: Launch, fault: Row
) -> None:
    fault("a poison topic before a message whose PUBREC was lost, the app restarted", "the message is handled once")
    app = launch(fake_broker.url, GATED)
    app.open("go")
    fake_broker.reply(PacketType.CONNECT, connack(session_present=True))
    fake_broker.reply(PacketType.PUBREC, None)
    for run in (1, 2):
        await app.start()
        connection = await fake_broker.subscribed(run)
        connection.publish("s/+", b"poison", qos=2, packet_id=1, dup=run == 2)
        connection.publish("s/1", b"on", qos=2, packet_id=2, dup=run == 2)
        await connection.wait_for(PacketType.PUBREC, 2)
        assert await app.stop() == 0
    fault.settle(["on"], app.noted("handled"))


async def test_an_equal_message_with_an_old_id_is_handled_though_the_file_is_stale(
    fake_broker: FakeBroker, launch: Launch, fault: Row
) -> None:
    fault("another client had the session between two runs of the app, and got PUBREL", "an equal message is handled")
    app = launch(fake_broker.url, GATED)
    app.open("go")
    fake_broker.reply(PacketType.CONNECT, connack(session_present=True))
    fake_broker.reply(PacketType.PUBREC, None)
    for run in (1, 2):
        await app.start()
        connection = await fake_broker.subscribed(run)
        connection.publish("s/1", b"on", qos=2, packet_id=1)
        await connection.wait_for(PacketType.PUBREC)
        assert await app.stop() == 0
        assert len(list(app.directory.glob("state/**/*unreleased*"))) == 1
    assert app.noted("handled") == {"on": 2}
    fault.saw("handled, as it is not marked as sent before")


async def test_a_session_that_another_client_took_leaves_nothing_behind(
    fake_broker: FakeBroker, launch: Launch, fault: Row
) -> None:
    fault("the client id taken over between PUBREC and PUBREL", "nothing is noted: it is up to the other client")
    app = launch(fake_broker.url, GATED)
    app.open("go")
    fake_broker.reply(PacketType.PUBREC, None)
    await app.start()
    connection = await fake_broker.subscribed()
    connection.publish("s/1", b"on", qos=2, packet_id=1)
    await connection.wait_for(PacketType.PUBREC)
    connection.send(encode(PacketType.DISCONNECT, 0, b"\x8e"))
    assert await app.ended() == 3
    assert list(app.directory.glob("state/**/*unreleased*")) == []
    fault.saw("exit 3, no file")


async def test_a_transient_session_leaves_nothing_behind(fake_broker: FakeBroker, tmp_path: Path, fault: Row) -> None:
    fault("a transient session ends between PUBREC and PUBREL", "nothing is noted")
    app, handled = counting("transient", qos=2, settings={"state_dir": tmp_path})
    app.session = Session.transient()
    fake_broker.reply(PacketType.PUBREC, None)
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.publish("s/1", b"on", qos=2, packet_id=1)
        await connection.wait_for(PacketType.PUBREC)
    assert list(tmp_path.iterdir()) == []
    fault.settle(["on"], handled)


async def test_a_broker_restart_brings_no_second_run(mosquitto: Mosquitto, fault: Row) -> None:
    fault("row 9; broker restart, 20 QoS 2 messages in handlers", "joined: handled once")
    app = app_called("restart")
    gate, started, handled = asyncio.Event(), Counter[str](), Counter[str]()

    @app.topic("s/<id>", qos=2)
    async def handle(payload: str) -> None:
        started[payload] += 1
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(40)], texts(40), qos=2)
        await eventually(lambda: len(started) >= 20)
        mosquitto.stop()
        await eventually(lambda: app.readiness, what="the loss is noticed")
        gate.set()
        mosquitto.start()
        await eventually(lambda: len(handled) == 40, what=lambda: str(handled))
        await publish_all(mosquitto.url, "s/1", ["end"], qos=2)
        await eventually(lambda: handled["end"])
    fault.settle([*texts(40), "end"], handled)


async def test_a_graceful_stop_drains(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 30; SIGTERM with QoS 2 messages in handlers, more queued", "drained, exit 0, each handled once")
    app = launch(mosquitto.url, GATED, MQTTAPI_MAX_IN_FLIGHT="10")
    await app.start()
    await publish_all(mosquitto.url, [f"s/{number}" for number in range(30)], texts(30), qos=2)
    await app.notes_of("started", 10)
    stopping = asyncio.create_task(app.stop())
    await app.said("finishing what was accepted")
    app.open("go")
    assert await stopping == 0
    await app.start()
    handled = await app.notes_of("handled", 30)
    assert await app.stop() == 0
    fault.settle(texts(30), handled)
