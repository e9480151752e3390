"""The least that a broker has to allow an app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mqttapi.injection.functions import called
from mqttapi.injection.methods import Method
from mqttapi.injection.sources import Attribute, Call, Dependency, Resource
from mqttapi.resources.access import Access as WithPublish
from mqttapi.runtime.fence import FENCE_PREFIX
from mqttapi.topics import split_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mqttapi.cli.checks.subject import Subject
    from mqttapi.routing import Route

__all__ = ["Access", "access_of", "as_json", "as_mosquitto"]

_PUBLISHING: Final = frozenset({"Publisher", "App", "Outbox"})


@dataclass(frozen=True, slots=True)
class Access:
    """What an app subscribes to and publishes, each with the names of those that do."""

    app: str
    subscribe: Mapping[str, Sequence[str]]
    """Exact filters, `$share/<group>/` included."""
    publish: Mapping[str, Sequence[str]]
    """Topics, and patterns where they have a wildcard: `+` stands for a parameter."""
    private: str
    """A pattern of topics that the processes of the app write to themselves: `+` stands for each of its client ids."""
    unknown: Sequence[str]
    """Who may publish besides, to topics that only its code knows."""


def access_of(subject: Subject) -> Access:
    """What an app needs."""
    subscribe: dict[str, list[str]] = {}
    publish: dict[str, list[str]] = {}
    for route in subject.routes:
        for filter in route.filters(subject.group):
            subscribe.setdefault(filter, []).append(route.name)
        for option, destination in (("publish_to", route.publish_to), ("dead_letter", route.dead_letter)):
            for pattern in destination.patterns if destination else ():
                publish.setdefault(pattern, []).append(f"{option} of {route.name}")
    return Access(subject.app.name, subscribe, publish, f"{FENCE_PREFIX}+", list(dict.fromkeys(_unknown(subject))))


def as_mosquitto(access: Access) -> str:
    """Lines for mosquitto's `acl_file`, which knows nothing of groups: members read what matches the filter."""
    reads: dict[str, Sequence[str]] = {}
    for filter, routes in access.subscribe.items():
        plain = split_share(filter)[1]
        reads[plain] = [*reads.get(plain, ()), *routes]
    lines = [f"# The least that {access.app} needs, for mosquitto's acl_file.", "user <name>"]
    lines += ["# Subscribed to: these filters, exactly.", *(f"topic read {filter}" for filter in reads)]
    exact = [topic for topic in access.publish if not _is_pattern(topic)]
    patterns = [topic for topic in access.publish if _is_pattern(topic)]
    if exact:
        lines += ["# Published to: these topics, exactly.", *(f"topic write {topic}" for topic in exact)]
    if patterns:
        lines += [
            "# Published to: patterns, with wildcards for what the messages bring.",
            *(f"topic write {topic}" for topic in patterns),
        ]
    lines += [
        "# When a process leaves the pool: a pattern, + stands for its client id.",
        f"topic readwrite {access.private}",
    ]
    if access.unknown:
        lines += ["# Not known: add the topics of", *(f"#   {text}" for text in access.unknown)]
    return "\n".join(lines)


def as_json(access: Access) -> dict[str, Any]:
    """The same for programs: `exact` is False where wildcards stand for what is not known before."""
    return {
        "app": access.app,
        "subscribe": [
            {"filter": filter, "topics": split_share(filter)[1], "exact": True, "routes": list(routes)}
            for filter, routes in access.subscribe.items()
        ]
        + [{"filter": access.private, "topics": access.private, "exact": False, "routes": []}],
        "publish": [
            {"topic": topic, "exact": not _is_pattern(topic), "for": list(users)}
            for topic, users in access.publish.items()
        ]
        + [{"topic": access.private, "exact": False, "for": ["a process that leaves the pool"]}],
        "unknown": list(access.unknown),
    }


def _is_pattern(topic: str) -> bool:
    return not {"+", "#"}.isdisjoint(topic)


# ------------------------------------------------------------------------------------ what only the code knows


def _unknown(subject: Subject) -> Iterator[str]:
    app = subject.app
    if subject.routes:
        yield "answers, to the Response Topic that a message names"
    for route in subject.routes:
        if means := _means(route):
            yield f"{route.name} ({route.source}), by {' and '.join(means)}"
    for route in subject.routes:
        for function in subject.middleware_of(route):
            if not _is_ours(function):
                yield f"the middleware {called(function)}, if it publishes"
    for handler in app.exception_handlers.values():
        yield f"the exception handler {called(handler)}, if it publishes"
    if app.lifespan is not None:
        yield "the lifespan, if it publishes"
    if app._on_connect or app._on_disconnect:
        yield "the hooks, if they publish"


def _means(route: Route) -> list[str]:
    """By what the handler or one of its dependencies can publish."""
    if _is_ours(route.handler):
        return []
    signature = route.signature
    found = [
        mean for call in (*(each.call for each in signature.dependencies), signature.handler) for mean in _of(call)
    ]
    if isinstance(route.handler, Method) and issubclass(route.handler.cls, WithPublish):
        found.append("self.publish")
    if "Publish" in str(getattr(route.handler, "__annotations__", {}).get("return")):
        found.append("what it returns")
    return list(dict.fromkeys(found))


def _of(call: Call) -> Iterator[str]:
    for _, source in call.arguments:
        match source:
            case Resource() if source.type.__name__ in _PUBLISHING:
                yield source.type.__name__
            case Attribute("context"):
                yield "Context"
            case Attribute("context.app.publisher"):
                yield "Publisher"
            case Dependency():
                yield from _of(source.call)


def _is_ours(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "").startswith("mqttapi.")
