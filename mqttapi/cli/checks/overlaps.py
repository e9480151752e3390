"""Routes whose filters have topics in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.cli.checks.finding import Finding, named
from mqttapi.runtime.links import overlapping_routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["overlapping_pairs", "shadowed_route", "shadowing"]


def overlapping_pairs(subject: Subject) -> Iterator[Finding]:
    """Each pair once, at the route that has most of them: `#` beside a hundred others is one finding."""
    partners: dict[Route, list[Route]] = {}
    for first, second in overlapping_routes(subject.subscribed):
        if subject.app.dispatch == "all" or not shadowing(first, second):
            partners.setdefault(first, []).append(second)
            partners.setdefault(second, []).append(first)
    told: set[Route] = set()
    for route in sorted(partners, key=lambda route: -len(partners[route])):
        others = [other for other in partners[route] if other not in told]
        told.add(route)
        if others:
            yield _overlap(subject, route, others)


def _overlap(subject: Subject, route: Route, others: list[Route]) -> Finding:
    what = f"{route.template.text!r} has topics in common with {_templates(others)}"
    if subject.app.dispatch == "all":
        return Finding(
            "note",
            (route, *others),
            what,
            "A message that several match goes to all of them, each once, at the same time.",
            "Where only one is meant: App(dispatch='first'), or a converter or where= that tells them apart.",
        )
    return Finding(
        "note",
        (route, *others),
        what,
        "A message that several match goes to the first registered alone.",
        "See that the more specific ones are registered before the others.",
    )


def _templates(routes: list[Route]) -> str:
    if len(routes) > 1:
        return named(routes)
    return f"{routes[0].template.text!r} of {routes[0].name!r}"


def shadowed_route(subject: Subject) -> Iterator[Finding]:
    """With `dispatch="first"`, a route whose messages all go to one that was registered before it."""
    if subject.app.dispatch != "first":
        return
    for first, second in overlapping_routes(subject.subscribed):
        if shadowing(first, second):
            yield Finding(
                "error",
                (second,),
                f"{second.template.text!r} never runs: {first.name!r} ({first.source}) on {first.template.text!r} has all of "
                "its messages",
                "With dispatch='first' the first registered of the routes that match has a message.",
                "Register it before the other one, or narrow the other one by a converter or where=.",
            )


def shadowing(first: Route, second: Route) -> bool:
    """Whether each message that `second` could have is one that `first` takes."""
    return _kinds(first) >= _kinds(second) and first.template.covers(second.template)


def _kinds(route: Route) -> set[str]:
    """Which messages it takes: those that were retained, and those that come live."""
    unwanted = {"skip": "retained", "only": "live"}.get(route.retained)
    return {"retained", "live"} - {unwanted}
