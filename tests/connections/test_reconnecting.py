"""Connections that cannot be had, are lost, or are refused: what an app does, says and reports."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import mqtt5
import pytest

from mqttapi import App, ConnectionRefused
from mqttapi.config import Settings
from mqttapi.runtime.links import subscription_id
from mqttapi.transport import dialer, link
from tests.support.fake_broker import Connection, FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import Packet, PacketType, connack, suback
from tests.support.process import HOST, free_port
from tests.support.waiting import eventually

TAKEN_OVER = mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER)
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    monkeypatch.setattr(dialer, "RIVAL_PAUSE", 0.01)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "mqttapi"):
        yield caplog


def lines(said: pytest.LogCaptureFixture, least: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in said.records if record.levelno >= least]


def counting(name: str, **settings: Any) -> tuple[App, Counter[str]]:
    """An app that counts the payloads it has handled."""
    app = App(name, settings=Settings(instance="test", grace=5.0, **settings))
    handled: Counter[str] = Counter()

    @app.topic("s/<id>")
    async def count(payload: str) -> None:
        handled[payload] += 1

    return app, handled


@asynccontextmanager
async def starting(app: App, broker: str) -> AsyncIterator[asyncio.Event]:
    """The app in a task: the event is set when it is ready; it is stopped at the end."""
    ready, enough = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with app.running(broker=broker):
            ready.set()
            await enough.wait()

    task = asyncio.create_task(run())
    try:
        yield ready
    finally:
        enough.set()
        if not ready.is_set():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def failures(app: App) -> int:
    consumer = app._service and app._service.consumer
    return consumer.links[0]._dialer.failures if consumer else 0


async def publish(broker: Mosquitto, *payloads: str) -> None:
    async with client(broker.url) as publisher:
        for payload in payloads:
            await publisher.publish("s/1", payload.encode(), qos=1)


@pytest.mark.usefixtures("impatient")
@VERSIONS
async def test_a_broker_that_is_away_for_long_is_found_again(
    mosquitto: Mosquitto, said: pytest.LogCaptureFixture, version: str
) -> None:
    """Still trying after any number of attempts, readiness says so, and nothing that waited is lost."""
    app, handled = counting("away", protocol=version)
    async with app.running(broker=mosquitto.url):
        assert not app.readiness
        mosquitto.stop()
        await eventually(lambda: failures(app) > 40)
        refused = f"cannot connect to {mosquitto.url}: Connection refused"
        assert app.readiness == (refused, f"publishing: {refused}")
        mosquitto.start()
        await publish(mosquitto, "while away")  # to the session, or to the app: whoever comes first
        await eventually(lambda: not app.readiness)
        await publish(mosquitto, "back")
        await eventually(lambda: handled == {"while away": 1, "back": 1})
    assert [line for line in lines(said) if "session lost" not in line] == [
        "connection lost: the broker closed the connection; trying again until it works",
        f"{refused}; trying again until it works",
    ]
    assert "connected again and subscribed" in lines(said, logging.INFO)


@pytest.mark.usefixtures("impatient")
async def test_a_broker_that_is_not_there_yet_is_waited_for_with_one_warning(said: pytest.LogCaptureFixture) -> None:
    app, handled = counting("early")
    broker = Mosquitto()
    async with starting(app, broker.url) as ready:
        await eventually(lambda: app.readiness and "Connection refused" in app.readiness[0])
        await eventually(lambda: failures(app) > 10)
        assert not ready.is_set()
        with broker:
            await asyncio.wait_for(ready.wait(), 10)
            await publish(broker, "x")
            await eventually(lambda: handled["x"] == 1)
    assert lines(said)[0] == f"cannot connect to {broker.url}: Connection refused; trying again until it works"
    first = "\n".join(lines(said, logging.INFO)).partition("connected to")[0]
    assert first.count("Connection refused") == 1


@pytest.mark.parametrize("code", [0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C])
async def test_a_refusal_for_good_ends_the_start(fake_broker: FakeBroker, code: int) -> None:
    fake_broker.reply(PacketType.CONNECT, connack(code))
    app, _ = counting("refused", protocol="5")
    with pytest.raises(ConnectionRefused, match=rf"refuses the connection: .*0x{code:02X}") as caught:
        async with app.running(broker=fake_broker.url):
            pass
    assert caught.value.reason_code == code


async def test_a_refusal_for_good_ends_a_lifespan_that_waits_for_a_publish(fake_broker: FakeBroker) -> None:
    """Else nobody would ever know: the app waits for the lifespan, the lifespan for the broker."""
    fake_broker.reply(PacketType.CONNECT, connack(0x87))
    closed: list[bool] = []

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        try:
            await app.publish("status", "online")
            yield
        finally:
            closed.append(True)

    app = App("waits", settings=Settings(instance="test"), lifespan=lifespan)
    with pytest.raises(ConnectionRefused, match="0x87"):
        async with app.running(broker=fake_broker.url):
            pass
    assert closed == [True]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@pytest.mark.usefixtures("impatient")
async def test_a_refusal_that_may_pass_is_tried_again(fake_broker: FakeBroker, said: pytest.LogCaptureFixture) -> None:
    fake_broker.reply(PacketType.CONNECT, connack(0x88))
    app, _ = counting("busy")
    async with starting(app, fake_broker.url) as ready:
        await fake_broker.connected(8)
        fake_broker.reply(PacketType.CONNECT, connack())
        await asyncio.wait_for(ready.wait(), 10)
    assert len(lines(said)) == 1
    assert "Server unavailable (0x88)" in lines(said)[0]


@pytest.mark.usefixtures("impatient")
async def test_after_a_first_success_even_refusals_for_good_are_tried_again(
    fake_broker: FakeBroker, said: pytest.LogCaptureFixture
) -> None:
    text = "refuses the connection: Not authorized (0x87)"
    app, _ = counting("later")
    async with app.running(broker=fake_broker.url):
        accepting = fake_broker._replies[PacketType.CONNECT]
        fake_broker.reply(PacketType.CONNECT, lambda _c, _p: connack(0x87))
        (await fake_broker.subscribed()).reset()
        await eventually(lambda: failures(app) > 5)
        await eventually(lambda: any(text in reason for reason in app.readiness), what=lambda: str(app.readiness))
        fake_broker.reply(PacketType.CONNECT, accepting)
        await eventually(lambda: not app.readiness, what=lambda: str(app.readiness))
    errors = [each for each in said.records if (each.levelname, each.name) == ("ERROR", "mqttapi.link")]
    assert len(errors) == 1
    assert text in errors[0].getMessage()


@pytest.mark.usefixtures("impatient")
async def test_a_subscription_that_is_refused_later_costs_the_others_nothing(
    fake_broker: FakeBroker, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays, readiness and one error name it, and it alone is tried again."""
    monkeypatch.setattr(link, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(link, "_LONGEST_PAUSE", 0.01)
    app, handled = counting("partly")

    @app.topic("bad/<id>")
    async def other() -> None: ...

    def answer(connection: Connection, packet: Packet) -> bytes:
        return suback(packet.packet_id, [0x87 if each == "bad/+" else 1 for each in packet.filters])

    text = "the broker refuses the subscription 'bad/+' of "
    async with app.running(broker=fake_broker.url):
        accepting = fake_broker._replies[PacketType.SUBSCRIBE]
        fake_broker.reply(PacketType.SUBSCRIBE, answer)
        (await fake_broker.subscribed()).reset()
        again = await fake_broker.subscribed(2)
        sent = await again.wait_for(PacketType.SUBSCRIBE, 8)
        assert {each for packet in sent[2:] for each in packet.filters} == {"bad/+"}
        (reason,) = app.readiness
        assert reason.startswith(text)
        again.publish("s/1", b"x", qos=1, packet_id=1, subscription_ids=[subscription_id("s/+")])
        await again.wait_for(PacketType.PUBACK)
        assert handled == {"x": 1}
        fake_broker.reply(PacketType.SUBSCRIBE, accepting)
        await eventually(lambda: not app.readiness, what=lambda: str(app.readiness))
        assert not again.closed
    (error,) = lines(said, logging.ERROR)
    assert error.startswith(text)
    assert lines(said, logging.INFO)[-1] == "subscribed to everything again"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("present", [True, False])
async def test_subscribe_follows_every_connack(fake_broker: FakeBroker, present: bool) -> None:
    """Also where the session is there: brokers forget shared subscriptions over a restart."""
    app, _ = counting("again")
    async with app.running(broker=fake_broker.url):
        fake_broker.reply(PacketType.CONNECT, connack(session_present=present))
        for count in range(1, 5):
            (await fake_broker.subscribed(count)).reset()
        last = await fake_broker.subscribed(5)
        assert [each.pattern for each in last.packets(PacketType.SUBSCRIBE)[0].subscribe.topic_filters] == ["s/+"]


async def test_a_takeover_ends_the_app(fake_broker: FakeBroker, said: pytest.LogCaptureFixture) -> None:
    app, _ = counting("taken")
    async with app.running(broker=fake_broker.url):
        (await fake_broker.subscribed()).send(TAKEN_OVER)
        text = "client id 'taken-test-0' was taken over by another client"
        await eventually(lambda: app.readiness and text in app.readiness[0])
        await eventually(lambda: any(text in line for line in lines(said, logging.ERROR)))
    assert len([each for each in fake_broker.connections if each.client_id == "taken-test-0"]) == 1


async def test_a_takeover_before_the_suback_ends_the_start(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.SUBSCRIBE, TAKEN_OVER)
    app, _ = counting("taken-early")
    with pytest.raises(ConnectionRefused, match="taken over") as caught:
        async with app.running(broker=fake_broker.url):
            pass
    assert caught.value.reason_code == 0x8E


@pytest.mark.usefixtures("impatient")
async def test_a_silent_takeover_is_suspected(fake_broker: FakeBroker, said: pytest.LogCaptureFixture) -> None:
    def lose(connection: Connection, packet: Packet) -> None:
        connection.send(suback(packet.packet_id, [1]))
        connection.close()

    app, _ = counting("rival")
    fake_broker.reply(PacketType.SUBSCRIBE, lose)
    async with app.running(broker=fake_broker.url):
        await eventually(lambda: lines(said, logging.ERROR))
        assert "is client id 'rival-test-0' used elsewhere?" in lines(said, logging.ERROR)[0]
        assert any("used elsewhere?" in reason for reason in app.readiness)
        assert len([each for each in fake_broker.connections if each.client_id == "rival-test-0"]) >= 3


async def test_two_apps_with_one_id_slow_down_and_say_so(
    mosquitto: Mosquitto, said: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    """Mosquitto closes the older connection without a word; on two machines no lock can tell."""
    one, _ = counting("twins", runtime_dir=tmp_path / "a")
    other, _ = counting("twins", runtime_dir=tmp_path / "b")
    async with one.running(broker=mosquitto.url), other.running(broker=mosquitto.url):
        await eventually(lambda: lines(said, logging.ERROR), within=20)
        assert "is client id 'twins-test-0' used elsewhere?" in lines(said, logging.ERROR)[0]
        connects = mosquitto.log().count("as twins-test-0 ")
        assert connects <= 8  # three each until one of them knows, and the last word of the other


@pytest.mark.usefixtures("impatient")
async def test_a_session_that_the_broker_has_lost_is_told(said: pytest.LogCaptureFixture) -> None:
    app, _ = counting("lost")
    with Mosquitto(persistence=False) as mosquitto:
        async with app.running(broker=mosquitto.url):
            mosquitto.restart()
            await eventually(lambda: any("session lost" in line for line in lines(said)))


async def test_a_shorter_session_than_asked_for_is_told(
    fake_broker: FakeBroker, said: pytest.LogCaptureFixture
) -> None:
    fake_broker.reply(PacketType.CONNECT, mqtt5.ConnAckPacket(session_expiry_interval=60))
    app, _ = counting("short")
    async with app.running(broker=fake_broker.url):
        (line,) = lines(said)
        assert line == (
            f"{fake_broker.url} keeps the session of short-test-0 for 60 s only, not for 86400 s: what comes in a "
            "longer absence is lost"
        )
    expiries = {each.client_id: each.received[0].connect.session_expiry_interval for each in fake_broker.connections}
    assert expiries == {"short-test-0": 86_400, "short-test-0-pub": 300}


async def test_a_broker_without_mqtt_5_is_told_once(fake_broker: FakeBroker, said: pytest.LogCaptureFixture) -> None:
    fake_broker.reply(PacketType.CONNECT, lambda peer, _: connack(int(peer.version == 5), version=4))
    app, _ = counting("an-app-with-a-long-name")
    async with app.running(broker=fake_broker.url):
        await app.publish("a", b"")
    assert [line.partition(":")[0] for line in lines(said)] == [
        "mqtt",
        "client id 'an-app-with-a-long-name-test-0' has 30 characters, and MQTT 3.1.1 brokers may refuse more than 23",
    ]
    assert "does not speak MQTT 5: going on with MQTT 3.1.1" in lines(said)[0]


async def test_where_the_version_is_set_no_other_is_tried(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, connack(1, version=4))
    app, _ = counting("strict", protocol="5")
    with pytest.raises(ConnectionRefused, match="does not speak this version of MQTT"):
        async with app.running(broker=fake_broker.url):
            pass


async def test_an_unresolvable_broker_is_tried_again(said: pytest.LogCaptureFixture) -> None:
    """In a cluster the name may come later than the app."""
    app, _ = counting("nowhere")
    async with starting(app, "mqtt://nowhere.invalid"):
        await eventually(lambda: lines(said))
        assert lines(said)[0].startswith("cannot resolve broker host 'nowhere.invalid'")


@pytest.mark.usefixtures("impatient")
async def test_app_that_waits_for_its_broker_can_be_cancelled(said: pytest.LogCaptureFixture) -> None:
    app, _ = counting("cancelled")
    task = asyncio.create_task(app.serve(broker=f"mqtt://{HOST}:{free_port()}"))
    await eventually(lambda: lines(said))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.readiness == ("the app is not running",)
