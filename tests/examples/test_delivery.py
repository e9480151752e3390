from __future__ import annotations

import pytest

from examples.delivery import app
from mqttapi.testing import TestClient


@pytest.mark.parametrize(
    ("topic", "retain", "printed"),
    [
        ("lines/7/state", True, ["line 7 is x", "archived lines/7/state"]),
        ("lines/7/commands", False, ["line 7: x", "archived lines/7/commands"]),
        ("lines/7/position", False, ["line 7 is at x", "archived lines/7/position"]),
        ("lines/x/state", False, ["archived lines/x/state"]),
        ("elsewhere", False, ["nobody is for elsewhere"]),
    ],
)
async def test_each_route_that_matches_runs_once(
    topic: str, retain: bool, printed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    async with TestClient(app) as client:
        await client.publish(topic, "x", retain=retain)
    assert capsys.readouterr().out.splitlines() == printed
