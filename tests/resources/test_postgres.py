"""Inbox, outbox and sessions on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel

from mqttapi import App, ResourceUnavailable
from mqttapi.config import Settings
from mqttapi.resources.inbox import Inbox
from mqttapi.resources.outbox import Outbox
from mqttapi.resources.sql import Session, check_database, open_database
from mqttapi.resources.tables import create_tables
from mqttapi.testing import TestClient
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def settings(postgres: PostgresServer, **values: Any) -> Settings:
    return Settings(database_url=postgres.url, instance="test", **values)


async def test_a_session_is_committed_or_rolled_back(postgres: PostgresServer) -> None:
    app = App("pg", settings=settings(postgres))

    @app.topic("s/<id>")
    async def keep(id: str, session: Session) -> None:
        await session.execute(text("CREATE TABLE IF NOT EXISTS item (id TEXT)"))
        await session.execute(text("INSERT INTO item VALUES (:id)"), {"id": id})
        if id == "bad":
            raise ValueError

    async with TestClient(app, raise_exceptions=False) as client:
        for name in ("a", "bad", "b"):
            await client.publish(f"s/{name}")
        async with app.opened(AsyncEngine).connect() as connection:
            assert sorted((await connection.execute(text("SELECT id FROM item"))).scalars()) == ["a", "b"]


async def test_the_inbox_lets_one_of_many_deliveries_through_and_results_leave_once(postgres: PostgresServer) -> None:
    app, handled = App("pg", settings=settings(postgres)), Counter[str]()

    @app.topic("s/<id>", inbox=Inbox(key="id"), ordered_by=None, name="one", publish_to="out/<id>")
    async def one(payload: str, outbox: Outbox) -> str:
        handled[payload] += 1
        await outbox.publish("notes", payload)
        return payload

    async with TestClient(app) as client:
        deliveries = [
            client.publish("s/1", str(number % 20), user_properties=[("id", str(number % 20))]) for number in range(100)
        ]
        outcomes = Counter(each.outcome for each in await asyncio.gather(*deliveries))
        topics = Counter(each.topic for each in client.published)
    assert outcomes == {"done": 20, "dropped": 80}
    assert set(handled.values()) == {1}
    assert topics == {"notes": 20, "out/1": 20}


async def test_tables_are_created_once_though_many_create_them(postgres: PostgresServer) -> None:
    engines = [open_database(settings(postgres)) for _ in range(5)]
    await asyncio.gather(*(create_tables(engine) for engine in engines))
    for engine in engines:
        await engine.dispose()


class PostgresRow(SQLModel, table=True):
    id: int = Field(primary_key=True)
    large: int = Field(sa_type=BigInteger)


@pytest.mark.parametrize("topic", ["id/2147483648", "large/9223372036854775808", "large/2147483648"])
async def test_a_number_that_the_column_cannot_hold_is_not_found(postgres: PostgresServer, topic: str) -> None:
    app = App("pg", settings=settings(postgres))

    @app.topic("id/<row>")
    @app.topic("large/<row:large>")
    async def read(row: PostgresRow, session: Session) -> None: ...

    async with TestClient(app, raise_exceptions=False) as client:
        async with app.opened(AsyncEngine).begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["postgresrow"].create, checkfirst=True)
        delivery = await client.publish(topic)
    assert (delivery.outcome, delivery.reason) == ("rejected", "path parameter 'row': PostgresRow not found")


async def test_connections_outlive_a_restart(postgres: PostgresServer) -> None:
    engine = open_database(settings(postgres, database_timeout=5.0))
    await check_database(engine)
    postgres.stop()
    with pytest.raises(ResourceUnavailable, match=rf"127\.0\.0\.1:{postgres.port}/postgres") as raised:
        await check_database(engine)
    assert "s3cret" not in str(raised.value)
    postgres.start()
    await check_database(engine)
    await engine.dispose()


async def test_a_statement_without_an_answer_ends(postgres: PostgresServer) -> None:
    engine = open_database(settings(postgres, database_timeout=0.3))
    async with engine.connect() as connection:
        with pytest.raises((TimeoutError, DBAPIError)):
            await connection.execute(text("SELECT pg_sleep(30)"))
    await check_database(engine)
    await engine.dispose()
