"""`Database`: SQL for those who have no session, a controller or a middleware."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlmodel.ext.asyncio.session import AsyncSession

__all__ = ["Database"]


class Database:
    """The database of the app. Each use has a connection of its own, so many may use it at a time.

    Args:
        engine: The app's.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @property
    def place(self) -> str:
        """Its URL, without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    def session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """`async with self.db.session() as session:` is committed at the end of the block, rolled back when it raises."""
        from mqttapi.resources import sql

        return contextlib.asynccontextmanager(sql.session)(self._engine)

    async def query(self, sql: str, /, **params: Any) -> list[dict[str, Any]]:
        """Run one statement in a transaction of its own; its rows, each a dict by column, where it gives rows.

        Args:
            sql: Such as `SELECT * FROM devices WHERE id = :id`.
            params: Values for what stands behind a `:`. They are never put into the text.
        """
        from sqlalchemy import text

        async with self._engine.connect() as connection:
            await connection.execution_options(sqlite_begin="DEFERRED")  # a statement alone has no need of the lock
            result = await connection.execute(text(sql), params)
            rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
            await connection.commit()
            return rows
