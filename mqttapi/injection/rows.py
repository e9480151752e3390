"""A path parameter whose hint is a SQLModel table gets the row with that primary key."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError, InvalidParameter
from mqttapi.injection.hints import Hint
from mqttapi.injection.validation import parameter_reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

__all__ = ["key_reader", "row_loader", "session_type"]


def session_type(resources: Collection[type[Any]]) -> type[Any] | None:
    """The asynchronous session that is a resource of the app; found without importing SQLAlchemy."""
    for module in ("sqlmodel.ext.asyncio.session", "sqlalchemy.ext.asyncio"):
        session: type[Any] | None = getattr(sys.modules.get(module), "AsyncSession", None)
        if session in resources:
            return session
    return None


def key_reader(where: str, label: str, table: type[Any], *, from_text: bool) -> Callable[[Any], Any]:
    """What makes a primary key of a level of the topic; it raises `InvalidParameter`."""
    from sqlalchemy import inspect

    mapper = inspect(table)
    if len(mapper.primary_key) != 1:
        columns = ", ".join(column.name for column in mapper.primary_key)
        raise ConfigurationError(
            f"{where}: the primary key of {table.__name__} has several columns ({columns}). "
            "Take the levels as parameters, and load the row in a dependency."
        )
    name = mapper.get_property_by_column(mapper.primary_key[0]).key
    return parameter_reader(label, Hint.of(table.model_fields[name].annotation), from_text=from_text)


def row_loader(label: str, hint: Hint) -> Callable[[Any, Any], Awaitable[Any]]:
    """What loads the row; where there is none it gives None if the hint allows that, else raises `InvalidParameter`."""
    table = hint.only

    async def load(session: Any, key: Any) -> Any:
        row = None if key is None else await session.get(table, key)
        if row is None and not hint.nullable:
            raise InvalidParameter(f"{label}: {table.__name__} not found")
        return row

    return load
