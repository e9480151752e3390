from __future__ import annotations

import pytest

from examples.topics import app
from mqttapi.testing import TestClient


@pytest.mark.parametrize(
    ("topic", "payload", "said"),
    [
        ("sensors/7/data", "21.5", "7 says 21.5"),
        ("lines/7/state", "up", "line 7 is up"),
        ("meters/gas/ab12", "5", "gas meter ab12: 5"),
        ("doors/north", "", "door north: alive"),
        ("doors/north/open", "", "door north: open"),
        ("files/a/b/c", "xyz", "3 bytes for a/b/c"),
        ("gateways/gw-12/boot", "", "gateway 12 has started"),
    ],
)
async def test_what_fits_is_handled(capsys: pytest.CaptureFixture[str], topic: str, payload: str, said: str) -> None:
    async with TestClient(app) as client:
        assert (await client.publish(topic, payload)).outcome == "done"
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize(
    "topic", ["lines/x/state", "meters/coal/ab12", "meters/gas/12", "files", "gateways/12/boot", "sensors//data"]
)
async def test_what_does_not_fit_the_template_does_not_match(topic: str) -> None:
    async with TestClient(app) as client:
        assert (await client.publish(topic, "1")).outcome == "unmatched"


def test_a_topic_is_built_from_the_name_of_a_route() -> None:
    assert app.topic_for("data", device_id="7") == "sensors/7/data"
