"""`App(credentials=…)` is asked at every connect, by both connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pydantic import SecretStr

from mqttapi import App, ConfigurationError, ConnectionRefused
from mqttapi.config import Settings
from mqttapi.transport import dialer
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.packets import PacketType
from tests.support.waiting import eventually


def new_app(credentials: Any) -> App:
    app = App("secret", settings=Settings(instance="test", grace=5.0), credentials=credentials)

    @app.topic("s/<id>")
    async def handle() -> None: ...

    return app


async def test_a_password_that_changes_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    with Mosquitto(users={"ada": "one"}) as broker:

        async def credentials() -> tuple[str, str]:
            return "ada", (broker.users or {})["ada"]

        app = new_app(credentials)
        async with app.running(broker=broker.url):
            broker.users = {"ada": "two"}
            broker.restart()
            await eventually(lambda: app.readiness)
            await eventually(lambda: not app.readiness, what=lambda: str(app.readiness))
            await app.publish("a", "b")


async def test_both_connections_ask(fake_broker: FakeBroker) -> None:
    asked = 0

    async def credentials() -> tuple[str, str]:
        nonlocal asked
        asked += 1
        return "ada", f"token {asked}"

    app = new_app(credentials)
    async with app.running(broker=fake_broker.url):
        await app.publish("a", "b")
        passwords = {packet.connect.password for packet in fake_broker.packets(PacketType.CONNECT)}
    assert passwords == {b"token 1", b"token 2"}


async def test_credentials_that_fail_are_asked_for_again_and_no_secret_is_told(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    asked = 0

    async def credentials() -> tuple[str, str]:
        nonlocal asked
        asked += 1
        if asked < 10:
            raise RuntimeError("hunter2")
        return "ada", "hunter3"

    app = new_app(credentials)
    with caplog.at_level(logging.DEBUG):
        async with app.running(broker=fake_broker.url):
            await app.publish("a", "b")
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage() == "credentials: credentials() raised RuntimeError; trying again until it works"
    assert "hunter" not in caplog.text


async def test_a_cancelled_task_inside_is_a_failure_like_any_other(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither connection takes it for its own end."""
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    asked = 0

    async def credentials() -> tuple[str, str]:
        nonlocal asked
        asked += 1
        if asked < 10:
            inner = asyncio.ensure_future(asyncio.get_running_loop().create_future())
            inner.cancel()
            await inner
        return "ada", "hunter2"

    app = new_app(credentials)
    async with app.running(broker=fake_broker.url):
        await app.publish("a", "b")
    assert "credentials: credentials() raised CancelledError; trying again until it works" in caplog.text


@pytest.mark.parametrize("who", ["link", "publishing"])
async def test_the_end_of_the_app_ends_the_asking(fake_broker: FakeBroker, who: str) -> None:
    asked = 0
    hangs = asyncio.Event()

    async def credentials() -> tuple[str, str]:
        nonlocal asked
        asked += 1
        if asked > (0 if who == "link" else 2):
            hangs.set()
            await asyncio.get_running_loop().create_future()
        return "ada", "hunter2"

    async def live() -> None:
        async with new_app(credentials).running(broker=fake_broker.url):
            for each in fake_broker.connections:
                each.reset()
            await hangs.wait()

    running = asyncio.create_task(live())
    await hangs.wait()
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("\ud800", "x"), "a user name that cannot be written as UTF-8 [MQTT-1.5.4-1]"),
        (("a\0b", "x"), "a user name with a NUL [MQTT-1.5.4-2]"),
        (("u" * 65_536, "x"), "a user name of 65,536 bytes: MQTT sends 65,535 at most"),
        (("u", "\ud800"), "a password that cannot be written as UTF-8 [MQTT-1.5.4-1]"),
        (("u", SecretStr("é" * 40_000)), "a password of 80,000 bytes: MQTT sends 65,535 at most"),
    ],
)
async def test_what_mqtt_cannot_send_is_told_and_asked_for_again(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, given: Any, text: str
) -> None:
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    asked = 0

    async def credentials() -> Any:
        nonlocal asked
        asked += 1
        return given if asked < 8 else ("ada", None)

    app = new_app(credentials)
    async with app.running(broker=fake_broker.url):
        await app.publish("a", "b")
    assert f"credentials: credentials() gave {text}; trying again until it works" in caplog.text


async def test_wrong_credentials_end_the_start() -> None:
    async def credentials() -> tuple[str, str]:
        return "ada", "hunter2"

    with Mosquitto(users={"ada": "one"}) as broker, pytest.raises(ConnectionRefused, match="0x87") as caught:
        async with new_app(credentials).running(broker=broker.url):
            pass
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [("ada", "hunter2"), lambda: ("ada", "hunter2")])
def test_what_is_no_async_function_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="credentials must be an 'async def' that returns") as caught:
        App("secret", credentials=wrong)
    assert "hunter2" not in str(caught.value)
