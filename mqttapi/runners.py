"""From routes to runners, when the app starts: controllers are made, plans compiled, middleware composed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anyio import CapacityLimiter

from mqttapi.errors import ConfigurationError
from mqttapi.injection import compile_plan
from mqttapi.injection.functions import missing_methods
from mqttapi.injection.methods import Method
from mqttapi.middleware import compose
from mqttapi.resources.access import OPENED
from mqttapi.runtime.attempts import Attempts
from mqttapi.runtime.overflow import Queue
from mqttapi.runtime.policy import noting_return
from mqttapi.runtime.runs import Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttapi.app import App
    from mqttapi.config import Settings
    from mqttapi.injection import Signature
    from mqttapi.routing import Route
    from mqttapi.runtime.echo import Echo

__all__ = ["ISOLATED_THREADS", "make_controllers", "make_runners"]

ISOLATED_THREADS: Final = 40
"""Threads that an isolated route has for itself, as many as all the others share: anyio's number."""


def make_controllers(app: App, opened: dict[type, object]) -> None:
    """One object of each controller whose constructor takes nothing, in the context that handlers will run in.

    Args:
        app: With the routes that have controllers.
        opened: What is open, by type; the controllers join it.

    Raises:
        ConfigurationError: A controller is abstract.
    """
    OPENED.set(opened)
    for route in app.routes:
        method = route.handler
        if not isinstance(method, Method) or method.cls in (opened.keys() | app.dependency_overrides):
            continue
        if missing := missing_methods(method.cls):
            raise ConfigurationError(
                f"the controller {method.cls.__name__} of {route.name!r} ({route.source}) is abstract: it lacks "
                f"{missing}. Register a class that has it all"
            )
        if method.has_one_object:
            opened[method.cls] = method.cls()


def make_runners(
    app: App,
    signatures: Sequence[Signature],
    settings: Settings,
    opened: dict[type, object],
    *,
    echo: Echo | None,
    pauses: bool,
) -> list[Runner]:
    """One of each route.

    Args:
        app: With the routes.
        signatures: Theirs.
        settings: Of the app.
        opened: What is open, by type.
        echo: Knows again what the app has published, where a route does not want that.
        pauses: Whether there are pauses between the attempts of a message.
    """
    runners = []
    for index, (route, signature) in enumerate(zip(app.routes, signatures, strict=True)):
        threads = CapacityLimiter(ISOLATED_THREADS) if route.isolate else None
        plan = compile_plan(signature, overrides=app.dependency_overrides, resources=opened, threads=threads)
        around, inner = app.table.middleware_of(route)
        one = compose(inner, noting_return(plan) if route.publish_to else plan)
        limit = settings.max_hold if route.timeout is None else min(route.timeout, settings.max_hold)
        attempts = Attempts(one, retry=route.retry, timeout=limit, max_hold=settings.max_hold, pauses=pauses)
        queue = _queue(route, settings)
        if around:
            runner = Runner(route, compose(around, attempts.layer()), index, queue=queue)
        else:
            runner = Runner(route, one, index, attempts.again, queue)
        if echo is not None and route.options.no_local:
            runner.endpoint = echo.around(runner.endpoint)
        runner.timeout = limit
        runner.max_hold = settings.max_hold
        runners.append(runner)
    return runners


def _queue(route: Route, settings: Settings) -> Queue | None:
    if route.overflow == "block":
        return None
    return Queue(route.name, route.overflow, limit=settings.max_queued, max_bytes=settings.max_in_flight_bytes)
