from __future__ import annotations

import re

import pytest

from examples.middleware import app
from mqttapi.testing import TestClient


async def test_middleware_changes_the_payload_and_tells_the_handler(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        await client.publish("sensors/7/data", {"data": {"celsius": 21}})
    assert re.fullmatch(r"7: 21.0 °C, known: True\ningest took [\d.]+ ms\n", capsys.readouterr().out)


async def test_middleware_ends_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestClient(app) as client:
        assert (await client.publish("sensors/9/data", {"celsius": 21})).outcome == "done"
    assert re.fullmatch(r"ingest took [\d.]+ ms\n", capsys.readouterr().out)
