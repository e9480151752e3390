"""What middleware remembers from message to message: in the memory of the process, or in Redis for all of them."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from inspect import iscoroutinefunction
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

__all__ = ["PerRun", "Store", "check_store", "is_in_run", "layers_around", "needs_of", "patient", "redis_of", "scope"]

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
        make: Makes it when the first message comes, which it is called with.
    """

    def __init__(self, make: Callable[[Context], T]) -> None:
        self._make = make
        self.made: WeakKeyDictionary[object, T] = WeakKeyDictionary()
        """By the run."""

    def of(self, context: Context) -> T:
        """That of the run that the message belongs to."""
        run = OPENED.get({}).get(Backends, _NO_RUN)
        try:
            return self.made[run]
        except KeyError:
            made = self.made[run] = self._make(context)
            return made


def is_in_run() -> bool:
    """Whether an app runs, which the message belongs to."""
    return Backends in OPENED.get({})


def check_store(owner: str, store: object) -> None:
    """Refuse what is no `Store`.

    Raises:
        ConfigurationError: With what it may be.
    """
    require(
        owner,
        "store",
        store,
        lambda given: given in {"auto", "memory", "redis"} if isinstance(given, str) else _is_client(given),
        "'auto', 'memory', 'redis' or a client of redis.asyncio",
    )


def _is_client(given: object) -> bool:
    """Whether it is a Redis client whose commands are awaited: those of `redis` itself have the same names."""
    return hasattr(given, "evalsha") and iscoroutinefunction(getattr(given, "execute_command", None))


def needs_of(store: Store) -> frozenset[str]:
    """See `Access.needs`."""
    return frozenset({"redis"}) if store in ("auto", "redis") else frozenset()


def redis_of(owner: Access, store: Store, context: Context) -> Redis | None:
    """The client that `store` means for the app that runs; None: memory.

    Raises:
        ConfigurationError: When it is to be Redis, and there is none.
    """
    if not isinstance(store, str):
        return store
    if store == "redis" or (store == "auto" and _has_redis()):
        return owner.redis
    if store == "auto" and context.route.shared:
        log.warning(
            "%s of the shared route %s knows of this process alone: set REDIS_URL, so that all processes share what it "
            "knows, or store='memory' where there is one",
            type(owner).__name__,
            context.route.name,
        )
    return None


def _has_redis() -> bool:
    opened = OPENED.get({})
    backends = opened.get(Backends)
    if isinstance(backends, Backends) and backends.settings.redis_url is not None:
        return True
    return any(kind.__module__.startswith("redis.") and kind.__name__ == "Redis" for kind in opened)


def layers_around(context: Context, kind: type[T]) -> list[T]:
    """The middlewares of a class around the route of a message, outermost first."""
    table = getattr(context.app, "table", None)  # a test of the middleware alone may have none
    if table is None:
        return []
    around, inner = table.middleware_of(context.route)
    layers = (getattr(function, "__self__", None) for function in (*around, *inner))
    return [layer for layer in layers if isinstance(layer, kind)]


@lru_cache(maxsize=1024)
def scope(*parts: str) -> str:
    """What keys begin with, in Redis: nothing that a sender writes behind it makes them those of something else."""
    return f"mqttapi:{':'.join(quote(part, safe='') for part in parts)}:"


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
