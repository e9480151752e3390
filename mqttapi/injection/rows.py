"""A path parameter whose hint is a SQLModel table gets the row with that primary key, or that value in a column."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from mqttapi.errors import ConfigurationError, Drop, InvalidParameter
from mqttapi.injection.hints import Hint
from mqttapi.injection.validation import parameter_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mqttapi.context import Context

__all__ = ["column_of", "key_reader", "may_hold", "row_loader", "session_type"]

_ANY_COLUMN: Final = range(-(2**15), 2**15)
"""What every column of whole numbers holds."""


def session_type(resources: Collection[type[Any]]) -> type[Any] | None:
    """The asynchronous session that is a resource of the app; found without importing SQLAlchemy."""
    for module in ("sqlmodel.ext.asyncio.session", "sqlalchemy.ext.asyncio"):
        session: type[Any] | None = getattr(sys.modules.get(module), "AsyncSession", None)
        if session in resources:
            return session
    return None


def column_of(where: str, table: type[Any], name: str) -> str:
    """The column that a row is looked up by: the one called `name`, else the primary key.

    Raises:
        ConfigurationError: When the primary key has several columns.
    """
    from sqlalchemy import inspect

    if name in table.model_fields:
        return name
    mapper = inspect(table)
    if len(mapper.primary_key) != 1:
        columns = ", ".join(column.name for column in mapper.primary_key)
        raise ConfigurationError(
            f"{where}: the primary key of {table.__name__} has several columns ({columns}). "
            "Take the levels as parameters, and load the row in a dependency."
        )
    key: str = mapper.get_property_by_column(mapper.primary_key[0]).key
    return key


def key_reader(label: str, table: type[Any], column: str, *, from_text: bool) -> Callable[[Any], Any]:
    """What makes a value of the column of a level of the topic; it raises `InvalidParameter`."""
    return parameter_reader(label, Hint.of(table.model_fields[column].annotation), from_text=from_text)


def row_loader(label: str, hint: Hint, column: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """What loads the row. Where there is none it gives None if the hint allows that, else what `missing=` says."""
    from sqlalchemy import inspect
    from sqlmodel import select

    table = hint.only
    is_key = [key.name for key in inspect(table).primary_key] == [column]

    async def load(session: Any, key: Any, context: Any) -> Any:
        row = None
        if key is not None and may_hold(session, table, column, key):
            if is_key:
                row = await session.get(table, key)
            else:
                find = getattr(session, "exec", None) or session.scalars  # SQLModel's warns of any other than `exec`
                row = (await find(select(table).where(getattr(table, column) == key))).one_or_none()
        if row is None and not hint.nullable:
            return await _missing(context, table, f"{label}: {table.__name__} not found")
        return row

    return load


def may_hold(session: Any, table: type[Any], column: str, key: Any) -> bool:
    """Whether a column of whole numbers is wide enough for a key; asked for a larger one, drivers raise."""
    if not isinstance(key, int) or key in _ANY_COLUMN:
        return True
    from sqlalchemy import BigInteger, Integer, SmallInteger, inspect

    kind = inspect(table).columns[column].type
    if not isinstance(kind, Integer):
        return True
    if session.get_bind(table).dialect.name != "postgresql":  # SQLite has one size, and others compare what they get
        bits = 64
    else:
        bits = 64 if isinstance(kind, BigInteger) else 16 if isinstance(kind, SmallInteger) else 32
    return key in range(-(2 ** (bits - 1)), 2 ** (bits - 1))


async def _missing(context: Context, table: type[Any], reason: str) -> Any:
    missing = context.route.missing
    if missing == "drop":
        raise Drop(reason)
    if callable(missing):
        missing = missing(context)
        if isinstance(missing, Awaitable):
            missing = await missing
    if missing is None or missing == "reject":
        raise InvalidParameter(reason)
    if not isinstance(missing, table):
        raise ConfigurationError(
            f"{context.route.name}: missing= gave a {type(missing).__name__} in place of a {table.__name__}. Give such a "
            "row, None, 'reject' or 'drop', or raise Drop or Reject"
        )
    return missing
