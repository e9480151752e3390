from __future__ import annotations

from examples.redis_cache import app
from mqttapi.config import Settings
from mqttapi.testing import TestClient
from tests.support.redis import RedisServer


async def test_what_was_remembered_is_answered(redis_server: RedisServer) -> None:
    app.settings = Settings(redis_url=redis_server.url)
    async with TestClient(app) as client:
        await client.publish("sensors/7/temperature", 21.5)
        known = await client.publish("sensors/7/last", response_topic="answers")
        unknown = await client.publish("sensors/8/last", response_topic="answers")
    assert known.reply is not None
    assert unknown.reply is not None
    assert (known.reply.payload, unknown.reply.payload) == (b"21.5", b"")
