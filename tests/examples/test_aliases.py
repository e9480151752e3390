from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from examples.aliases import app
from mqttapi.config import Settings
from mqttapi.resources.sql import AsyncEngine, open_database
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_classes_names_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = open_database(Settings(database_url=f"sqlite:///{tmp_path}/plant.db"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE devices (id TEXT, name TEXT, room TEXT)"))
        await connection.execute(text("INSERT INTO devices VALUES ('7', 'pump', 'north')"))
    app.dependency_overrides[AsyncEngine] = engine
    async with TestClient(app) as client:
        await client.publish("devices/7/temperature", 215)
        await client.publish("devices/7/restarts", 3)
        rejected = await client.publish("devices/8/restarts", 3)
    await engine.dispose()
    assert capsys.readouterr().out == "north: 21.5 °C\npump: 3 restarts\n"
    assert (rejected.outcome, rejected.reason) == ("rejected", "unknown device")
