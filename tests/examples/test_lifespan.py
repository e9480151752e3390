from __future__ import annotations

import pytest

from examples.lifespan import app
from mqttapi.testing import TestClient


async def test_the_lifespan_says_when_the_app_comes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    client = TestClient(app)
    async with client:
        assert [publish.payload for publish in client.published] == [b"online"]
        await client.publish("sensors/7/temperature", 79)
        await client.publish("sensors/8/temperature", 79)
    assert [publish.payload for publish in client.published] == [b"online", b"offline"]
    assert capsys.readouterr().out == "8 is too hot\n"
