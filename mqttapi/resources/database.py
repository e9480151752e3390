"""`Database`: SQL for those who have no session, a controller or a middleware."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["Database"]


class Database:
    """The database of the app; each use has a session of its own, so many may use it at a time.

    Args:
        sessions: Makes an `AsyncSession`, as an `async_sessionmaker` does.
    """

    def __init__(self, sessions: Callable[[], AsyncSession]) -> None:
        self._sessions = sessions

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session: committed at the end of the block, rolled back when the block raises."""
        async with self._sessions() as session, session.begin():
            yield session

    async def query(self, sql: str, /, **params: Any) -> list[dict[str, Any]]:
        """The rows of one statement, each a dict by column; none for a statement that gives no rows. It is committed.

        Args:
            sql: Such as `SELECT * FROM devices WHERE id = :id`.
            params: Values for what stands behind a `:`. They are never put into the text.
        """
        from sqlalchemy import text

        async with self.session() as session:
            result = await (await session.connection()).execute(text(sql), params)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []
