from __future__ import annotations

from typing import Any

import pytest

from examples.payloads import app
from mqttapi.testing import TestClient


@pytest.mark.parametrize(
    ("topic", "payload", "said"),
    [
        ("sensors/7/data", {"temperature": 21.5}, "7: 21.5 °C"),
        ("trucks/a/position", {"latitude": 1, "longitude": 2}, "a is at 1.0 2.0"),
        ("lamps/l/set", {"kind": "dim", "level": 5}, "l: kind='dim' level=5"),
        ("batches/7", [{"temperature": 1}, {"temperature": 2}], "2 readings of 7"),
        ("counters/7", "12", "7 counted 12"),
        ("setpoints/7", "21", "7 shall have 21.0 °C"),
        ("notes/7", '{"a": 1}', "7 notes '{\"a\": 1}'"),
        ("retained/7", b"", "7 is gone, retained: False"),
    ],
)
async def test_a_payload_is_what_the_hint_says(
    capsys: pytest.CaptureFixture[str], topic: str, payload: Any, said: str
) -> None:
    async with TestClient(app) as client:
        assert (await client.publish(topic, payload)).outcome == "done"
    assert capsys.readouterr().out == f"{said}\n"


async def test_a_user_property_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        await client.publish("images/7", b"\xff\xd8", user_properties=[("tenant", "acme")])
        assert (await client.publish("images/7", b"\xff\xd8")).outcome == "rejected"
    assert capsys.readouterr().out == "2 bytes of 7, which belongs to acme\n"


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("sensors/7/data", {"temperature": 999}, "temperature: Input should be less than or equal to 200"),
        ("sensors/7/data", b"", "payload is empty"),
        ("counters/7", "many", "Input should be a valid integer, unable to parse string as an integer"),
        ("lamps/l/set", {"kind": "dim", "level": 500}, "dim.level: Input should be less than or equal to 100"),
    ],
)
async def test_what_does_not_validate_is_rejected_with_the_reason(topic: str, payload: Any, reason: str) -> None:
    async with TestClient(app) as client:
        delivery = await client.publish(topic, payload)
    assert (delivery.outcome, delivery.reason) == ("rejected", reason)
