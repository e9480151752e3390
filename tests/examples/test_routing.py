from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlmodel import SQLModel

from examples.routing import Valve, app
from mqttapi.config import Settings
from mqttapi.resources.sql import AsyncEngine, open_database
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient]:
    engine = open_database(Settings(database_url=f"sqlite:///{tmp_path}/plant.db"))
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.tables[str(Valve.__tablename__)].create)
    app.dependency_overrides[AsyncEngine] = engine
    async with TestClient(app) as client:
        yield client
    app.dependency_overrides.clear()
    await engine.dispose()


async def test_groups_patterns_and_enums(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    await client.publish("acme/lines/7/temperature", 21.5)
    await client.publish("acme/lines/7/stopped")
    await client.publish("acme/lines/7/stopped/fire")
    assert capsys.readouterr().out.splitlines() == [
        "acme/lines/7/temperature → lines.measured",
        "line 7: temperature is 21.5",
        "acme/lines/7/stopped → lines.stopped",
        "line 7 stopped: no reason given",
        "acme/lines/7/stopped/fire → lines.stopped",
        "line 7 stopped: fire",
    ]
    assert (await client.publish("acme/lines/x/temperature", 21.5)).outcome == "unmatched"
    assert (await client.publish("acme/lines/7/colour", 21.5)).outcome == "unmatched"
    assert app.topic_for("lines.measured", tenant="acme", line=7, kind="humidity") == "acme/lines/7/humidity"


async def test_middleware_by_name(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    await client.publish("acme/ping")
    await client.publish("initech/ping")
    assert capsys.readouterr().out == "ping\n"


async def test_rows_by_a_column(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    await client.publish("valves/A-7/register")
    await client.publish("valves/A-7/command", "open")
    await client.publish("valves/A-8/command", "open")
    assert capsys.readouterr().out == "valve 1: open\nvalve None: open\n"


async def test_what_has_moved(client: TestClient) -> None:
    await client.publish("legacy/A-7/cmd", "open")
    assert [(sent.topic, sent.payload) for sent in client.published] == [("valves/A-7/command", b"open")]
