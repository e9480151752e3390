from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from examples.dependencies import Database, app, owner
from mqttapi.testing import TestClient


class Recorder(Database):
    """A database that a test looks into."""


@pytest.fixture
async def client() -> AsyncIterator[TestClient]:
    async with TestClient(app, raise_exceptions=False) as client:
        yield client


async def test_the_transaction_is_committed_after_the_handler(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.publish("sensors/7/data", "21")
    assert capsys.readouterr().out == "Hello ann\ncommit\n"


async def test_it_is_rolled_back_when_the_handler_fails(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await client.publish("sensors/7/data", "broken")).outcome == "failed"
    assert capsys.readouterr().out == "rollback\n"


async def test_a_dependency_may_reject_the_message(client: TestClient) -> None:
    delivery = await client.publish("sensors/8/data", "21")
    assert (delivery.outcome, delivery.reason) == ("rejected", "nobody owns 8")


async def test_a_test_replaces_functions_and_resources() -> None:
    database = Recorder()
    app.dependency_overrides = {owner: lambda: "bob", Database: database}
    try:
        async with TestClient(app) as client:
            await client.publish("sensors/8/data", "21")
    finally:
        app.dependency_overrides = {}
    assert database.rows == [("bob", "21")]
