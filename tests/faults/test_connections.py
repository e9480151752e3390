"""Brokers that end, hang or forget, and networks that stall, reset and lose."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from mqttapi import App, NotConnected, PublishQueueFull
from mqttapi.transport import dialer
from tests.faults.support import AppProcess, Row, app_called, consumers, counting, publish_all, texts
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import Packet, PacketType, connack, encode
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]
Before = Callable[..., Awaitable[Proxy]]
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
TO_BROKER, TO_CLIENT = Direction


@VERSIONS
async def test_a_broker_that_ends_in_order_and_comes_back_loses_nothing(
    mosquitto: Mosquitto, fault: Row, version: str
) -> None:
    fault(f"row 9; broker SIGTERM and restart, messages in handlers and queued ({version})", "session present, no loss")
    app = app_called("restart", protocol=version)
    gate, started, handled = asyncio.Event(), Counter[str](), Counter[str]()

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        started[payload] += 1
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=mosquitto.url):
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(60)], texts(60))
        await eventually(lambda: len(started) >= 20)
        waits = asyncio.create_task(app.publish("out", "x"))
        mosquitto.stop()
        await eventually(lambda: app.readiness, what="the loss is noticed")
        gate.set()  # from now on no acknowledgement can leave
        mosquitto.start()
        await eventually(lambda: len(handled) == 60, what=lambda: str(handled))
        await waits
    # What was running, or had ended, when its second delivery came was joined by it.
    fault.settle(texts(60), handled)


async def test_a_broker_that_has_lost_its_sessions_is_noticed_and_subscribed_to_again(
    launch: Launch, fault: Row
) -> None:
    fault("row 10; broker SIGKILL, nothing on its disk", "WARN 'session lost', subscribed again, goes on")
    with Mosquitto(persistence=False) as mosquitto:
        app = launch(
            mosquitto.url,
            """
            @app.topic("s/<id>", shared=True)
            async def handle(payload: str):
                note("handled", payload)
            """,
        )
        await app.start()
        await publish_all(mosquitto.url, "s/1", texts(5))
        await app.notes_of("handled", 5)
        mosquitto.kill()
        mosquitto.start()
        await app.said("session lost")
        await app.said("connected again")
        await publish_all(mosquitto.url, "s/1", texts(5, 5))
        handled = await app.notes_of("handled", 10)
        assert await app.stop() == 0
    fault.settle(texts(10), handled)


@pytest.mark.parametrize("how", ["broker stopped", "proxy paused"])
async def test_a_silent_peer_is_given_up_and_found_again(
    mosquitto: Mosquitto, proxy: Before, fault: Row, how: str
) -> None:
    rows = {"broker stopped": "row 11; broker SIGSTOP, later SIGCONT", "proxy paused": "row 12; TCP half open"}
    fault(rows[how], "given up after 1.5 × keepalive at most, publishes time out when told to, resumes")
    between = await proxy(mosquitto.port)
    app, handled = counting("silent", settings={"keepalive": 1})
    async with app.running(broker=between.url):
        await publish_all(mosquitto.url, "s/1", texts(5))
        await eventually(lambda: len(handled) == 5)
        if how == "broker stopped":
            mosquitto.pause()
        else:
            between.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await app.publish("out", "x")
        await eventually(lambda: app.readiness, within=5, what="the silence is noticed")
        if how == "broker stopped":
            mosquitto.resume()
        else:
            between.resume()
        await eventually(lambda: not app.readiness, within=20, what=lambda: f"ready again: {app.readiness}")
        await publish_all(mosquitto.url, "s/1", texts(5, 5))
        await eventually(lambda: len(handled) == 10)
    fault.settle(texts(10), handled)


async def test_no_part_of_a_payload_reaches_a_handler(mosquitto: Mosquitto, proxy: Before, fault: Row) -> None:
    fault("row 13; connection reset in the middle of a 200 kB PUBLISH", "no partial payload, redelivered")
    between = await proxy(mosquitto.port)
    app = app_called("partial")
    handled: Counter[str] = Counter()

    @app.topic("s/<id>")
    async def handle(payload: bytes) -> None:
        handled[f"{payload[:1].decode()} {len(payload)}"] += 1

    async with app.running(broker=between.url):
        between.cut_after(TO_CLIENT, 100_000)
        await publish_all(mosquitto.url, "s/1", [b"a" * 200_000, b"b" * 200_000])
        await eventually(lambda: len(handled) == 2)
        assert len(consumers(between)) == 2
    fault.settle(["a 200000", "b 200000"], handled)


async def test_a_lost_acknowledgement_brings_a_second_run(mosquitto: Mosquitto, proxy: Before, fault: Row) -> None:
    fault("row 14; PUBACK lost, then reset", "second run, then acknowledged")
    between = await proxy(mosquitto.port)
    app, handled = counting("puback")
    async with app.running(broker=between.url):
        between.drop(TO_BROKER, PacketType.PUBACK, times=1)
        await publish_all(mosquitto.url, "s/1", ["x"])
        await between.wait_for(TO_BROKER, PacketType.PUBACK)
        consumers(between)[0].reset()
        await eventually(lambda: handled["x"] == 2)
        await between.wait_for(TO_BROKER, PacketType.PUBACK, 2)
        second = between.packets(TO_CLIENT, PacketType.PUBLISH)[-1]
        assert second.dup
    fault.settle(["x"], handled, twice=["x"])


async def test_a_publish_whose_acknowledgement_was_lost_is_sent_again(
    mosquitto: Mosquitto, proxy: Before, fault: Row
) -> None:
    fault("row 14, the other way: the app's publish, its PUBACK lost, then reset", "sent again with DUP, succeeds once")
    between = await proxy(mosquitto.port)
    app, _ = counting("out")
    async with client(mosquitto.url) as observer:
        await observer.subscribe("out")
        async with app.running(broker=between.url):
            between.drop(TO_CLIENT, PacketType.PUBACK, times=1)
            waits = asyncio.create_task(app.publish("out", "x"))
            await between.wait_for(TO_CLIENT, PacketType.PUBACK)
            between.reset()
            await waits
        received = Counter(packet.payload.decode() for packet in await observer.wait_for(1))
    assert between.packets(TO_BROKER, PacketType.PUBLISH)[-1].dup
    fault.settle(["x"], received, twice=["x"])


async def test_a_slow_network_is_no_dead_one(mosquitto: Mosquitto, proxy: Before, fault: Row) -> None:
    fault("row 16; slow network: a round trip takes 0.4 × keepalive", "no connection is given up")
    between = await proxy(mosquitto.port)
    app, handled = counting("slow", settings={"keepalive": 2})
    async with app.running(broker=between.url):
        between.delay = 0.4
        await publish_all(mosquitto.url, "s/1", texts(3))
        await between.wait_for(TO_CLIENT, PacketType.PINGRESP, 2)
        await eventually(lambda: len(handled) == 3)
        await app.publish("out", "x")
        assert len(between.connections) == 2
        between.delay = 0
    fault.settle(texts(3), handled)


async def test_a_connection_that_stutters_between_any_two_bytes_changes_nothing(
    mosquitto: Mosquitto, proxy: Before, fault: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "SHORT_LIFE", 0.0)  # else somebody else is taken to use the client id
    fault("connection cut at 40 places of the same stream", "no loss; second runs only of what was in flight")
    between = await proxy(mosquitto.port)
    app, handled = counting("cuts")
    async with app.running(broker=between.url):
        for number in range(40):
            between.cut_after(TO_CLIENT, number * 7 % 97 + 1)
            await publish_all(mosquitto.url, "s/1", [str(number)])
            await eventually(partial(handled.__getitem__, str(number)), what=lambda: str(handled))
            between.cuts.clear()
    fault.settle(texts(40), handled, twice=texts(40))


async def test_messages_survive_a_broker_restart_in_a_group_while_the_publisher_never_pauses(
    mosquitto: Mosquitto, fault: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published counts only what the broker took with 0x00: 0x10 says that it has forgotten who shares."""
    fault("broker restart with a shared group while the publisher never pauses", "what was taken with 0x00 is handled")
    monkeypatch.setattr(dialer, "SHORT_LIFE", 0.0)  # else somebody else is taken to use the client id
    app, handled = counting("group", shared=True)
    published: list[str] = []
    stop = asyncio.Event()

    async def publish() -> None:
        number = 0
        while not stop.is_set():
            try:
                async with client(mosquitto.url) as publisher:
                    while not stop.is_set():
                        number += 1
                        if await publisher.publish("s/1", str(number).encode()) == 0:
                            published.append(str(number))
            except (OSError, pytest.fail.Exception):
                await asyncio.sleep(0)

    async with app.running(broker=mosquitto.url):
        task = asyncio.create_task(publish())
        for restarts in range(3):
            await eventually(partial(_has_grown, published, len(published) + 20))
            await asyncio.to_thread(mosquitto.restart)
            await eventually(partial(_said, mosquitto, "as group-faults-0 (", restarts + 2))
        await eventually(partial(_has_grown, published, len(published) + 20))
        stop.set()
        await task
        await eventually(lambda: set(published) <= set(handled), what=lambda: str(set(published) - set(handled)))
    # What was published without an answer may have been taken as well.
    for payload in set(handled) - set(published):
        del handled[payload]
    again = [payload for payload, runs in handled.items() if runs > 1]
    assert len(again) <= 3 * 40
    fault.settle(published, handled, twice=again)


async def test_a_broker_that_forgets_its_session_gets_no_stale_acknowledgements(
    fake_broker: FakeBroker, fault: Row
) -> None:
    """Without the session an equal message with an equal id is another message: it runs, and on its own account."""
    fault(
        "session gone after a reset, handlers still running; an equal message comes", "both run, nothing stale is sent"
    )
    app = app_called("stale")
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>", ordered_by=None)
    async def handle(payload: str) -> None:
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=fake_broker.url):
        first = await fake_broker.subscribed()
        for number in (1, 2):
            first.publish(f"s/{number}", f"old {number}".encode(), qos=1, packet_id=number)
        await eventually(lambda: app.stats.in_flight == 2)
        first.reset()
        second = await fake_broker.subscribed(2)
        second.publish("s/2", b"old 2", qos=1, packet_id=2)
        second.publish("s/3", b"new", qos=1, packet_id=3)
        await eventually(lambda: app.stats.in_flight == 4, what=lambda: str(app.stats))
        gate.set()
        acknowledged = await second.wait_for(PacketType.PUBACK, 2)
        await eventually(lambda: not app.stats.in_flight)
    assert [packet.packet_id for packet in acknowledged] == [2, 3]
    assert handled["old 2"] == 2
    fault.settle(["old 1", "old 2", "new"], handled, twice=["old 2"])


async def test_a_message_that_comes_again_while_its_handler_runs_joins_it(fake_broker: FakeBroker, fault: Row) -> None:
    fault("reset while a handler runs; the session resends, without DUP", "one run, one acknowledgement")
    app = app_called("joins")
    gate, handled = asyncio.Event(), Counter[str]()

    @app.topic("s/<id>")
    async def handle(payload: str) -> None:
        await gate.wait()
        handled[payload] += 1

    async with app.running(broker=fake_broker.url):
        first = await fake_broker.subscribed()
        first.publish("s/1", b"x", qos=1, packet_id=7)
        await eventually(lambda: app.stats.in_flight == 1)
        fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(session_present=not p.connect.clean_start))
        first.reset()
        second = await fake_broker.subscribed(2)
        second.publish("s/1", b"x", qos=1, packet_id=7)
        second.publish("s/2", b"y", qos=1, packet_id=8)
        await eventually(lambda: app.stats.in_flight == 2)
        gate.set()
        acknowledged = await second.wait_for(PacketType.PUBACK, 2)
    assert [packet.packet_id for packet in acknowledged] == [7, 8]
    fault.settle(["x", "y"], handled)


async def test_a_taken_over_client_id_ends_the_app_with_3(fake_broker: FakeBroker, launch: Launch, fault: Row) -> None:
    fault("row 17; DISCONNECT 0x8E", "exit 3, never connected again")
    app = launch(fake_broker.url, '@app.topic("s/<id>")\nasync def handle(): ...\n')
    app.launch()
    connection = await fake_broker.subscribed()
    connection.send(encode(PacketType.DISCONNECT, 0, b"\x8e"))
    assert await app.ended() == 3
    assert sum(not each.client_id.endswith("-pub") for each in fake_broker.connections) == 1
    assert "MQTT_INSTANCE" in app.log
    fault.saw("exit 3, one connection")


async def test_connections_that_never_last_are_not_tried_in_a_loop(fake_broker: FakeBroker, fault: Row) -> None:
    fault("the broker closes every connection right after SUBACK", "backs off, says so")

    def close_soon(connection: Connection, packet: Packet) -> None:
        connection.close()

    fake_broker.reply(PacketType.SUBSCRIBE, close_soon)
    app, _ = counting("evicted")
    task = asyncio.create_task(_run_for_ever(app, fake_broker.url))
    await fake_broker.subscribed(3)
    connects = len(fake_broker.connections)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert connects < 20
    fault.saw(f"{connects} connections until the third SUBSCRIBE")


def _has_grown(published: list[str], size: int) -> bool:
    return len(published) > size


def _said(broker: Mosquitto, text: str, times: int) -> bool:
    return broker.log().count(text) >= times


async def _run_for_ever(app: App, url: str) -> None:
    async with app.running(broker=url):
        await asyncio.Event().wait()


async def test_publishing_to_a_broker_that_is_away_is_bounded(mosquitto: Mosquitto, fault: Row) -> None:
    fault("row 9; publishes while the broker is away", "wait, bounded by max_outgoing; sent when it is back")
    app, handled = counting("outgoing", settings={"max_outgoing": 10})
    async with app.running(broker=mosquitto.url):
        mosquitto.stop()
        await eventually(lambda: app.readiness)
        waiting = [app.publish_nowait("s/1", str(number)) for number in range(10)]
        with pytest.raises(PublishQueueFull, match="MQTTAPI_MAX_OUTGOING"):
            app.publish_nowait("s/1", "one too many")
        mosquitto.start()
        await asyncio.gather(*waiting)
        await eventually(lambda: len(handled) == 10)
    with pytest.raises(NotConnected):
        await app.publish("s/1", "after the end")
    fault.settle(texts(10), handled)
