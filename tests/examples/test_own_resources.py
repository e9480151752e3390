from __future__ import annotations

import pytest

from examples.own_resources import app
from mqttapi.config import Settings
from mqttapi.testing import TestClient
from tests.support.redis import RedisServer


async def test_it_is_made_of_redis(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    app.settings = Settings(redis_url=redis_server.url)
    async with TestClient(app) as client:
        for device in ("7", "7", "8"):
            await client.publish(f"devices/{device}/hello")
    assert capsys.readouterr().out == "7 has come\n8 has come\n"
