"""`Subject`: an app, as the checks look at it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.runtime.links import subscriptions
from mqttapi.runtime.runs import Runner
from mqttapi.service import session_of
from mqttapi.topics import TopicTree
from mqttapi.workers.plan import Plan, wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.app import App
    from mqttapi.config import Settings
    from mqttapi.context import Context
    from mqttapi.middleware import MiddlewareFunction
    from mqttapi.routing import Destination, Route
    from mqttapi.runtime.links import Subscribed

__all__ = ["Subject", "one_topic"]


class Subject:
    """An app that is not running, with what follows from its settings.

    Args:
        app: With all of its routes.
        settings: Of the environment; the app's own come before them.
        cap: The most processes that any route gets; None: what the routes say.
    """

    def __init__(self, app: App, settings: Settings, *, cap: int | None = None) -> None:
        self.app = app
        self._cap = cap
        self.settings = app.settings or settings
        self.routes = app.routes
        self.group = self.settings.group_name or app.name
        self.session = session_of(app, self.settings)

    def subscriptions(self) -> list[Subscribed]:
        """See `runtime.links.subscriptions`.

        Raises:
            ConfigurationError: Two routes on one subscription contradict each other.
        """
        return subscriptions([Runner(route, _never, at) for at, route in enumerate(self.routes)], self.group)

    def reached_by(self, destination: Destination) -> list[Route]:
        """The routes that may get what is sent to a destination, in the order of registration."""
        found = {route for pattern in destination.patterns for route in self._listening.overlapping(pattern)}
        if (topic := one_topic(destination)) is not None:
            found = {route for route in found if route.fallback or route.template.match(topic) is not None}
        return sorted(found, key=self.routes.index)

    @cached_property
    def _listening(self) -> TopicTree[Route]:
        tree: TopicTree[Route] = TopicTree()
        for route in self.routes:
            for filter in route.listens:
                tree.add(filter, route)
        return tree

    @cached_property
    def _plan(self) -> Plan:
        return Plan(wanted(self.routes, self.group, default=self.settings.worker_count, cap=self._cap))

    @cached_property
    def subscribed(self) -> list[Subscribed]:
        """The subscriptions; none where they contradict each other, which a check of its own says."""
        try:
            return self.subscriptions()
        except ConfigurationError:
            return []

    def middleware_of(self, route: Route) -> tuple[MiddlewareFunction, ...]:
        """All that runs around a route, outermost first; nothing where it is not for this route, likewise."""
        try:
            around, inner = self.app.table.middleware_of(route)
        except ConfigurationError:
            return ()
        return (*around, *inner)

    def workers_of(self, route: Route) -> int:
        """How many processes serve the route."""
        return max((len(self._plan.slots(filter)) for filter in route.filters(self.group)), default=1)

    def longest_attempt(self, route: Route) -> float:
        """Seconds."""
        return min(route.timeout or self.settings.max_hold, self.settings.max_hold)

    def lasting(self) -> Iterator[Route]:
        """The routes that have QoS 1 or 2."""
        return (route for route in self.routes if route.qos)


def one_topic(destination: Destination) -> str | None:
    """The topic of a destination that has only one."""
    first, *others = destination.patterns
    return None if others or not {"+", "#"}.isdisjoint(first) else first


async def _never(context: Context) -> Any:
    raise AssertionError("a check runs no handler: this is a bug in mqttapi")
