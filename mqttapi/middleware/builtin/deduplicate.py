"""`Deduplicate`: a message that was handled is not handled again.

    first delivery   claim ──► handler ──► done
    second delivery            wait while the claim lives ──► done: dropped
                                                         └──► the claim ran out or was given back: handler

A claim is a lease that is renewed while the handler runs. So a process that is killed, between its handler and the
mark too, delays a message for the length of the lease, and never swallows it: who waits for a claim has no time-out
meanwhile, since a message whose attempt has taken too long is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import time
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from mqttapi.errors import ConfigurationError, Drop
from mqttapi.injection.functions import called
from mqttapi.injection.standstill import standstill
from mqttapi.middleware.base import Middleware
from mqttapi.middleware.builtin.find import Find, finder, fingerprint
from mqttapi.middleware.builtin.rules import is_number, require, require_clock
from mqttapi.middleware.builtin.store import (
    PerRun,
    Store,
    check_store,
    layers_around,
    needs_of,
    patient,
    redis_of,
    scope,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

    from mqttapi.context import Context
    from mqttapi.injection import Endpoint

__all__ = ["Deduplicate"]

log = logging.getLogger("mqttapi.middleware")

MOST_KEYS: Final = 100_000
"""Handled messages in the memory of a process; beyond that the oldest are forgotten."""
LONGEST_PAUSE: Final = 0.5
"""Seconds between two looks whether another delivery is over."""

_CLAIM: Final = """
local held = redis.call('GET', KEYS[1])
if not held then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 0 end
if held == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 0 end
if held == 'done' then return -1 end
return math.max(redis.call('PTTL', KEYS[1]), 1)
"""
_RENEW: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class Deduplicate(Middleware):
    """Drops a message whose key was handled before, on the same route. Each of several on one route has its own key.

        @app.topic("orders/<shop>", middleware=[Deduplicate("property.message-id")])

    A second delivery while the first is handled waits for its end, for as long as that takes: neither `timeout` nor
    `max_hold` goes on meanwhile. It is dropped when the first succeeded, else handled. A message without a key, or with
    an empty one, is handled. What the handler raises gives the claim back, so that the
    next attempt runs.

    What a handler *returns* is published after the mark: where a crash in between must not swallow it, publish it in
    the handler. An inbox marks in the handler's own transaction, and so leaves no gap at all.

    Args:
        key: What two deliveries of one message have in common: `"property.message-id"`, `"payload.id"`, a function of
            the context; see `Find`. Neither the packet id nor the payload is that.
        ttl: Seconds for which a handled message is known; longer than the broker's session lasts.
        lease: Seconds for which a process that was killed delays a second delivery, 1 to 50.
        store: `redis`, `memory`, a Redis client, or `auto`: Redis where the app has a `REDIS_URL`.
        clock: Seconds, for memory.
        sleep: Waits.

    Raises:
        ConfigurationError: When an argument breaks a rule.
    """

    def __init__(
        self,
        key: Find,
        ttl: float = 86_400.0,
        *,
        lease: float = 10.0,
        store: Store = "auto",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        require("Deduplicate", "ttl", ttl, lambda seconds: is_number(seconds, 1), "at least 1 s")
        require("Deduplicate", "lease", lease, lambda seconds: is_number(seconds, 1, 50), "1 to 50 s")
        check_store("Deduplicate", store)
        require_clock("Deduplicate", clock, sleep)
        if key in ("topic", "payload"):
            raise ConfigurationError(
                f"Deduplicate: {key!r} is no key: two messages may well have the same. Name what the sender makes for each "
                "message, such as 'property.message-id' or 'payload.id'"
            )
        self._find = finder(key, "Deduplicate")
        self._key = key
        self._called = key if isinstance(key, str) else called(key)
        self._lease = lease
        self._sleep = sleep
        self.ttl = ttl
        self._store: Store = store
        self._clock = clock
        self._claims = PerRun(self._claims_of)
        self._scopes: PerRun[dict[tuple[str, str], str]] = PerRun(lambda _: {})
        self.needs = needs_of(store)

    def _claims_of(self, context: Context) -> _Claims:
        redis = redis_of(self, self._store, context)
        return _InMemory(self.ttl, self._clock) if redis is None else _InRedis(redis, self.ttl, self._lease)

    def _scope(self, context: Context) -> str:
        """What its keys begin with: the same in each process, and that of no other key of the route."""
        scopes, app, route = self._scopes.of(context), context.app.name, context.route.name
        try:
            return scopes[app, route]
        except KeyError:
            return scopes.setdefault((app, route), scope("once", app, route, self._called, str(self._place(context))))

    def _place(self, context: Context) -> int:
        """How many other keys of that name are further out: functions of two modules may have the same, as lambdas do."""
        keys: list[Find] = []
        for layer in layers_around(context, Deduplicate):
            if layer._key == self._key:
                break
            if layer._called == self._called and layer._key not in keys:
                keys.append(layer._key)
        return len(keys)

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Run what is inside, once."""
        found = self._find(context)
        if found is None or found == "":
            return await next_handler(context)
        claims = self._claims.of(context)
        key = self._scope(context) + fingerprint(found)
        token = f"{_process(os.getpid())}:{id(context):x}"
        await self._claim(claims, key, token, context)
        try:
            async with self._renewed(claims, key, token):
                result = await next_handler(context)
        except BaseException:
            await claims.release(key, token)
            raise
        await claims.done(key)
        return result

    async def _claim(self, claims: _Claims, key: str, token: str, context: Context) -> None:
        if wait := await claims.claim(key, token):
            pause = 0.02
            async with standstill(context):
                while wait and wait != math.inf:
                    await self._sleep(min(wait, pause))
                    pause = min(2 * pause, LONGEST_PAUSE)
                    wait = await claims.claim(key, token)
        if wait:
            raise Drop("handled before")

    @contextlib.asynccontextmanager
    async def _renewed(self, claims: _Claims, key: str, token: str) -> AsyncIterator[None]:
        if not isinstance(claims, _InRedis):
            yield
            return

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._lease / 3)
                await claims.renew(key, token)

        task = asyncio.create_task(renew(), name="mqttapi.deduplicate")
        try:
            yield
        finally:
            task.cancel()

    def __repr__(self) -> str:
        return f"Deduplicate({self._key!r})"


@lru_cache(maxsize=1)
def _process(pid: int) -> str:
    """What the claims of this process begin with. A context is part of them: it never waits for a claim of its own."""
    return secrets.token_hex(8)


class _Claims(Protocol):
    async def claim(self, key: str, token: str) -> float:
        """0: it is ours now. Infinite: it was handled. Else seconds for which another has it."""
        ...

    async def release(self, key: str, token: str) -> None:
        """Give back a claim, if it is still ours."""

    async def done(self, key: str) -> None:
        """It was handled."""


class _InMemory:
    """A claim needs no lease: it does not outlive the process."""

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._claimed: dict[str, str] = {}
        self._done: OrderedDict[str, float] = OrderedDict()  # until when it is known, the first to be forgotten first

    async def claim(self, key: str, token: str) -> float:
        now = self._clock()
        while self._done and (next(iter(self._done.values())) <= now or len(self._done) > MOST_KEYS):
            self._done.popitem(last=False)
        if key in self._done:
            return math.inf
        return 0.0 if self._claimed.setdefault(key, token) == token else LONGEST_PAUSE

    async def release(self, key: str, token: str) -> None:
        if self._claimed.get(key) == token:
            del self._claimed[key]

    async def done(self, key: str) -> None:
        self._claimed.pop(key, None)
        self._done[key] = self._clock() + self._ttl
        self._done.move_to_end(key)


class _InRedis:
    def __init__(self, redis: Redis, ttl: float, lease: float) -> None:
        self._redis = redis
        self._ttl = round(ttl * 1000)
        self._lease = round(lease * 1000)
        self._claim = redis.register_script(_CLAIM)
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    async def claim(self, key: str, token: str) -> float:
        wait = await patient(lambda: self._claim(keys=[key], args=[token, self._lease]))
        return math.inf if wait < 0 else wait / 1000

    async def renew(self, key: str, token: str) -> None:
        with contextlib.suppress(*_failures()):  # there is time for another try
            await self._renew(keys=[key], args=[token, self._lease])

    async def release(self, key: str, token: str) -> None:
        with contextlib.suppress(*_failures()):  # then it runs out
            await self._release(keys=[key], args=[token])

    async def done(self, key: str) -> None:
        try:
            await patient(lambda: self._redis.set(key, "done", px=self._ttl))
        except _failures() as error:
            log.warning("Deduplicate: a handled message could not be marked, and may be handled again: %s", error)


def _failures() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return RedisError, OSError
