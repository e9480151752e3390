"""The tables of inbox and outbox; all of them begin with `mqttapi_`, and are created when an app needs them."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text, delete, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from mqttapi.errors import ConfigurationError
from mqttapi.publisher import Publish, encode_payload
from mqttapi.resources.background import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Executable, Row
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["INBOX", "LEASES", "OUTBOX", "create_tables", "forget", "insert_new", "publish_of", "row_of"]

log = logging.getLogger("mqttapi.inbox")

CLEANING: Final = 600.0
"""Seconds between two cleanings of the inbox."""

_METADATA: Final = MetaData()

INBOX: Final = Table(
    "mqttapi_inbox",
    _METADATA,
    Column("route", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("handled_at", Float, nullable=False, index=True),  # seconds of the epoch
)

OUTBOX: Final = Table(
    "mqttapi_outbox",
    _METADATA,
    Column("id", Integer().with_variant(postgresql.BIGINT(), "postgresql"), primary_key=True, autoincrement=True),
    Column("topic", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("qos", Integer, nullable=False),
    Column("retain", Boolean, nullable=False),
    Column("properties", Text, nullable=False),  # JSON
    Column("created_at", Float, nullable=False),  # seconds of the epoch
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("failed", Boolean, nullable=False, server_default=text("false")),
    Column("error", Text),
    Index("mqttapi_outbox_waiting", "failed", "id"),
    sqlite_autoincrement=True,  # ids of rows that have been sent are not used again: they are the order
)

LEASES: Final = Table(
    "mqttapi_leases",
    _METADATA,
    Column("name", String(255), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("expires_at", Float, nullable=False),  # seconds of the epoch
)

_CREATION_LOCK: Final = 0x6D717474  # "mqtt"


async def create_tables(engine: AsyncEngine) -> None:
    """Create what is not there. Several workers may do so at once: they take turns.

    Raises:
        ConfigurationError: When the database is neither SQLite nor PostgreSQL.
    """
    if engine.dialect.name not in {"sqlite", "postgresql"}:
        raise ConfigurationError(
            f"inbox and outbox need SQLite or PostgreSQL, and DATABASE_URL is {engine.dialect.name}"
        )
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
        await connection.run_sync(_METADATA.create_all)
        await connection.execute(insert_new(engine.dialect.name, LEASES, name="outbox", holder="", expires_at=0.0))


def insert_new(dialect: str, table: Table, **values: Any) -> Executable:
    """An INSERT that does nothing where there is such a row, and waits for a transaction that is about to insert it."""
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement: Executable = insert(table).values(**values).on_conflict_do_nothing()
    return statement


async def forget(engine: AsyncEngine, lifetimes: Mapping[str, float]) -> None:
    """Until cancelled, delete the keys of the inbox that are older than the lifetime of their route, in seconds."""
    while True:
        try:
            for route, seconds in lifetimes.items():
                await whole(_forget(engine, route, time.time() - seconds))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("the inbox could not be cleaned, and will be later: %s", str(error).partition("\n")[0])
        await asyncio.sleep(CLEANING)


async def _forget(engine: AsyncEngine, route: str, handled_before: float) -> None:
    async with engine.begin() as connection:
        old = INBOX.c.handled_at < handled_before
        await connection.execute(delete(INBOX).where(INBOX.c.route == route, old))


def row_of(publish: Publish) -> dict[str, Any]:
    """A message, its topic rendered, as it stands in the outbox."""
    data = publish.correlation_data
    properties = {
        "expiry": publish.expiry,
        "content_type": publish.content_type,
        "user_properties": list(publish.user_properties) or None,
        "response_topic": publish.response_topic,
        "correlation_data": None if data is None else b64encode(data).decode(),
        "payload_format_indicator": publish.payload_format_indicator or None,
    }
    return {
        "topic": publish.topic,
        "payload": encode_payload(publish.payload),
        "qos": publish.qos,
        "retain": publish.retain,
        "properties": to_json({name: value for name, value in properties.items() if value is not None}).decode(),
        "created_at": time.time(),
    }


def publish_of(row: Row[Any]) -> Publish | None:
    """The message of a row of the outbox; None when it has expired there."""
    properties: dict[str, Any] = from_json(row.properties)
    if "correlation_data" in properties:
        properties["correlation_data"] = b64decode(properties["correlation_data"])
    if "user_properties" in properties:
        properties["user_properties"] = [(name, value) for name, value in properties["user_properties"]]
    if "expiry" in properties:
        left = properties["expiry"] - max(0.0, time.time() - row.created_at)
        if left <= 0 < properties["expiry"]:
            return None
        properties["expiry"] = max(0.0, left)
    return Publish(row.topic, row.payload, row.qos, row.retain, **properties)
