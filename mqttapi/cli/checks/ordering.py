"""What can be handled at the same time, and what cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttapi.cli.checks.finding import Finding, Level
from mqttapi.injection.functions import called

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["concurrency_above_window", "concurrency_of_one_key", "narrow_broker_window", "order_across_processes"]

MOSQUITTO_WINDOW: Final = 20
"""`max_inflight_messages` of mosquitto where nothing is configured."""


def order_across_processes(subject: Subject) -> Iterator[Finding]:
    """An order that several processes share the messages of: each one that was asked for, and the default one once."""
    several = {route: workers for route in subject.routes if (workers := subject.workers_of(route)) > 1}
    for route, workers in several.items():
        if route.ordered_by not in {"topic", None}:
            key = route.ordered_by if isinstance(route.ordered_by, str) else called(route.ordered_by)
            yield _order("warning", [route], key, workers)
    default = [route for route in several if route.ordered_by == "topic"]
    if default:
        yield _order("note", default, "topic", max(several[route] for route in default))


def _order(level: Level, routes: list[Route], key: str, workers: int) -> Finding:
    return Finding(
        level,
        tuple(routes),
        f"ordered_by={key!r} holds within each of {workers} workers, not among them",
        "The broker gives the messages of one key to any worker: they may be handled at the same time, and out of order.",
        "ordered_by=None says that the order does not matter; workers=1 keeps it, as long as there is one replica.",
    )


def concurrency_above_window(subject: Subject) -> Iterator[Finding]:
    """A `concurrency` that no link ever holds the messages for."""
    window = subject.settings.max_in_flight
    for route in _limited(subject):
        if (route.concurrency or 0) > window:
            yield Finding(
                "warning",
                (route,),
                f"concurrency={route.concurrency} is never reached: a link holds {window} messages at most",
                "MQTTAPI_MAX_IN_FLIGHT bounds what is received and not yet handled, all routes of a link together.",
                f"Raise MQTTAPI_MAX_IN_FLIGHT (to 65,535 at most), or make concurrency {window} or less.",
            )


def narrow_broker_window(subject: Subject) -> Iterator[Finding]:
    """A `concurrency` that mosquitto as it comes does not send the messages for."""
    routes = [
        route
        for route in _limited(subject)
        if route.qos and MOSQUITTO_WINDOW < (route.concurrency or 0) <= subject.settings.max_in_flight
    ]
    if routes:
        highest = max(route.concurrency or 0 for route in routes)
        yield Finding(
            "note",
            tuple(routes),
            f"concurrency up to {highest}: a mosquitto with its defaults lets {MOSQUITTO_WINDOW} messages of QoS 1 and 2 be "
            "under way at a time",
            "A client gets no more before it has acknowledged; the rest waits at the broker.",
            f"Set max_inflight_messages {highest} or more in mosquitto.conf. Other brokers have bounds of their own.",
        )


def concurrency_of_one_key(subject: Subject) -> Iterator[Finding]:
    """A `concurrency` of a route that has one topic, and keeps its order."""
    for route in _limited(subject):
        one_topic = route.template.renderable and not route.template.names
        if (route.concurrency or 0) > 1 and route.ordered_by == "topic" and one_topic and not route.fallback:
            yield Finding(
                "warning",
                (route,),
                f"concurrency={route.concurrency} is never reached: {route.template.text!r} is one topic, and its messages "
                "are handled one after the other",
                "ordered_by='topic' is the default.",
                "Give ordered_by a function of the message that tells the senders apart, or None for no order.",
            )


def _limited(subject: Subject) -> Iterator[Route]:
    return (route for route in subject.routes if route.concurrency is not None)
