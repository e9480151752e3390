"""`Opening`: what the handlers of an app need, opened in order when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttapi.injection import Depends
from mqttapi.injection.methods import Method
from mqttapi.injection.overrides import is_factory, override
from mqttapi.injection.sources import Resource
from mqttapi.publisher import Publisher
from mqttapi.resources.access import Access
from mqttapi.resources.backends import Backends, known_types

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AsyncExitStack

    from mqttapi.app import App
    from mqttapi.config import Settings
    from mqttapi.injection import Signature

__all__ = ["Opening"]


class Opening:
    """The start of an app, as far as resources go.

    Args:
        app: With its own resources, and what overrides them.
        backends: Makes Redis and the engine.
        signatures: Those of the routes.
    """

    def __init__(self, app: App, backends: Backends, signatures: Sequence[Signature]) -> None:
        self._app = app
        self._backends = backends
        self._asked = [*_asked(app, signatures), *_at_hand(app, backends.settings)]

    async def backends(self) -> dict[type, Any]:
        """Redis and the engine, where somebody asks for them and the app has none of its own."""
        from mqttapi.app import App

        overrides: Any = self._app.dependency_overrides
        own = self._app.resources.keys() | overrides.keys()
        opened = await self._backends.open(each for each in self._asked if each[1].type not in own)
        opened |= {kind: thing for kind, thing in overrides.items() if not is_factory(thing)}
        return {App: self._app, Publisher: self._app.publisher, Backends: self._backends, **opened}

    async def resources(self, stack: AsyncExitStack, opened: dict[type, Any]) -> None:
        """The app's own, in the order of registration, each with what is open before it."""
        for kind, resource in self._app.resources.items():
            if kind not in self._app.dependency_overrides:
                opened[kind] = await resource.open(stack, opened)

    async def relay(self, opened: dict[type, Any], *, session_expiry: float) -> None:
        """That of the outbox, where somebody asks for it."""
        known = known_types()
        relay = next((resource.type for _, resource in self._asked if known.get(resource.type) == "relay"), None)
        if relay is None or relay in self._app.dependency_overrides:
            return
        engine: Any = next(kind for kind, made in known.items() if made == "engine")
        inboxes = [(route.name, route.inbox) for route in self._app.routes if route.inbox is not None]
        lifetimes = {name: inbox.lifetime(session_expiry, name) for name, inbox in inboxes}
        opened[relay] = await self._backends.start_relay(
            opened[engine],
            self._app.publisher,
            {name: seconds for name, seconds in lifetimes.items() if seconds is not None},
        )


def _asked(app: App, signatures: Sequence[Signature]) -> Iterator[tuple[str, Resource]]:
    """What handlers ask for, once everything is overridden, and what resources do."""
    per_attempt = {kind: made for kind, made in known_types().items() if isinstance(made, Depends)}
    for signature in signatures:
        yield from override(signature, {**per_attempt, **app.dependency_overrides}).asked
    for resource in app.resources.values():
        for hint in resource.parameters.values():
            yield resource.label, Resource(hint, optional=False)


def _at_hand(app: App, settings: Settings) -> Iterator[tuple[str, Resource]]:
    """What controllers and middleware have as `self.redis` and `self.db`, where it is configured: so the app does not
    start without it. Elsewhere it is made when it is used; nobody can see beforehand whether it will be.
    """
    if settings.redis_url is not None and (user := next(_users(app, "redis"), None)):
        from redis.asyncio import Redis

        yield user, Resource(Redis, optional=False)
    if settings.database_url is not None and (user := next(_users(app, "db"), None)):
        from sqlalchemy.ext.asyncio import AsyncEngine

        yield user, Resource(AsyncEngine, optional=False)


def _users(app: App, thing: str) -> Iterator[str]:
    for route in app.routes:
        around, inner = app.table.middleware_of(route)
        for function in (route.handler, *around, *inner):
            user: Any = function.cls if isinstance(function, Method) else getattr(function, "__self__", None)
            cls = user if isinstance(user, type) else type(user)
            if issubclass(cls, Access) and thing in user.needs:
                yield cls.__name__
