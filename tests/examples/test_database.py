from __future__ import annotations

from pathlib import Path

from examples.database import app
from mqttapi.config import Settings
from mqttapi.testing import TestClient


async def test_what_was_rejected_is_not_stored(tmp_path: Path) -> None:
    app.settings = Settings(database_url=f"sqlite:///{tmp_path}/plant.db")
    async with TestClient(app) as client:
        await client.publish("sensors/7/temperature", 21.5)
        await client.publish("sensors/7/temperature", 23)
        assert (await client.publish("sensors/7/temperature", -300)).outcome == "rejected"
        answer = await client.publish("sensors/7/hottest", response_topic="answers")
    assert answer.reply is not None
    assert answer.reply.payload == b"23.0"
