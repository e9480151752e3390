"""`Backends`: Redis and the database of one run of an app, made when they are asked for and closed at the end."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from mqttapi.errors import ConfigurationError, ResourceUnavailable
from mqttapi.resources.background import whole

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mqttapi.config import Settings
    from mqttapi.injection.sources import Resource
    from mqttapi.publisher import Publisher
    from mqttapi.resources.relay import Relay

__all__ = ["Backends", "known_types"]

log = logging.getLogger("mqttapi.resources")

CHECK: Final = 5.0
"""Seconds between two looks whether Redis and the database answer."""


def known_types() -> dict[type, Any]:
    """The types that a handler may ask for though the app has registered nothing: with `Depends(...)` where it gets one
    per attempt, else with the name of what `Backends` makes.

    A handler that names a type has imported its library: what is not imported need not be known, and stays so.
    """
    known: dict[type, Any] = {}
    if "redis.asyncio" in sys.modules:
        from redis.asyncio import Redis

        known[Redis] = "redis"
    if "sqlalchemy.ext.asyncio" in sys.modules or "sqlmodel" in sys.modules:
        from mqttapi.resources.sql import SESSIONS, AsyncEngine

        known |= {AsyncEngine: "engine", **SESSIONS}
    if "mqttapi.resources.outbox" in sys.modules:
        from mqttapi.resources.outbox import OUTBOXES
        from mqttapi.resources.relay import Relay

        known |= {Relay: "relay", **OUTBOXES}
    return known


class Backends:
    """Redis, the database, and what works on it in the background.

    Args:
        settings: With their URLs and time-outs.
        redis_optional: Whether the app starts, and counts as ready, without Redis.
        name: Of the tasks, for debuggers and logs.
    """

    def __init__(self, settings: Settings, *, redis_optional: bool, name: str) -> None:
        self.settings = settings
        self.problems: tuple[str, ...] = ()
        """What does not answer, one line each; looked at every few seconds."""
        self.relay: Relay | None = None
        """Of the outbox, if the app has one."""
        self._redis_optional = redis_optional
        self._name = name
        self._redis: Redis | None = None
        self._engine: AsyncEngine | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._without_redis = False

    def make(self, kind: type) -> Any:
        """Redis or the engine, which connect when they are used; None for any other type.

        Raises:
            ConfigurationError: When their URL is missing or wrong.
        """
        match known_types().get(kind):
            case "redis":
                if self._redis is None:
                    from mqttapi.resources.redis import open_redis

                    self._redis = open_redis(self.settings)
                return self._redis
            case "engine":
                if self._engine is None:
                    from mqttapi.resources.sql import open_database

                    self._engine = open_database(self.settings)
                return self._engine
        return None

    async def open(self, asked: Iterable[tuple[str, Resource]]) -> dict[type, Any]:
        """Make what is asked for, and see whether it answers; with it comes what there is per attempt.

        Args:
            asked: What handlers and resources ask for, with what error texts call these.

        Raises:
            ConfigurationError: When a setting is missing or wrong.
            ResourceUnavailable: When something does not answer.
        """
        known = known_types()
        opened = {kind: made for kind, made in known.items() if not isinstance(made, str)}
        for owner, resource in asked:
            kind = resource.type
            no_url = known.get(kind) == "redis" and self.settings.redis_url is None
            if known.get(kind) in {"redis", "engine"} and kind not in opened and not (resource.optional and no_url):
                try:
                    opened[kind] = self.make(kind)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{owner} asks for {kind.__name__}, but {error}") from None
        if problems := await self._check():
            raise ResourceUnavailable("; ".join(problems))
        self._start(self._watch(), "resources")
        return opened

    async def start_relay(self, engine: AsyncEngine, publisher: Publisher, lifetimes: Mapping[str, float]) -> Relay:
        """Create the tables, send what the outbox holds, forget what the inbox need not know any more.

        Args:
            engine: The database.
            publisher: Sends the messages.
            lifetimes: Per route with an inbox, after how many seconds a key is forgotten.
        """
        from mqttapi.resources.relay import Relay
        from mqttapi.resources.tables import create_tables, forget

        await create_tables(engine)
        self.relay = Relay(engine, publisher)
        self._start(self.relay.run(), "outbox")
        if lifetimes:
            self._start(forget(engine, lifetimes), "inbox")
        return self.relay

    async def close(self) -> None:
        """End what runs in the background, and close what was made."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()
        if self._engine is not None:
            await self._engine.dispose()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"{self._name}.{name}"))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK)
            problems = tuple(await whole(self._check()))
            for problem in set(problems) - set(self.problems):
                log.warning("%s", problem)
            if self.problems and not problems:
                log.info("all resources answer again")
            self.problems = problems

    async def _check(self) -> list[str]:
        return list(filter(None, await asyncio.gather(self._redis_problem(), self._engine_problem())))

    async def _redis_problem(self) -> str:
        if self._redis is None:
            return ""
        from mqttapi.resources.redis import check_redis

        try:
            await check_redis(self._redis)
        except ResourceUnavailable as error:
            if not self._redis_optional:
                return str(error)
            if not self._without_redis:
                log.warning("%s. It is optional: the app goes on, and uses it as soon as it answers", error)
            self._without_redis = True
        else:
            self._without_redis = False
        return ""

    async def _engine_problem(self) -> str:
        if self._engine is None:
            return ""
        from mqttapi.resources.sql import check_database

        try:
            await check_database(self._engine)
        except ResourceUnavailable as error:
            return str(error)
        return ""
