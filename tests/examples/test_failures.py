from __future__ import annotations

import pytest

from examples.failures import app
from mqttapi.testing import TestClient


async def _outcome(topic: str, payload: int) -> tuple[str, list[tuple[str, object]]]:
    async with TestClient(app, raise_exceptions=False) as client:
        delivery = await client.publish(topic, payload)
        return delivery.outcome, [(publish.topic, publish.payload) for publish in client.published]


async def test_what_succeeds_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert await _outcome("registers/1", 5) == ("done", [])
    assert capsys.readouterr().out == "5\n"


async def test_what_keeps_failing_is_kept_as_a_dead_letter() -> None:
    assert await _outcome("registers/7", 5) == ("failed", [("dead/registers/7", b"5")])


async def test_what_is_rejected_is_kept_as_well() -> None:
    assert await _outcome("registers/7", 70_000) == ("rejected", [("dead/registers/7", b"70000")])


async def test_an_exception_handler_deals_with_it() -> None:
    assert await _outcome("registers/8", 5) == ("done", [("service/calls", b"8 is unplugged")])
