"""What an app publishes, and gets back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.cli.checks.finding import Finding, some
from mqttapi.cli.checks.subject import one_topic
from mqttapi.topics import covers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Destination, Route

__all__ = ["dead_letter_comes_back", "publish_loop"]


def dead_letter_comes_back(subject: Subject) -> Iterator[Finding]:
    """Routes that get the dead letters of the app, though they seem to be for other messages."""
    senders: dict[Route, list[Route]] = {}
    for route in subject.routes:
        if route.dead_letter is None:
            continue
        for other in subject.reached_by(route.dead_letter):
            if other is route or not _is_for(other, route.dead_letter):
                senders.setdefault(other, []).append(route)
    for route, found in senders.items():
        whose = ["its own" if sender is route else f"those of {sender.name!r}" for sender in found]
        yield Finding(
            "warning",
            (route, *(sender for sender in found if sender is not route)),
            f"{route.template.text!r} gets dead letters: {some(whose)}",
            "There they are handled as any message; one that fails again is logged and acknowledged, as a dead letter is "
            "never made one again.",
            "Begin dead_letter with a first level that no route listens to, or narrow the route.",
        )


def publish_loop(subject: Subject) -> Iterator[Finding]:
    """`publish_to` and `republish` that lead back to where they began."""
    for route in subject.routes:
        way = _way_back(subject, route)
        if not way or min(way, key=subject.routes.index) is not route:
            continue  # the same circle, told at another of its routes
        steps = [*zip(way, [*way[1:], route], strict=True)]
        certain = subject.app.dispatch == "all" and all(_always_reaches(here, there) for here, there in steps)
        circle = " → ".join(repr(each.name) for each in (*way, route))
        yield Finding(
            "error" if certain else "warning",
            tuple(way),
            f"what it publishes to {_to(route).text!r} comes back: {circle}",
            f"{'What' if certain else 'Where its topic fits, what'} is published goes round for ever; republish() rejects "
            "the message instead.",
            "Publish to topics that none of these routes listens to.",
        )


def _way_back(subject: Subject, start: Route) -> list[Route]:
    """The routes on the shortest way from a route's `publish_to` to itself, beginning with it; empty: none."""
    ways: list[list[Route]] = [[start]]
    seen: set[Route] = set()
    for way in ways:
        to = way[-1].publish_to
        for other in subject.reached_by(to) if to is not None else ():
            if other.options.no_local and subject.settings.protocol == "5":
                continue  # takes no notice of what the app has published
            if other is start:
                return way
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def _to(route: Route) -> Destination:
    assert route.publish_to is not None  # noqa: S101  only such a route is on a way
    return route.publish_to


def _always_reaches(source: Route, route: Route) -> bool:
    """Whether each topic of the source's `publish_to` is one that the route handles."""
    destination = _to(source)
    if route.fallback:
        return False
    if topic := one_topic(destination):
        return route.template.match(topic) is not None
    if route.template.narrows:
        return False
    return all(any(covers(filter, pattern) for filter in route.listens) for pattern in destination.patterns)


def _is_for(route: Route, destination: Destination) -> bool:
    """Whether a route seems to be meant for what comes to a destination: both begin with the same level."""
    return route.template.text.split("/")[0] == destination.text.split("/")[0]
