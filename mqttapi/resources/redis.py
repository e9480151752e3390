"""Redis: one pool of connections per worker, and a deadline around every command."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mqttapi.errors import ConfigurationError, ResourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mqttapi.config import Settings

__all__ = ["Redis", "check_redis", "open_redis", "redis_place"]

START_TIMEOUT: Final = 4.0
"""Seconds that Redis has to answer when the app starts."""
_WAITING: Final = frozenset(
    {"BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"}
)

T = TypeVar("T")


def open_redis(settings: Settings) -> Redis:
    """A client for `REDIS_URL`. It connects with the first command, and again whenever that is needed.

    Every command and every pipeline ends within `MQTTAPI_REDIS_TIMEOUT`: waiting for a connection of the pool,
    connecting and the answer together. The commands that are there to wait (`BLPOP`, `XREAD … BLOCK`, `WAIT`) have
    their own time-out and no other.

    Raises:
        ConfigurationError: When there is no `REDIS_URL`, or something in it is wrong.
    """
    if settings.redis_url is None:
        raise ConfigurationError("REDIS_URL is not set. Set it, such as REDIS_URL=redis://localhost:6379/0")
    try:
        pool = BlockingConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            # A connection of the pool may have died unseen: one more try, on a new one.
            retry=Retry(ConstantBackoff(0.05), 1, (RedisConnectionError,)),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # not connected: what is wrong with its options shows
    except (ValueError, TypeError) as error:
        problem = str(error).rpartition("__init__() ")[2]
    else:
        return _Redis(pool, settings.redis_timeout)
    raise ConfigurationError(f"REDIS_URL: {problem}")  # outside of `except`: the cause may hold the password


async def check_redis(redis: Redis, seconds: float = START_TIMEOUT) -> None:
    """See whether Redis answers.

    Raises:
        ResourceUnavailable: When it does not, with its place and the reason, without the password.
    """
    try:
        async with asyncio.timeout(seconds):
            await redis.execute_command("PING")  # type: ignore[no-untyped-call]
    except (RedisError, OSError, TimeoutError) as error:
        reason = str(error).rstrip(".") or f"no answer within {seconds:g} s"
        raise ResourceUnavailable(f"Redis at {redis_place(redis)} (REDIS_URL) is not available: {reason}") from None


def redis_place(redis: Redis) -> str:
    """`host:port`, or the path of a socket."""
    options = redis.connection_pool.connection_kwargs
    return (
        str(options["path"]) if "path" in options else f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    )


class _Redis(Redis):
    """Redis with a deadline: redis-py's own time-outs are for each read and each attempt, and add up."""

    def __init__(self, pool: BlockingConnectionPool, timeout: float) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self.timeout = timeout

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        command = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await (command if _waits(args) else _within(self, self.timeout, str(args[0]), command))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.timeout = self.timeout
        return pipeline


class _Pipeline(Pipeline):
    timeout: float

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        return await _within(self, self.timeout, "a pipeline", super().execute(raise_on_error))

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        command = super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await _within(self, self.timeout, str(args[0]), command)


async def _within(redis: Redis, seconds: float, name: str, command: Awaitable[T]) -> T:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await command
    except TimeoutError:
        if not limit.expired():
            raise
        raise RedisTimeoutError(
            f"Redis at {redis_place(redis)} did not answer {name} within {seconds:g} s (MQTTAPI_REDIS_TIMEOUT)"
        ) from None


def _waits(args: tuple[Any, ...]) -> bool:
    name = str(args[0]).upper()
    return name in _WAITING or (name in {"XREAD", "XREADGROUP"} and any(arg in {"BLOCK", b"BLOCK"} for arg in args[:8]))
