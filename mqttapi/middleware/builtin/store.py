"""What middleware remembers from message to message: in the memory of the process, or in Redis for all of them."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

from mqttapi.middleware.builtin.rules import require
from mqttapi.resources.access import OPENED, Access
from mqttapi.resources.backends import Backends

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from mqttapi.context import Context

__all__ = ["PerRun", "Store", "patient", "scope"]

log = logging.getLogger("mqttapi.middleware")

Store: TypeAlias = "Literal['auto', 'memory', 'redis'] | Redis"
"""`auto`: Redis where the app has a `REDIS_URL`, else memory. Memory lasts as long as the app runs."""

PATIENCE: Final = 20.0
"""Seconds that a message waits for a Redis that does not answer, before it fails."""

T = TypeVar("T")


class _NoRun:
    """Stands for the run of an app, where there is none."""


_NO_RUN: Final = _NoRun()


class PerRun(Generic[T]):
    """Something for each run of an app: two runs, two tests say, have nothing in common unless they share a Redis.

    Args:
        owner: The middleware, whose name stands in error texts.
        store: Where to keep it.
        in_memory: Makes it.
        in_redis: Makes it, with the client.
    """

    def __init__(
        self, owner: Access, store: Store, *, in_memory: Callable[[], T], in_redis: Callable[[Redis], T]
    ) -> None:
        self._name = type(owner).__name__
        require(
            self._name,
            "store",
            store,
            lambda given: given in {"auto", "memory", "redis"} if isinstance(given, str) else hasattr(given, "evalsha"),
            "'auto', 'memory', 'redis' or a client of redis.asyncio",
        )
        self._owner = owner
        self._store = store
        self._in_memory = in_memory
        self._in_redis = in_redis
        self._made: WeakKeyDictionary[object, T] = WeakKeyDictionary()

    def of(self, context: Context) -> T:
        """That of the run that the message belongs to.

        Raises:
            ConfigurationError: When the store is to be Redis, and there is none.
        """
        run = OPENED.get({}).get(Backends, _NO_RUN)
        try:
            return self._made[run]
        except KeyError:
            client = self._client(run, context)
            made = self._made[run] = self._in_memory() if client is None else self._in_redis(client)
            return made

    def _client(self, run: object, context: Context) -> Redis | None:
        if not isinstance(self._store, str):
            return self._store
        if self._store == "redis" or (self._store == "auto" and _has_redis(run)):
            return self._owner.redis
        if self._store == "auto" and context.route.shared:
            log.warning(
                "%s of the shared route %s knows of this process alone: set REDIS_URL, so that all processes share "
                "what it knows, or store='memory' where there is one",
                self._name,
                context.route.name,
            )
        return None


def _has_redis(run: object) -> bool:
    if isinstance(run, Backends) and run.settings.redis_url is not None:
        return True
    return any(kind.__module__.startswith("redis.") and kind.__name__ == "Redis" for kind in OPENED.get({}))


def scope(kind: str, context: Context, name: str | None = None) -> str:
    """What the keys of one limiter begin with, in Redis: nothing that a sender writes makes them those of another."""
    return _scope(kind, context.app.name, name or context.route.name)


@lru_cache(maxsize=1024)
def _scope(kind: str, app: str, name: str) -> str:
    return f"mqttapi:{kind}:{quote(app, safe='')}:{quote(name, safe='')}:"


async def patient(call: Callable[[], Awaitable[T]]) -> T:
    """What `call` gives; again and again while Redis does not answer, for 20 s.

    Raises:
        RedisError: What the last call raised.
    """
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import OutOfMemoryError, ReadOnlyError
    from redis.exceptions import TimeoutError as RedisTimeoutError

    clock = asyncio.get_running_loop().time
    until, pause = clock() + PATIENCE, 0.1
    while True:
        try:
            return await call()
        except (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError):
            if clock() + pause > until:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, 2.0)
