"""What the start of the app would refuse, whatever its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.cli.checks.finding import Finding
from mqttapi.errors import ConfigurationError
from mqttapi.runtime.dispatcher import Dispatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["refused_at_start"]


def refused_at_start(subject: Subject) -> Iterator[Finding]:
    """Subscriptions that contradict each other, middleware on a route that it is not for, an inbox that forgets early."""
    yield from _refused((), lambda: Dispatcher(subject.subscriptions()))
    for route in subject.routes:
        yield from _refused((route,), lambda route=route: subject.app.table.middleware_of(route))  # type: ignore[misc]  # mypy cannot infer the type of a lambda with a default
        yield from _refused((route,), lambda route=route: _inbox(subject, route))  # type: ignore[misc]  # likewise


def _inbox(subject: Subject, route: Route) -> None:
    if route.inbox is not None:
        route.inbox.lifetime(subject.session.expiry, route.name)


def _refused(routes: tuple[Route, ...], attempt: Callable[[], object]) -> Iterator[Finding]:
    try:
        attempt()
    except ConfigurationError as error:
        yield Finding("error", routes, str(error), "The app does not start with it.", "")
