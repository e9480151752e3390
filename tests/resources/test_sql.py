"""The database, on real SQLite files: one transaction per attempt, and what becomes of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import pytest
import sqlalchemy.ext.asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mqttapi import App, ConfigurationError, Context, Depends, Drop, Reject, ResourceUnavailable, Retry
from mqttapi.config import Settings
from mqttapi.resources.sql import AsyncEngine, Session, check_database, open_database
from mqttapi.testing import TestClient
from tests.support.waiting import eventually


class Item(SQLModel, table=True):
    __tablename__ = "sql_item"  # pyright: ignore[reportAssignmentType]  as SQLModel's own documentation has it

    id: str = Field(primary_key=True)
    number: int = 0


class Boom(Exception):
    pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sql_item (id VARCHAR PRIMARY KEY, number INTEGER NOT NULL)")
        connection.commit()
    return path


def rows(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as connection:
        return dict(connection.execute("SELECT id, number FROM sql_item"))


def settings(file: Path, **values: Any) -> Settings:
    return Settings(database_url=f"sqlite:///{file}", instance="test", **values)


def an_app(file: Path, **values: Any) -> App:
    return App("sql", settings=settings(file, **values))


# -- the transaction ------------------------------------------------------------------------------------------------


async def test_what_a_handler_adds_is_committed_before_anything_outside_of_it_goes_on(file: Path) -> None:
    app = an_app(file)
    seen: list[dict[str, int]] = []

    @app.middleware
    async def look(context: Context, call_next: Any) -> object:
        result = await call_next(context)
        seen.append(rows(file))
        return result

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))
        await session.flush()
        seen.append(rows(file))

    async with TestClient(app) as client:
        await client.publish("items/a")
    assert seen == [{}, {"a": 0}]


@pytest.mark.parametrize("error", [Boom, Drop, lambda: Reject("no"), asyncio.CancelledError])
async def test_what_a_handler_has_added_is_rolled_back_whatever_it_raises(file: Path, error: Any) -> None:
    app = an_app(file)

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))
        await session.flush()
        raise error()

    async with TestClient(app, raise_exceptions=False) as client:
        assert (await client.publish("items/a")).outcome in {"failed", "dropped", "rejected"}
        assert rows(file) == {}


async def test_a_dependency_that_fails_after_the_handler_rolls_back(file: Path) -> None:
    app = an_app(file)

    async def fragile(session: Session) -> AsyncIterator[int]:
        yield 1
        raise Boom

    @app.topic("items/<id>")
    async def keep(id: str, session: Session, n: Annotated[int, Depends(fragile)]) -> None:
        session.add(Item(id=id))

    async with TestClient(app, raise_exceptions=False) as client:
        assert (await client.publish("items/a")).outcome == "failed"
    assert rows(file) == {}


async def test_a_commit_that_fails_is_a_failure_of_the_handler_and_tells_no_values(file: Path) -> None:
    app = an_app(file)

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))

    async with TestClient(app, raise_exceptions=False) as client:
        assert (await client.publish("items/secret")).outcome == "done"
        delivery = await client.publish("items/secret")
    error = delivery.outcomes[app.routes[0].name].error
    assert isinstance(error, IntegrityError)
    assert "'secret'" not in str(error)


async def test_each_attempt_has_a_transaction_of_its_own(file: Path) -> None:
    app = an_app(file)

    @app.topic("items/<id>", retry=Retry(attempts=2))
    async def keep(id: str, session: Session, context: Context) -> None:
        session.add(Item(id=f"{id}-{context.attempt}"))
        await session.flush()
        if context.attempt == 1:
            raise Boom

    async with TestClient(app) as client:
        await client.publish("items/a")
    assert rows(file) == {"a-2": 0}


async def test_there_is_one_session_per_attempt_whatever_asks_for_it_and_none_is_shared(file: Path) -> None:
    app = an_app(file)
    seen: dict[str, list[object]] = {"one": [], "two": []}

    async def dependency(session: AsyncSession) -> object:
        return session

    @app.topic("items/<id>", name="one")
    async def one(
        a: Session, b: AsyncSession, c: sqlalchemy.ext.asyncio.AsyncSession, d: Annotated[object, Depends(dependency)]
    ) -> None:
        seen["one"] += [a, b, c, d]

    @app.topic("items/#", name="two")
    async def two(a: Session) -> None:
        seen["two"].append(a)

    async with TestClient(app) as client:
        await client.publish("items/a")
        await client.publish("items/a")
    first, second = seen["one"][:4], seen["one"][4:]
    assert len(set(map(id, first))) == len(set(map(id, second))) == 1
    assert len({id(each) for each in (*first, *second, *seen["two"])}) == 4


async def test_a_session_takes_a_connection_only_when_it_is_used(file: Path) -> None:
    app = an_app(file)
    taken: list[int] = []

    @app.topic("items/<id>")
    async def keep(session: Session, engine: AsyncEngine) -> None:
        taken.append(engine.pool.checkedout())  # type: ignore[attr-defined]  # of the pool in use
        await session.exec(select(Item))
        taken.append(engine.pool.checkedout())  # type: ignore[attr-defined]  # likewise

    async with TestClient(app) as client:
        await client.publish("items/a")
    assert taken == [0, 1]


async def test_execute_is_sqlalchemys_and_does_not_warn(file: Path) -> None:
    """Warnings are errors in these tests."""
    app = an_app(file)

    @app.topic("items/<id>")
    async def keep(session: sqlalchemy.ext.asyncio.AsyncSession) -> None:
        assert (await session.execute(text("SELECT 7"))).scalar() == 7

    async with TestClient(app) as client:
        await client.publish("items/a")


async def test_what_was_loaded_can_be_returned_after_the_commit(file: Path) -> None:
    app = an_app(file)

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> Item:
        item = Item(id=id, number=5)
        session.add(item)
        return item

    async with TestClient(app) as client:
        delivery = await client.publish("items/a", response_topic="answers")
    assert delivery.reply is not None
    assert delivery.reply.payload == b'{"id":"a","number":5}'


async def test_a_path_parameter_may_be_a_row_without_any_registration(file: Path) -> None:
    app = an_app(file)
    numbers: list[int] = []

    @app.topic("items/<item>")
    async def show(item: Item) -> None:
        numbers.append(item.number)

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO sql_item VALUES ('a', 5)")
        connection.commit()
    async with TestClient(app) as client:
        await client.publish("items/a")
        assert (await client.publish("items/b")).outcome == "rejected"
    assert numbers == [5]


async def test_transactions_that_read_and_then_write_take_turns(file: Path) -> None:
    """With SQLite's own BEGIN the second one to write would fail: "database is locked"."""
    app = an_app(file)

    @app.topic("count/<n>")
    async def count(session: Session) -> None:
        item = await session.get(Item, "count")
        assert item is not None
        await asyncio.sleep(0)
        item.number += 1
        session.add(item)

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO sql_item VALUES ('count', 0)")
        connection.commit()
    async with TestClient(app) as client:
        await asyncio.gather(*(client.publish(f"count/{number}") for number in range(60)))
    assert rows(file) == {"count": 60}


async def test_a_reader_does_not_wait_for_a_writer(file: Path) -> None:
    engine = open_database(settings(file))
    async with engine.begin() as writer, engine.connect() as reader:
        await writer.execute(text("INSERT INTO sql_item VALUES ('a', 0)"))
        await reader.execution_options(sqlite_begin="DEFERRED")
        assert (await reader.execute(text("SELECT count(*) FROM sql_item"))).scalar() == 0
    await engine.dispose()


# -- trouble --------------------------------------------------------------------------------------------------------


async def test_an_exhausted_pool_fails_the_message_and_recovers(file: Path) -> None:
    app = an_app(file, database_pool=1, database_timeout=0.2)
    held, release = asyncio.Event(), asyncio.Event()

    @app.topic("hold")
    async def hold(session: Session) -> None:
        await session.exec(select(Item))
        held.set()
        await release.wait()

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))

    async with TestClient(app, raise_exceptions=False) as client:
        holding = asyncio.create_task(client.publish("hold"))
        await held.wait()
        delivery = await client.publish("items/a")
        assert isinstance(delivery.outcomes[app.routes[1].name].error, PoolTimeout)
        release.set()
        assert (await holding).outcome == "done"
        assert (await client.publish("items/b")).outcome == "done"
    assert rows(file) == {"b": 0}


async def test_a_locked_database_is_waited_for_and_then_fails_the_message(file: Path) -> None:
    app = an_app(file, database_timeout=0.2)

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))

    async with TestClient(app, raise_exceptions=False) as client:
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            delivery = await client.publish("items/a")
            assert isinstance(delivery.outcomes[app.routes[0].name].error, OperationalError)
            assert "database is locked" in str(delivery.outcomes[app.routes[0].name].error)
        assert (await client.publish("items/a")).outcome == "done"


async def test_a_full_disk_fails_the_message_and_recovers(file: Path) -> None:
    app = an_app(file, database_pool=1)

    @app.topic("items/<id>")
    async def keep(id: str, session: Session, payload: str) -> None:
        session.add(Item(id=payload))

    async with TestClient(app, raise_exceptions=False) as client:
        engine = app._service.backends.make(AsyncEngine)  # type: ignore[union-attr]  # it runs
        async with engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")  # it has no fewer than it uses
        delivery = await client.publish("items/a", "x" * 100_000)
        assert "database or disk is full" in str(delivery.outcomes[app.routes[0].name].error)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        assert (await client.publish("items/a", "x" * 100_000)).outcome == "done"


async def test_a_pool_with_nothing_left_is_not_ready(file: Path) -> None:
    engine = open_database(settings(file, database_pool=1))
    async with engine.connect():
        with pytest.raises(ResourceUnavailable, match=r"no answer within 0\.1 s"):
            await check_database(engine, 0.1)
    await check_database(engine)
    await engine.dispose()


# -- the URL --------------------------------------------------------------------------------------------------------


async def test_a_database_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    app = an_app(tmp_path / "missing" / "app.db")

    @app.topic("a")
    async def a(session: Session) -> None: ...

    with pytest.raises(
        ResourceUnavailable,
        match=r"the database at .*missing/app\.db \(DATABASE_URL\) is not available: there is no directory '.*missing'",
    ):
        async with TestClient(app):
            pass


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "mysql+pymysql://u:s3cret@h/n",
            "DATABASE_URL: mysql+pymysql blocks; use sqlite+aiosqlite or postgresql+asyncpg",
        ),
        ("nonsense://u:s3cret@h/n", "DATABASE_URL: Can't load plugin: sqlalchemy.dialects:nonsense"),
        ("sqlite://u:s3cret@host:port/x", "DATABASE_URL: "),
        ("mysql+aiomysql://u:s3cret@h/n", "DATABASE_URL needs the package aiomysql: pip install aiomysql"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_database(Settings(database_url=url))
    assert text in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
async def test_postgresql_away_at_start_is_named_without_its_password(scheme: str) -> None:
    engine = open_database(Settings(database_url=f"{scheme}://u:s3cret@127.0.0.1:1/plant"))
    assert engine.url.drivername == "postgresql+asyncpg"
    with pytest.raises(ResourceUnavailable, match=r"the database at 127\.0\.0\.1:1/plant") as raised:
        await check_database(engine)
    assert "s3cret" not in str(raised.value)
    await engine.dispose()


async def test_without_a_url_it_is_a_file_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = App("sql", settings=Settings(instance="test"))

    @app.topic("a")
    async def a(session: Session) -> None: ...

    async with TestClient(app) as client:
        await client.publish("a")
    assert (tmp_path / "app.db").exists()


async def test_a_database_in_memory_is_one_database(tmp_path: Path) -> None:
    app = App("sql", settings=Settings(database_url="sqlite://", instance="test"))

    @app.resource
    async def tables(engine: AsyncEngine) -> Path:
        async with engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.create_all)
        return tmp_path

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))

    async with TestClient(app) as client:
        await asyncio.gather(*(client.publish(f"items/{number}") for number in range(20)))


# -- what is there, and when ----------------------------------------------------------------------------------------


async def test_an_engine_of_the_apps_own_comes_before_the_one_of_the_url(file: Path, tmp_path: Path) -> None:
    app = App("sql", settings=Settings(database_url=f"sqlite:///{tmp_path}/never.db", instance="test"))

    @app.resource
    async def own() -> AsyncIterator[AsyncEngine]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        yield engine
        await engine.dispose()

    @app.topic("items/<id>")
    async def keep(id: str, session: Session) -> None:
        session.add(Item(id=id))

    async with TestClient(app) as client:
        await client.publish("items/a")
    assert rows(file) == {"a": 0}
    assert not (tmp_path / "never.db").exists()


async def test_an_overridden_session_opens_no_database(tmp_path: Path) -> None:
    app = App("sql", settings=Settings(database_url=f"sqlite:///{tmp_path}/never.db", instance="test"))
    added: list[object] = []

    class Fake:
        def add(self, row: object) -> None:
            added.append(row)

    @app.topic("items/<id>")
    async def keep(id: str, session: AsyncSession) -> None:
        session.add(Item(id=id))

    app.dependency_overrides[AsyncSession] = Fake
    async with TestClient(app) as client:
        await client.publish("items/a")
    assert len(added) == 1
    assert not (tmp_path / "never.db").exists()


async def test_it_is_there_for_the_lifespan_and_open_until_its_end(file: Path) -> None:
    from contextlib import asynccontextmanager

    engines: list[AsyncEngine] = []

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        engine = app.opened(AsyncEngine)
        engines.append(engine)
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO sql_item VALUES ('begin', 0)"))
        yield
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO sql_item VALUES ('end', 0)"))

    app = App("sql", settings=settings(file), lifespan=lifespan)
    async with TestClient(app):
        pass
    assert rows(file) == {"begin": 0, "end": 0}
    await eventually(lambda: engines[0].pool.checkedin() == 0)  # type: ignore[attr-defined]  # it is closed
