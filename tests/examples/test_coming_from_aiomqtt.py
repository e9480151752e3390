from __future__ import annotations

import pytest

from examples.coming_from_aiomqtt import app
from mqttapi.testing import TestClient


async def test_what_the_guide_shows(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        await client.publish("sensors/7/temperature", {"celsius": 81})
        await client.publish("sensors/7/status", "online")
    assert [(each.topic, each.payload) for each in client.published] == [("alerts/7", b"too hot")]
    assert capsys.readouterr().out == "sensors/7/status: online\n"
