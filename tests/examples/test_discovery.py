from __future__ import annotations

from typing import TYPE_CHECKING

from examples.discovery import app
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    import pytest


async def test_the_routers_of_the_package_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert [route.name for route in app.routes] == ["admin.restart", "sensors.data"]
    async with TestClient(app) as client:
        await client.publish("sensors/7/data", 21.5)
        await client.publish("admin/restart", "pump")
    assert capsys.readouterr().out == "sensor 7: 21.5\nrestarting pump\n"
