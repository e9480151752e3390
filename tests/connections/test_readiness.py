"""`app.readiness`, over the life of an app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mqttapi import App
from mqttapi.config import Settings
from mqttapi.testing import TestClient
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.packets import PacketType, connack
from tests.support.waiting import eventually


async def test_it_says_what_the_app_does_instead_of_its_work(fake_broker: FakeBroker) -> None:
    seen: list[tuple[str, ...]] = []

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        seen.append(tuple(app.readiness))
        yield
        seen.append(tuple(app.readiness))

    app = App("phases", settings=Settings(instance="test"), lifespan=lifespan)
    assert list(app.readiness) == ["the app is not running"]
    async with app.running(broker=fake_broker.url):
        await app.publish("a", "b")
        assert not app.readiness
    assert list(app.readiness) == ["the app is not running"]
    assert seen[0] == ("the app is starting",)
    assert seen[1][0] == "the app is stopping"


async def test_it_tells_which_connection_is_not_there(fake_broker: FakeBroker) -> None:
    fake_broker.reply(PacketType.CONNECT, lambda _, packet: connack(0x89 * packet.connect.client_id.endswith("-pub")))
    app = App("half", settings=Settings(instance="test"))
    async with app.running(broker=fake_broker.url):
        await eventually(lambda: "Server busy (0x89)" in "".join(app.readiness))
        (reason,) = app.readiness
        assert reason.startswith(f"publishing: {fake_broker.url} refuses the connection")


async def test_in_a_test_without_a_broker_it_is_empty() -> None:
    async with TestClient(App("tested")) as client:
        assert not client.app.readiness


async def test_each_warning_of_the_configuration_is_logged_once(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_USERNAM", "ada")
    monkeypatch.setenv("MQTT_TLS_CA_FILE", "ca.pem")
    app = App("a-name-that-is-too-long-for-some", settings=Settings(instance="test", protocol="3.1.1"))

    @app.topic("s/<id>", shared=True, workers=3)
    async def handle() -> None: ...

    async with app.running(broker=fake_broker.url):
        await app.publish("a", "b")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("MQTT_USERNAM: did", "MQTT_TLS_CA_FILE is not used", "has 39 characters"):
        assert sum(part in line for line in warnings) == 1, warnings


async def test_a_session_that_was_lost_while_the_app_was_away_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = App("forgotten", settings=Settings(instance="test"))

    @app.topic("s/<id>")
    async def handle() -> None: ...

    with Mosquitto(persistence=False) as broker:
        for restart in (True, False):
            async with app.running(broker=broker.url):
                pass
            if restart:
                assert "session lost" not in caplog.text
                await asyncio.to_thread(broker.restart)
    assert f"session lost: {broker.url} has forgotten the session of forgotten-test-0" in caplog.text
