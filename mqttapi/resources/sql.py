"""The database: one engine per worker, one session per attempt to handle a message.

from mqttapi.resources.sql import Session

@app.topic("devices/<device_id>/readings")
async def keep(device_id: str, reading: Reading, session: Session) -> None:
    session.add(StoredReading(device_id=device_id, temperature=reading.temperature))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator  # noqa: TC003  hints of dependencies are read at run time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import sqlalchemy.ext.asyncio
import sqlalchemy.orm
import sqlmodel
from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel.ext.asyncio.session import AsyncSession

from mqttapi.errors import ConfigurationError, ResourceUnavailable
from mqttapi.injection import Depends

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL

    from mqttapi.config import Settings

__all__ = ["AsyncEngine", "AsyncSession", "Session", "check_database", "open_database", "session"]

START_TIMEOUT: Final = 4.0
"""Seconds that the database has to answer when the app starts."""
DEFAULT_URL: Final = "sqlite+aiosqlite:///app.db"
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg"}


class _SyncSession(sqlmodel.Session):
    execute = sqlalchemy.orm.Session.execute


class _Session(AsyncSession):
    """SQLModel's session, whose `execute` is SQLAlchemy's again: that of SQLModel warns, and it is the right one for a
    handler that asks for SQLAlchemy's `AsyncSession`. Whichever is asked for, there is one transaction.
    """

    sync_session_class = _SyncSession
    execute = sqlalchemy.ext.asyncio.AsyncSession.execute


async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A transaction around the handler: committed when it has succeeded, before its message is acknowledged; rolled
    back whatever it raises. It begins with the first statement, so a handler that makes none takes no connection.
    """
    async with _Session(engine, expire_on_commit=False) as opened:
        yield opened
        await opened.commit()


Session = Annotated[AsyncSession, Depends(session)]
"""The hint of a handler that wants a session; `AsyncSession` alone does as well."""

SESSIONS: Final[Mapping[type, Any]] = {
    AsyncSession: Depends(session),
    sqlalchemy.ext.asyncio.AsyncSession: Depends(session),
}
"""The types that get a session."""


def open_database(settings: Settings) -> AsyncEngine:
    """An engine for `DATABASE_URL`; it connects when that is needed, up to `MQTTAPI_DATABASE_POOL` times.

    On SQLite readers do not wait for writers (WAL), and a transaction is `BEGIN IMMEDIATE`: two that read before they
    write take turns, where the second would otherwise fail with "database is locked". For a connection that only reads
    there is `await connection.execution_options(sqlite_begin="DEFERRED")`, before its first statement.

    Raises:
        ConfigurationError: When the URL is wrong, or its driver is not installed.
    """
    try:
        url = _url(settings.database_url.get_secret_value() if settings.database_url else DEFAULT_URL)
        if not url.get_dialect().is_async:
            raise ArgumentError(f"{url.drivername} blocks; use sqlite+aiosqlite or postgresql+asyncpg")
        engine = create_async_engine(
            url,
            hide_parameters=True,  # errors end up in logs, and values may be secrets
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1 if _in_memory(url) else settings.database_pool,
            max_overflow=0,
            pool_timeout=settings.database_timeout,
            pool_pre_ping=url.get_backend_name() != "sqlite",
            connect_args=_connect_args(url, settings.database_timeout),
        )
    except (ArgumentError, InvalidRequestError, NoSuchModuleError, ValueError) as error:
        problem = f"DATABASE_URL: {str(error).partition(chr(10))[0]}"
    except ModuleNotFoundError as error:
        problem = f"DATABASE_URL needs the package {error.name}: pip install {_package(error.name)}"
    else:
        if url.get_backend_name() == "sqlite":
            _prepare_sqlite(engine)
        return engine
    raise ConfigurationError(problem)  # outside of `except`: the cause may hold the password


async def check_database(engine: AsyncEngine, seconds: float = START_TIMEOUT) -> None:
    """See whether the database answers.

    Raises:
        ResourceUnavailable: When it does not, with its place and the reason, without the password.
    """
    try:
        _check_directory(engine.url)
        async with asyncio.timeout(seconds), engine.connect() as connection:
            await connection.execution_options(sqlite_begin="DEFERRED")
            await connection.exec_driver_sql("SELECT 1")
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0].rstrip(".") or f"no answer within {seconds:g} s"
        raise ResourceUnavailable(
            f"the database at {database_place(engine.url)} (DATABASE_URL) is not available: {reason}"
        ) from None


def _check_directory(url: URL) -> None:
    """SQLite says no more than "unable to open database file"."""
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith("file:"):
        directory = Path(url.database).absolute().parent
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no directory {str(directory)!r}")


def database_place(url: URL) -> str:
    """`host:port/name`, or the path of a file."""
    return f"{url.host}:{url.port or 5432}/{url.database}" if url.host else url.database or "memory"


def _url(text: str) -> URL:
    url = make_url(text)
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _in_memory(url: URL) -> bool:
    """Whether every connection would have a database of its own."""
    return url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}


def _connect_args(url: URL, seconds: float) -> dict[str, Any]:
    match url.get_driver_name():
        case "aiosqlite":
            return {"timeout": seconds}
        case "asyncpg":
            return {"timeout": min(seconds, START_TIMEOUT), "command_timeout": seconds}
    return {}


def _package(module: str | None) -> str:
    return "'mqttapi-framework[postgres]'" if module == "asyncpg" else str(module)


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None  # else the driver begins transactions of its own accord, too late
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")
