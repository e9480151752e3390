from __future__ import annotations

from typing import TYPE_CHECKING

from examples.controllers import app
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    import pytest


async def test_a_controller_publishes() -> None:
    async with TestClient(app) as client:
        await client.publish("devices/7/data", {"temperature": 90})
        await client.publish("devices/7/data", {"temperature": 20})
        await client.publish("alerts/7", {"temperature": 90})
        await client.publish("warnings/7", {"temperature": 95})
        await client.publish("alarms/7")
    assert [(sent.topic, sent.payload) for sent in client.published] == [
        ("alerts/7", b'{"temperature":90.0}'),
        ("log/alerts", b"7: 90.0"),
        ("log/alerts", b"7: 95.0"),
        ("log/alerts", b"7!"),
    ]
    assert app.topic_for("devices.data", device_id=7) == "devices/7/data"


async def test_a_method_may_have_several_topics(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        await client.publish("devices/7/status", "up")
        await client.publish("devices/7/state", "down")
    assert capsys.readouterr().out == "7 is up\n7 is down\n"
