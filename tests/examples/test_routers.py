from __future__ import annotations

import pytest

from examples.routers import app
from mqttapi.testing import TestClient


def test_prefixes_and_options_add_up() -> None:
    assert [(route.template.text, route.qos, route.timeout) for route in app.routes] == [
        ("acme/plant/devices/<device_id>/data", 1, 5),
        ("acme/plant/devices/<device_id>/status", 0, 5),
    ]


async def test_the_constraint_of_the_outer_router_holds(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        assert (await client.publish("acme/plant/devices/7/status", "up")).outcome == "done"
        assert (await client.publish("acme/plant/devices/x/status", "up")).outcome == "unmatched"
    assert capsys.readouterr().out == "7 is up\n"
