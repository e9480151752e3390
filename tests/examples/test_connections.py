from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from examples.connections import app
from mqttapi.transport import dialer
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_new_token_is_used_at_the_next_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dialer, "MAX_DELAY", 0.01)
    token = tmp_path / "token"
    token.write_text("first\n")
    monkeypatch.setenv("TOKEN_FILE", str(token))
    monkeypatch.setenv("MQTT_INSTANCE", "test")
    with Mosquitto(users={"plant": "first", "test": "test"}) as broker, caplog.at_level(logging.INFO):
        as_test = broker.url.replace("//", "//test:test@")
        async with app.running(broker=broker.url):
            async with client(as_test) as shop:  # a loss while the first hook still waits would not be told
                await shop.subscribe("status/plant")
                assert (await shop.message()).payload == b"online"
            token.write_text("second\n")
            broker.users = {"plant": "second", "test": "test"}
            broker.restart()
            await eventually(lambda: "no orders at the moment: " in caplog.text)
            await eventually(lambda: not app.readiness, what=lambda: str(app.readiness))
            async with client(as_test) as shop:
                await shop.subscribe("status/plant")
                assert (await shop.message()).payload == b"online"
                await shop.publish("orders/7", b"", qos=1)
                await eventually(lambda: "order 7" in caplog.text)
