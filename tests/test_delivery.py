"""Which routes get a message, how often, and when it is acknowledged: an app against brokers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mqttapi import App, Message, Session
from mqttapi.config import Settings
from mqttapi.errors import ConfigurationError
from mqttapi.runtime.links import subscription_id
from mqttapi.transport.wire import Wire
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import Packet, PacketType, ack, connack, publish
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
TO_BROKER, TO_CLIENT = Direction
NO_IDS = b"\x29\x00"
"""Subscription Identifier Available: no [MQTT5 §3.2.2.3.12]."""
SESSION_PRESENT = connack(session_present=True)


def app_called(name: str, version: str = "5", *, app: dict[str, Any] | None = None, **settings: Any) -> App:
    options: dict[str, Any] = app or {}
    return App(name, settings=Settings(protocol=version, instance="test", grace=5.0, **settings), **options)


def count(app: App, handled: Counter[str], template: str, name: str | None = None, **options: Any) -> None:
    """A route that counts its messages as `<name> <payload>`, or only its payloads."""

    async def handler(payload: str) -> None:
        handled[f"{name} {payload}" if name else payload] += 1

    app.topic(template, name=name, **options)(handler)


async def send(broker: Mosquitto, topic: str, *payloads: str, qos: int = 1, **options: Any) -> None:
    async with client(broker.url) as publisher:
        for payload in payloads:
            await publisher.publish(topic, payload.encode(), qos=qos, **options)


def consumers(broker: FakeBroker) -> list[Connection]:
    """The connections that are no publishing connections."""
    return [each for each in broker.connections if each.received and not each.client_id.endswith("-pub")]


def subscribed(connections: list[Connection]) -> dict[str, list[str]]:
    return {
        each.client_id: [text for packet in each.packets(PacketType.SUBSCRIBE) for text in packet.filters]
        for each in connections
    }


def _counted(handled: Counter[str], name: str, runs: int) -> bool:
    return handled[name] == runs


# QoS 2


@VERSIONS
async def test_qos_2_is_handled_once_and_answered_after_the_handler(
    mosquitto: Mosquitto, proxy: Callable[..., Awaitable[Proxy]], version: str
) -> None:
    between = await proxy(mosquitto.port)
    app, gate, handled = app_called("twice", version), asyncio.Event(), Counter[str]()

    @app.topic("s/<id>", qos=2)
    async def handler(message: Message) -> None:
        await gate.wait()
        handled[f"{message.qos} {message.payload.decode()}"] += 1

    async with app.running(broker=between.url):
        await send(mosquitto, "s/1", "a", "b", qos=2)
        await eventually(lambda: app.stats.unacknowledged == 2)
        assert between.packets(TO_BROKER, PacketType.PUBREC) == []
        gate.set()
        await between.wait_for(TO_BROKER, PacketType.PUBCOMP, 2)
    assert handled == {"2 a": 1, "2 b": 1}


@VERSIONS
async def test_qos_2_flows_through_a_window_of_1(version: str) -> None:
    """What awaits PUBREL is not held: else nothing more would be read, PUBREL neither."""
    app, handled = app_called("narrow", version, max_in_flight=1), Counter[str]()
    count(app, handled, "s/<id>", qos=2)
    payloads = [str(number) for number in range(50)]
    with Mosquitto(max_inflight=1) as broker:
        async with app.running(broker=broker.url):
            await send(broker, "s/1", *payloads, qos=2)
            await eventually(lambda: len(handled) == 50)
    assert handled == dict.fromkeys(payloads, 1)


@VERSIONS
async def test_a_drop_in_the_middle_of_qos_2_costs_no_second_run(
    mosquitto: Mosquitto, proxy: Callable[..., Awaitable[Proxy]], version: str
) -> None:
    """The connection is lost when PUBREC has left and PUBREL has not come."""
    between = await proxy(mosquitto.port)
    app, handled = app_called("middle", version), Counter[str]()
    count(app, handled, "s/<id>", qos=2)
    async with app.running(broker=between.url):
        between.drop(TO_CLIENT, PacketType.PUBREL, times=1)
        await send(mosquitto, "s/1", "a", qos=2)
        await between.wait_for(TO_CLIENT, PacketType.PUBREL)  # which the proxy keeps
        between.reset()
        await between.wait_for(TO_BROKER, PacketType.PUBCOMP)
        await send(mosquitto, "s/1", "b", qos=2)
        await eventually(lambda: handled["b"])
    assert handled == {"a": 1, "b": 1}


async def test_qos_2_is_refused_where_paho_would_answer_before_the_handler(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqttapi.transport.receiving.internals_available", lambda: ["_in_packet"])
    app, handled = app_called("plain"), Counter[str]()
    count(app, handled, "s/<id>", "exactly", qos=2)
    with pytest.raises(ConfigurationError, match=r"qos=2 of exactly: .* no _in_packet, .* sends PUBREC before"):
        async with app.running(broker=fake_broker.url):
            pass


@pytest.mark.parametrize("missing", [[], ["_packet_handle"]])
@pytest.mark.parametrize(
    "wrong",
    [
        {"topic": b"s/\xff"},
        {"topic": b"s/+"},
        {"topic": b""},
        {"topic": b"s/\0"},
        {"payload": b"x" * 101},
        {"properties": b"\x26\x00\x01a\x00\x01\xff"},
        {"properties": b"\x03\x00\x01a\x03\x00\x01b"},
        {"properties": b"\x7f\x00\x01a"},
        {"properties": b"\x21\x00\x05"},
    ],
)
async def test_what_is_no_message_is_counted_acknowledged_and_skipped(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, missing: list[str], wrong: dict[str, bytes]
) -> None:
    """On the plain path, where paho reads, as on ours: else the broker sends it again, for ever."""
    monkeypatch.setattr("mqttapi.transport.receiving.internals_available", lambda: missing)
    app, handled = app_called("wrong", max_payload=100), Counter[str]()
    count(app, handled, "#")
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        given: dict[str, Any] = {"topic": "s/1", "payload": b"wrong", "properties": b""} | wrong
        connection.publish(given.pop("topic"), qos=1, packet_id=1, **given)
        connection.publish("s/1", b"good", qos=1, packet_id=2, subscription_ids=[subscription_id("#")])
        acks = await connection.wait_for(PacketType.PUBACK, 2)
        assert [packet.packet_id for packet in acks] == [1, 2]
        assert not connection.closed
        assert app.stats.refused == 1
    assert handled == {"good": 1}


async def test_an_unknown_pubrel_is_answered_with_its_reason(fake_broker: FakeBroker) -> None:
    """As when the process that had sent PUBREC is no more."""
    app, handled = app_called("unknown"), Counter[str]()
    count(app, handled, "s/<id>", qos=2)
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.send(ack(PacketType.PUBREL, 7))
        (packet,) = await connection.wait_for(PacketType.PUBCOMP)
    assert (packet.packet_id, packet.reason_code) == (7, 0x92)


@pytest.mark.parametrize("missing", [[], ["_packet_handle"]])
async def test_a_broker_that_does_not_read_is_not_read_either(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    """Else what it is owed would grow without bound; once it reads again, everything is acknowledged."""
    monkeypatch.setattr("mqttapi.transport.receiving.internals_available", lambda: missing)
    monkeypatch.setattr("mqttapi.transport.wire.MOST_OWED", 1000)
    app, handled = app_called("owed"), Counter[str]()
    count(app, handled, "s")
    async with app.running(broker=fake_broker.url):
        broker = await fake_broker.subscribed()
        assert app._service is not None
        assert app._service.consumer is not None
        connection = app._service.consumer.links[0]._connection
        assert connection is not None
        assert connection._wire is not None
        send, blocked = Wire._send, True
        monkeypatch.setattr(
            Wire, "_send", lambda self, data: 0 if self is connection._wire and blocked else send(self, data)
        )
        sent = 0
        while not connection._choked:
            for _ in range(50):
                sent += 1
                broker.publish("s", b"x", qos=1, packet_id=sent, subscription_ids=[subscription_id("s")])
            await broker.drain()
            await asyncio.sleep(0)
        assert connection.unsent < 10_000
        blocked = False
        await broker.wait_for(PacketType.PUBACK, sent)
        assert handled == {"x": sent}


# Links


@pytest.mark.parametrize(("version", "overlap"), [("3.1.1", "ids"), ("5", "links")])
async def test_without_identifiers_no_two_filters_on_a_link_overlap(
    mosquitto: Mosquitto, version: str, overlap: str
) -> None:
    app, handled = app_called("links", version, app={"overlap": overlap}), Counter[str]()
    for template in ("z/<a>/t", "z/1/<b>", "z/#", "y/<a>"):
        count(app, handled, template, f"{template}")
        count(app, handled, template, f"{template} shared", shared="g")
    async with app.running(broker=mosquitto.url):
        assert app._service is not None
        assert app._service.consumer is not None
        assert [link.options.client_id for link in app._service.consumer.links] == [
            "links-test-0",
            "links-test-0-l1",
            "links-test-0-l2",
            "links-test-0-l3",
        ]
        await send(mosquitto, "z/1/t", *map(str, range(20)))
        await send(mosquitto, "y/1", "y")
        await eventually(lambda: handled.total() >= 6 * 20 + 2, what=lambda: str(handled))
        assert app.readiness == ()
    assert set(handled.values()) == {1}


async def test_a_connack_without_identifiers_decides_on_the_links(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, connack(properties=NO_IDS))
    app, handled = app_called("mute"), Counter[str]()
    for template in ("a/<x>", "a/#", "<x>/b", "c"):
        count(app, handled, template, template)
    async with app.running(broker=fake_broker.url):
        both = consumers(fake_broker)
        assert subscribed(both) == {"mute-test-0": ["+/b", "c"], "mute-test-0-l1": ["a/#"]}
        assert all(
            packet.subscribe.subscription_id is None for each in both for packet in each.packets(PacketType.SUBSCRIBE)
        )
        first, second = both[0], both[1]
        second.publish("a/b", b"1", qos=1, packet_id=1)
        first.publish("a/b", b"1", qos=1, packet_id=1)
        await second.wait_for(PacketType.PUBACK)
        await first.wait_for(PacketType.PUBACK)
    assert handled == {"a/<x> 1": 1, "a/# 1": 1, "<x>/b 1": 1}


async def test_one_link_is_enough_where_messages_bear_identifiers(fake_broker: FakeBroker) -> None:
    app, handled = app_called("one"), Counter[str]()
    for template in ("a/<x>", "a/#"):
        count(app, handled, template, template)
    async with app.running(broker=fake_broker.url):
        (connection,) = consumers(fake_broker)
        for number, filter in enumerate(("a/+", "a/#"), start=1):
            connection.publish("a/b", b"1", qos=1, packet_id=number, subscription_ids=[subscription_id(filter)])
        await connection.wait_for(PacketType.PUBACK, 2)
        connection.publish(
            "a/b", b"2", qos=1, packet_id=3, subscription_ids=[subscription_id("a/+"), subscription_id("a/#")]
        )
        await connection.wait_for(PacketType.PUBACK, 3)
    assert handled == {"a/<x> 1": 1, "a/# 1": 1, "a/<x> 2": 1, "a/# 2": 1}


async def test_a_link_that_is_lost_makes_the_app_not_ready(fake_broker: FakeBroker) -> None:
    app, handled = app_called("lost", app={"overlap": "links"}), Counter[str]()
    for template in ("a/<x>", "<x>/b"):
        count(app, handled, template, template)
    async with app.running(broker=fake_broker.url):
        assert not app.readiness
        fake_broker.reply(PacketType.CONNECT, None)
        consumers(fake_broker)[1].reset()
        reasons = await eventually(lambda: app.readiness)
        assert reasons[0].startswith("lost-test-0-l1: connection lost")
        fake_broker.reply(PacketType.CONNECT, connack())


async def test_each_overlapping_pair_is_logged_once(fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    app, handled = app_called("pairs"), Counter[str]()
    for template in ("a/<x>", "a/#", "b"):
        count(app, handled, template, f"route {template}")
    with caplog.at_level(logging.INFO, "mqttapi.link"):
        async with app.running(broker=fake_broker.url):
            pass
    told = [text for text in caplog.messages if "overlap" in text]
    assert told == ["'route a/<x>' (a/<x>) and 'route a/#' (a/#) overlap: a message that matches both runs both"]


# Isolation and order


@VERSIONS
async def test_an_isolated_route_holds_up_nobody(mosquitto: Mosquitto, version: str) -> None:
    """Behind a stuck handler with a window of its own the others' messages are acknowledged, all of them."""
    gate, handled = asyncio.Event(), Counter[str]()
    app = app_called("alone", version, max_in_flight=5)

    @app.topic("s/#", isolate=True)
    async def stuck(payload: str) -> None:
        await gate.wait()
        handled[f"stuck {payload}"] += 1

    count(app, handled, "s/<id>", "quick")
    async with app.running(broker=mosquitto.url):
        await send(mosquitto, "s/1", *map(str, range(100)))
        await eventually(lambda: handled.total() == 100, what=lambda: str(handled))
        gate.set()
        await eventually(lambda: handled.total() == 200, what=lambda: str(handled))
    assert set(handled.values()) == {1}


async def test_acknowledgements_leave_as_messages_complete_where_the_app_says_so(fake_broker: FakeBroker) -> None:
    app, gate = app_called("completed", app={"ack_order": "completed"}), asyncio.Event()

    @app.topic("s/<id>")
    async def handler(id: str) -> None:
        if id == "1":
            await gate.wait()

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        for number in (1, 2, 3):
            connection.publish(f"s/{number}", b"", qos=1, packet_id=number)
        answers = await connection.wait_for(PacketType.PUBACK, 2)
        gate.set()
        answers = await connection.wait_for(PacketType.PUBACK, 3)
    assert [packet.packet_id for packet in answers] == [2, 3, 1]


async def test_a_message_acknowledged_as_it_comes_waits_for_no_handler(fake_broker: FakeBroker) -> None:
    app, gate = app_called("early"), asyncio.Event()

    @app.topic("s/<id>", ack="received")
    async def handler() -> None:
        await gate.wait()

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.publish("s/1", b"", qos=1, packet_id=1)
        await connection.wait_for(PacketType.PUBACK)
        assert app.stats.in_flight == 1
        gate.set()


# Former versions


def left_behind(broker: FakeBroker) -> list[str]:
    return [text for packet in broker.packets(PacketType.UNSUBSCRIBE) for text in packet.filters]


def _unsubscribed(broker: FakeBroker, filter: str) -> bool:
    return filter in left_behind(broker)


@VERSIONS
async def test_what_a_former_version_subscribed_to_is_unsubscribed(mosquitto: Mosquitto, version: str) -> None:
    """The record on disk knows it; without it the second run would get these messages for ever."""
    handled: Counter[str] = Counter()
    before = app_called("deploy", version)
    for template in ("old/<x>", "old/<x>/more", "kept"):
        count(before, handled, template, shared="g" if "more" in template else False)
    async with before.running(broker=mosquitto.url):
        pass
    await send(mosquitto, "old/1", "waited")
    after = app_called("deploy", version)
    count(after, handled, "kept")
    async with after.running(broker=mosquitto.url):
        await eventually(lambda: after.stats.unmatched == 1)
        async with client(mosquitto.url) as publisher:

            async def nobody_listens() -> bool:
                return await publisher.publish("old/1", b"x") == 0x10

            await eventually(nobody_listens)
            await publisher.publish("kept", b"x")
        await eventually(lambda: handled["x"])
    assert handled == {"x": 1}


async def test_what_no_record_knows_is_found_by_its_identifier(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, SESSION_PRESENT)
    app, handled = app_called("hash"), Counter[str]()
    count(app, handled, "a/<x>")
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        for number, full in enumerate(("old/#", "$share/hash/+/b"), start=1):
            connection.publish("old/b", b"x", qos=1, packet_id=number, subscription_ids=[subscription_id(full)])
            await eventually(partial(_unsubscribed, fake_broker, full))
        await connection.wait_for(PacketType.PUBACK, 2)
        connection.publish("a/b", b"known", qos=1, packet_id=3, subscription_ids=[subscription_id("old/#")])
        await connection.wait_for(PacketType.PUBACK, 3)
        stats = app.stats
        assert (stats.unmatched, stats.unknown_ids) == (2, 3)
    assert handled == {"known": 1}


@VERSIONS
async def test_the_app_may_name_former_filters(fake_broker: FakeBroker, version: str) -> None:
    """A record that is lost; and a broker that never sends UNSUBACK."""
    fake_broker.reply(PacketType.CONNECT, lambda c, p: connack(session_present=True, version=c.version))
    fake_broker.reply(PacketType.UNSUBSCRIBE, None)
    app, handled = app_called("named", version, app={"former_filters": ["old/+", "$share/g/x", "a"]}), Counter[str]()
    count(app, handled, "a")
    async with app.running(broker=fake_broker.url):
        await eventually(lambda: left_behind(fake_broker))
        assert app.readiness == ()
    assert left_behind(fake_broker) == ["$share/g/x", "old/+"]


async def test_a_new_session_has_nothing_to_unsubscribe_from(fake_broker: FakeBroker) -> None:
    app, handled = app_called("fresh", app={"former_filters": ["old/+"]}), Counter[str]()
    count(app, handled, "a")
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        connection.publish("a", b"x", qos=1, packet_id=1)
        await connection.wait_for(PacketType.PUBACK)
    assert left_behind(fake_broker) == []


async def test_the_record_is_written_before_anything_is_subscribed_to(fake_broker: FakeBroker, tmp_path: Path) -> None:
    def recorded(connection: Connection, packet: Packet) -> None:
        (path,) = (tmp_path / "early").glob("*.filters.json")
        assert json.loads(path.read_text())["filters"] == ["$share/early/b", "a"]

    fake_broker.reply(PacketType.SUBSCRIBE, recorded)
    app, handled = app_called("early", state_dir=tmp_path), Counter[str]()
    count(app, handled, "a")
    count(app, handled, "b", shared=True)
    running = asyncio.create_task(app.serve(broker=fake_broker.url))
    await fake_broker.subscribed()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_transient_session_leaves_no_record(fake_broker: FakeBroker, tmp_path: Path) -> None:
    app, handled = app_called("leaf", state_dir=tmp_path, app={"session": Session.transient()}), Counter[str]()
    count(app, handled, "a")
    async with app.running(broker=fake_broker.url):
        pass
    assert list(tmp_path.rglob("*.json")) == []


async def test_what_waits_for_a_client_id_of_a_former_version_is_handled_and_its_session_ended(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """The former version needed two links, the new one needs one."""
    caplog.set_level("INFO")
    handled: Counter[str] = Counter()
    before = app_called("merge", app={"overlap": "links"})
    for template in ("z/<a>/t", "z/1/<b>"):
        count(before, handled, template, template)
    async with before.running(broker=mosquitto.url):
        pass
    await send(mosquitto, "z/1/x", "waited")
    after = app_called("merge")
    for template in ("z/<a>/t", "z/1/<b>"):
        count(after, handled, template, template)
    async with after.running(broker=mosquitto.url):
        await eventually(lambda: "the session of merge-test-0-l1, which a former version" in caplog.text)
        assert handled == {"z/1/<b> waited": 1}
        async with client(mosquitto.url, client_id="merge-test-0-l1", clean=False) as probe:
            assert not probe.session_present


@VERSIONS
async def test_a_session_of_a_former_version_outlives_a_stop_before_all_of_it_is_handled(
    mosquitto: Mosquitto, version: str
) -> None:
    handled: Counter[str] = Counter()
    before = app_called("part", version, app={"overlap": "links"})
    for template in ("z/<a>/t", "z/1/<b>"):
        count(before, handled, template, template)
    async with before.running(broker=mosquitto.url):
        pass
    await send(mosquitto, "z/1/x", *(str(number) for number in range(100)))
    for enough in (20, 100):
        after = app_called("part", version, max_in_flight=5)

        @after.topic("z/1/<b>", ordered_by=None, concurrency=1)
        async def handle(payload: str) -> None:
            await asyncio.sleep(0.005)
            handled[payload] += 1

        async with after.running(broker=mosquitto.url):
            await eventually(partial(_has, handled, enough), what=lambda: f"{len(handled)} handled")
    assert handled == dict.fromkeys(map(str, range(100)), 1)


def _has(handled: Counter[str], count: int) -> bool:
    return len(handled) >= count


# Retained messages


@VERSIONS
async def test_retained_messages_come_as_the_route_says(mosquitto: Mosquitto, version: str) -> None:
    async with client(mosquitto.url) as publisher:
        for policy in ("all", "new", "skip", "only", "group"):
            await publisher.publish(f"{policy}/x", b"retained", retain=True)
    handled: Counter[str] = Counter()
    app = app_called("flag", version)
    for policy in ("all", "new", "skip", "only"):
        count(app, handled, f"{policy}/<x>", policy, retained=policy)
    count(app, handled, "group/<x>", "group", shared=True)
    async with app.running(broker=mosquitto.url):
        await eventually(lambda: handled["all retained"])
        async with client(mosquitto.url) as publisher:
            for policy in ("all", "new", "skip", "only", "group"):
                await publisher.publish(f"{policy}/x", b"live")
        await eventually(lambda: handled["all live"])
    assert handled == {
        **{f"{policy} retained": 1 for policy in ("all", "new", "only")},
        **{f"{policy} live": 1 for policy in ("all", "new", "skip", "group")},
    }


@VERSIONS
@pytest.mark.parametrize("lasting", [True, False])
async def test_a_retained_command_is_not_executed_again_at_each_connection(
    mosquitto: Mosquitto, proxy: Callable[..., Awaitable[Proxy]], version: str, lasting: bool
) -> None:
    between = await proxy(mosquitto.port)
    session = Session(expiry=600) if lasting else Session.transient()
    app, handled = app_called("command", version, app={"session": session}), Counter[str]()
    count(app, handled, "command/<x>", "new", retained="new")
    count(app, handled, "state/<x>", "all", retained="all")
    await send(mosquitto, "command/x", "run", retain=True)
    await send(mosquitto, "state/x", "on", retain=True)
    async with app.running(broker=between.url):
        for turn in (1, 2, 3):
            await eventually(partial(_counted, handled, "all on", turn))
            if turn < 3:
                sent = len(between.packets(TO_CLIENT, PacketType.PUBLISH))
                await between.wait_for(TO_BROKER, PacketType.PUBACK, sent)
                between.close()
    assert handled == {"new run": 1, "all on": 3}


@VERSIONS
async def test_a_new_process_of_the_same_session_has_no_new_subscription(mosquitto: Mosquitto, version: str) -> None:
    await send(mosquitto, "command/x", "run", retain=True)
    await send(mosquitto, "state/x", "on", retain=True)
    handled: Counter[str] = Counter()
    for turn in (1, 2):
        app = app_called("again", version)
        count(app, handled, "command/<x>", "new", retained="new")
        count(app, handled, "state/<x>", "all", retained="all")
        async with app.running(broker=mosquitto.url):
            await eventually(partial(_counted, handled, "all on", turn))
    assert handled == {"new run": 1, "all on": 2}


# What matches nothing


@VERSIONS
async def test_the_fallback_gets_what_matches_no_route(mosquitto: Mosquitto, version: str) -> None:
    app, handled = app_called("fall", version), Counter[str]()
    count(app, handled, "s/<n:int>", "number")
    count(app, handled, "dev/d-<x>", "part")

    @app.fallback
    async def rest(message: Message) -> None:
        handled[f"rest {message.topic}"] += 1

    async with app.running(broker=mosquitto.url):
        for topic in ("s/7", "s/x", "dev/d-1", "dev/1", "elsewhere"):
            await send(mosquitto, topic, "p")
        await eventually(lambda: handled.total() >= 4)
    assert handled == {"number p": 1, "part p": 1, "rest s/x": 1, "rest dev/1": 1}


@VERSIONS
async def test_a_fallback_subscribes_to_what_it_is_told(mosquitto: Mosquitto, version: str) -> None:
    app, handled = app_called("listen", version), Counter[str]()
    count(app, handled, "s/<n:int>", "number")

    @app.fallback(filter="s/#")
    async def rest(message: Message) -> None:
        handled[f"rest {message.topic}"] += 1

    async with app.running(broker=mosquitto.url):
        for topic in ("s/x", "s/x/y", "s/7"):
            await send(mosquitto, topic, "p")
        await eventually(lambda: handled.total() >= 3)
    assert handled == {"number p": 1, "rest s/x": 1, "rest s/x/y": 1}


async def test_what_no_route_is_for_is_acknowledged_counted_and_logged_but_not_each_time(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app, handled = app_called("nobody"), Counter[str]()
    count(app, handled, "a/<n:int>")
    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        for number in range(1, 6):
            connection.publish("a/x", b"", qos=1, packet_id=number, subscription_ids=[subscription_id("a/+")])
        await connection.wait_for(PacketType.PUBACK, 5)
        assert app.stats.unmatched == 5
    assert [text for text in caplog.messages if "no route" in text] == [
        "no route is for a message on a/x, as for 0 before: acknowledged and dropped"
    ]


# Bounds


async def test_a_flood_is_bounded_by_messages_and_by_bytes(fake_broker: FakeBroker) -> None:
    """Of a broker that ignores Receive Maximum."""
    app, handled, gate = (
        app_called("flood", max_in_flight=100, max_in_flight_bytes=20_000),
        Counter[str](),
        asyncio.Event(),
    )

    @app.topic("s/<id>", ordered_by=None)
    async def handler(message: Message) -> None:
        await gate.wait()
        handled[message.topic] += 1

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        small = [publish("s/1", b"x", qos=1, packet_id=number) for number in range(1, 2501)]
        large = [publish("s/2", b"x" * 1000, qos=1, packet_id=number) for number in range(2501, 5001)]
        connection.send(b"".join(small + large))
        assert app._service is not None
        assert app._service.consumer is not None
        (intake,) = app._service.consumer.intakes
        highest = [0, 0]

        def bounded() -> bool:
            highest[0] = max(highest[0], intake.ledger.held)
            highest[1] = max(highest[1], intake.ledger.held_bytes)
            gate.set()
            return handled.total() == 5000

        await eventually(lambda: intake.ledger.held == 100)
        await eventually(bounded, within=20)
        assert highest[0] <= 100
        assert highest[1] <= 20_000 + 1003
        await connection.wait_for(PacketType.PUBACK, 5000)


async def test_a_message_that_holds_up_the_others_is_told_of(
    fake_broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mqttapi.runtime.intake.HEAD_AGE", 0.0)
    app, gate = app_called("head", max_in_flight=10), asyncio.Event()

    @app.topic("s/<id>", name="slow")
    async def handler(id: str) -> None:
        if id == "1":
            await gate.wait()

    async with app.running(broker=fake_broker.url):
        connection = await fake_broker.subscribed()
        for number in range(1, 11):
            connection.publish(f"s/{number}", b"", qos=1, packet_id=number)
        await eventually(lambda: any("handling a message" in text for text in caplog.messages))
        gate.set()
    (told,) = (text for text in caplog.messages if "handling a message" in text)
    assert re.match(r"slow has been handling a message on s/1 for \d+ s: 9 others wait for it to be acknowledged", told)


@VERSIONS
async def test_overflow_drops_what_waits_and_handles_the_rest(mosquitto: Mosquitto, version: str) -> None:
    app = app_called("burst", version, max_queued=10)
    gate, handled = asyncio.Event(), list[str]()

    @app.topic("s/<id>", qos=0, overflow="drop_oldest", name="r")
    async def handler(payload: str) -> None:
        await gate.wait()
        handled.append(payload)

    async with app.running(broker=mosquitto.url):
        await send(mosquitto, "s/1", "first", qos=0)
        await eventually(lambda: app.stats.in_flight == 1)
        await send(mosquitto, "s/1", *map(str, range(100)), qos=0)
        await eventually(lambda: app.stats.routes["r"].overflowed == 91, what=lambda: str(app.stats))
        gate.set()
    assert handled == ["first", *map(str, range(91, 100))]
