"""What controllers and middleware reach by `self`, without asking for it in a signature."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, overload

from mqttapi.errors import ConfigurationError
from mqttapi.publisher import Publisher
from mqttapi.resources.backends import Backends

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from redis.asyncio import Redis

    from mqttapi.publisher import PublishOptions, PublishResult
    from mqttapi.resources.database import Database

__all__ = ["OPENED", "Access"]

OPENED: Final[ContextVar[Mapping[Any, Any]]] = ContextVar("mqttapi.resources")
"""What the app that runs has opened, by type: set for all that runs for its messages, tasks and threads included."""

T = TypeVar("T")


class _ClassLogger:
    def __get__(self, instance: object, owner: type) -> logging.Logger:
        return logging.getLogger(f"{owner.__module__}.{owner.__qualname__}")


class _Opened(Generic[T]):
    """A property, but that what an object assigns to the name is its own."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        return self if instance is None else self._function(instance)


class Access:
    """The resources of the app that runs; usable while it does."""

    needs: frozenset[str] = frozenset({"redis", "db"})
    """What the app opens at its start because of it, where that is configured: `self.redis`, `self.db`."""
    logger = _ClassLogger()
    """The logger called as the class, with its module. Static methods have it by the class."""

    @_Opened
    def redis(self) -> Redis:
        """The connection to Redis.

        Raises:
            ConfigurationError: When there is no `REDIS_URL`, or no app runs.
        """
        from redis.asyncio import Redis

        return self._of(Redis, "redis")

    @_Opened
    def db(self) -> Database:
        """The database: `await self.db.query(sql, **params)`, `async with self.db.session() as session`.

        Raises:
            ConfigurationError: When `DATABASE_URL` is wrong, or no app runs.
        """
        from sqlalchemy.ext.asyncio import AsyncEngine

        from mqttapi.resources.database import Database

        return Database(self._of(AsyncEngine, "db"))

    async def publish(
        self, topic: str, payload: Any = None, *, timeout: float | None = None, **options: Unpack[PublishOptions]
    ) -> PublishResult:
        """Publish a message, and return when the broker has acknowledged it; see `Publisher.publish`."""
        publisher = self._of(Publisher, "publish")
        if timeout is None:
            return await publisher.publish(topic, payload, **options)
        return await publisher.publish(topic, payload, timeout=timeout, **options)

    def _of(self, kind: type[T], name: str) -> T:
        opened: Mapping[Any, Any] = OPENED.get({})
        label = f"{type(self).__name__}.{name}"
        if not opened:
            raise ConfigurationError(f"{label} is there while an app runs: use it when a message is handled")
        try:
            found: T = opened[kind] if kind in opened else opened[Backends].make(kind)
        except ConfigurationError as error:
            raise ConfigurationError(f"{label} is not available: {error}") from None
        return found
