"""What is said when an app starts: what is allowed, but seldom meant."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mqttapi.config import (
    broker_warnings,
    client_id_warnings,
    default_instance,
    instance_warnings,
    unknown_variables,
)
from mqttapi.routing.table import DEFAULT_TIMEOUT
from mqttapi.workers.plan import Plan, wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttapi.routing import Route
    from mqttapi.service import Service
    from mqttapi.transport.connection import ConnectionOptions

__all__ = ["never_reached", "remark"]

log = logging.getLogger("mqttapi")


def remark(service: Service, options: ConnectionOptions) -> None:
    """Log it.

    Args:
        service: The app that starts.
        options: Of its first link.
    """
    for text in _warnings(service, options):
        log.warning("%s", text)
    app, worker = service.app, service.worker
    plan = Plan(wanted(app.routes, service.group, default=service.settings.worker_count))
    if worker.size is None:
        if plan.asked > 1 and not service.rescues:
            log.info("routes ask for %d workers: `mqttapi run` starts them; this process serves all", plan.asked)
    elif worker.size > 1:
        _tell_of_order(service, plan)


def _warnings(service: Service, options: ConnectionOptions) -> list[str]:
    settings = service.settings
    texts = unknown_variables(also_known=settings.also_known) + broker_warnings(options.broker, settings)
    texts += client_id_warnings(options.client_id, options.protocol)
    if service.echo is not None and options.protocol == "3.1.1":
        texts.append("no_local means nothing on MQTT 3.1.1: its routes receive what the app publishes itself")
    texts += service.app.table.unused_constraints()
    if cut := never_reached(service.app.routes, settings.max_hold):
        texts.append(
            f"timeout= of {', '.join(repr(route.name) for route in cut)} is never reached: a message is held for "
            f"{settings.max_hold:g} s at most. Raise MQTTAPI_MAX_HOLD, or make it {settings.max_hold:g} or less"
        )
    if settings.instance is None and settings.client_id is None and options.session_expiry and not service.rescues:
        texts += instance_warnings(default_instance())
    return texts


def never_reached(routes: Iterable[Route], max_hold: float) -> list[Route]:
    """The routes whose `timeout` is above `max_hold`; the default one is no wish of anybody's."""
    return [
        route
        for route in routes
        if route.timeout is not None and route.timeout > max_hold and route.timeout != DEFAULT_TIMEOUT
    ]


def _tell_of_order(service: Service, plan: Plan) -> None:
    """Of two messages for one key each may go to another process."""
    several = [
        route.name
        for route in service.app.routes
        if route.ordered_by is not None and any(len(plan.slots(filter)) > 1 for filter in route.filters(service.group))
    ]
    if several:
        log.info(
            "%s: handled by several workers, so in order within each, and not over all of them. Where a device's "
            "order matters, leave workers out; ordered_by=None says that it does not",
            ", ".join(several),
        )
