"""What fails, with a real broker: nothing is acknowledged before its failure has been dealt with."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mqttapi import App, Retry
from mqttapi.config import Settings, state_dir
from mqttapi.runtime.spool import Spool
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])


def settings(tmp_path: Path, version: str = "5", **values: Any) -> Settings:
    return Settings(protocol=version, instance="test", grace=5.0, state_dir=tmp_path, **values)


def failing(name: str, settings: Settings, **options: Any) -> tuple[App, list[str]]:
    """An app whose handler always fails, and the payloads that it was given."""
    app = App(name, settings=settings, **options)
    seen: list[str] = []

    @app.topic("s/<id>", name="r")
    async def handler(payload: str) -> None:
        seen.append(payload)
        raise ValueError("no")

    return app, seen


async def publish(broker: Mosquitto, topic: str, *payloads: str) -> None:
    async with client(broker.url) as publisher:
        for payload in payloads:
            await publisher.publish(topic, payload.encode(), qos=1)


@VERSIONS
async def test_a_dead_letter_reaches_its_topic(mosquitto: Mosquitto, tmp_path: Path, version: str) -> None:
    app, seen = failing("dead", settings(tmp_path, version), dead_letter="dead/<topic>", retry=Retry(2, delay=0))
    async with client(mosquitto.url) as reader, app.running(broker=mosquitto.url):
        await reader.subscribe("dead/#", qos=1)
        await publish(mosquitto, "s/1", "x")
        (letter,) = await eventually(lambda: reader.messages)
        assert letter.topic == "dead/s/1"
        if version == "5":
            assert letter.payload == b"x"
            about = dict(letter.publish.user_properties)
        else:
            about = json.loads(letter.payload)
            assert about["payload"] == "x"
        assert (about["mqttapi-topic"], about["mqttapi-error"], about["mqttapi-attempts"]) == ("s/1", "ValueError", "2")
        await eventually(lambda: app.stats.routes["r"].dead_lettered == 1)
    assert seen == ["x", "x"]
    assert Spool(state_dir("dead", tmp_path)).letters() == []


async def test_a_message_is_acknowledged_after_its_dead_letter_is_confirmed(
    mosquitto: Mosquitto, proxy: Callable[..., Awaitable[Proxy]], tmp_path: Path
) -> None:
    """While the broker confirms no publish nothing is acknowledged, and the app is not ready; then it goes on."""
    between = await proxy(mosquitto.port)
    app, seen = failing("held", settings(tmp_path), dead_letter="dead/<topic>")
    async with client(mosquitto.url) as reader, app.running(broker=between.url):
        await reader.subscribe("dead/#", qos=1)
        await eventually(lambda: not app.readiness)
        service = app._service
        assert service is not None
        assert service.publishing is not None
        sender = service.publishing.sender
        connection = sender.connection
        assert connection is not None
        sender.connection, sender._clear = None, False  # as if it were lost
        await publish(mosquitto, "s/1", "x")
        await eventually(lambda: any("1 dead letters can neither be sent" in reason for reason in app.readiness))
        assert between.packets(Direction.TO_BROKER, PacketType.PUBACK) == []
        sender.connection = connection
        sender._pump()
        await between.wait_for(Direction.TO_BROKER, PacketType.PUBACK, 1)
        assert app.readiness == ()
    assert seen == ["x"]


async def test_what_nobody_has_subscribed_to_is_on_the_disk_and_acknowledged(
    mosquitto: Mosquitto, tmp_path: Path, proxy: Callable[..., Awaitable[Proxy]], caplog: pytest.LogCaptureFixture
) -> None:
    between = await proxy(mosquitto.port)
    app, _ = failing("spooled", settings(tmp_path), dead_letter="dead/<topic>")
    async with app.running(broker=between.url):
        await publish(mosquitto, "s/1", "x", "y")
        await between.wait_for(Direction.TO_BROKER, PacketType.PUBACK, 2)
        route = app.stats.routes["r"]
        assert (route.failed, route.dead_lettered, route.spooled) == (2, 2, 2)
    assert "(dead letter on the disk, see 'mqttapi dead list')" in caplog.text
    letters = Spool(state_dir("spooled", tmp_path)).letters()
    assert [(letter.to, letter.payload, letter.why) for letter in letters] == [
        ("dead/s/1", b"x", "nobody has subscribed to it"),
        ("dead/s/1", b"y", "nobody has subscribed to it"),
    ]


async def test_a_full_spool_holds_the_message_until_there_is_room(mosquitto: Mosquitto, tmp_path: Path) -> None:
    app, _ = failing("full", settings(tmp_path, spool_max_bytes=1), dead_letter="dead/<topic>")
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "x")
        await eventually(lambda: any("MQTTAPI_SPOOL_MAX_BYTES" in reason for reason in app.readiness))
        assert app.stats.unacknowledged == 1
        async with client(mosquitto.url) as reader:  # now somebody listens
            await reader.subscribe("dead/#", qos=1)
            await eventually(lambda: reader.messages)
        await eventually(lambda: app.stats.unacknowledged == 0)
        assert app.stats.routes["r"].spooled == 0


async def test_what_is_held_at_the_end_comes_again(mosquitto: Mosquitto, tmp_path: Path) -> None:
    tight = settings(tmp_path, spool_max_bytes=1).model_copy(update={"grace": 0.2})
    app, seen = failing("again", tight, dead_letter="dead/<topic>")
    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "x")
        await eventually(lambda: app.stats.dead_letters_held)
    async with app.running(broker=mosquitto.url):
        await eventually(lambda: len(seen) == 2)


async def test_attempts_of_one_message_hold_back_its_own_topic_only(mosquitto: Mosquitto, tmp_path: Path) -> None:
    app = App("others", settings=settings(tmp_path), retry=Retry(2, delay=30, max_delay=30))
    seen: list[str] = []

    @app.topic("s/<id>")
    async def handler(id: str, payload: str) -> None:
        seen.append(f"{id} {payload}")
        if payload == "bad":
            raise ValueError

    async with app.running(broker=mosquitto.url):
        await publish(mosquitto, "s/1", "bad", "behind")
        await publish(mosquitto, "s/2", "good")
        await eventually(lambda: "2 good" in seen)
        assert seen == ["1 bad", "2 good"]
        service = app._service
        assert service is not None
        await service.workers.stop()
