"""What a route may be told, and the one place where it is checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from mqttapi.errors import ConfigurationError
from mqttapi.injection import Depends
from mqttapi.injection.functions import called, takes
from mqttapi.injection.hints import is_table
from mqttapi.resources.inbox import Inbox
from mqttapi.routing.retry import Retry
from mqttapi.topics import share
from mqttapi.topics.converters import pattern_or_choices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from mqttapi.message import Message
    from mqttapi.middleware import MiddlewareLike
    from mqttapi.topics import Constraint

__all__ = ["OnOptions", "Overflow", "Retained", "RouteOptions", "SharedOptions", "TopicOptions", "check"]

Retained = Literal["all", "new", "skip", "only"]
"""See `SharedOptions.retained`."""
Overflow = Literal["block", "drop_oldest", "drop_newest", "latest"]
"""See `SharedOptions.overflow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """The options of a route that are rarely needed. What is None is inherited; `tags` and `without_middleware` add up.

    Attributes:
        description: For people; the handler's docstring when not given.
        tags: For people, and for tools that read `mqttapi routes --json`.
        no_local: Do not receive what this app published itself, on this instance [MQTT5 §3.8.3.1]. It is known by a
            user property, `mqttapi-from`. Not with `shared` [MQTT-3.8.3-4]. Default False. MQTT 5.
        retain_as_published: Keep the retain flag as the sender set it [MQTT5 §3.8.3.1]. Default False.
        without_middleware: What is not to run, of the middleware of app, routers and groups: names of aliases and of
            their groups, classes, or the middleware itself.
    """

    description: str | None = None
    tags: Sequence[str] = ()
    no_local: bool | None = None
    retain_as_published: bool | None = None
    without_middleware: Sequence[MiddlewareLike | type | str] = ()

    def within(self, outer: RouteOptions) -> RouteOptions:
        """These options over those of the router around."""
        nearer = {
            name: getattr(outer, name) if getattr(self, name) is None else getattr(self, name)
            for name in ("description", "no_local", "retain_as_published")
        }
        return RouteOptions(
            **nearer,
            tags=(*outer.tags, *self.tags),
            without_middleware=(*outer.without_middleware, *self.without_middleware),
        )


class SharedOptions(TypedDict, total=False):
    """The options of a route that a router or the app may give for all of theirs.

    What is not given is inherited: from the router, from the router that includes it, from the app.
    """

    qos: Literal[0, 1, 2]
    """The highest quality of service to receive with [MQTT5 §4.3]. Default 1."""
    shared: bool | str
    """Share the messages among workers and replicas [MQTT5 §4.8.2]. True: the group is `MQTT_GROUP_NAME`, else the
    app's name; a string names the group. Default False: every replica gets every message."""
    workers: int | None
    """How many processes `mqttapi run` starts for the route, 1 to 512; needs `shared`. Default: `WORKER_COUNT`, else 1."""
    where: Mapping[str, Constraint]
    """Per path parameter a regular expression, the set of its values, or an Enum: what does not fit does not match.
    That of a router, a group or the app applies to those of its routes that have such a parameter."""
    missing: object
    """What becomes of a message when there is no row for a path parameter that is a table: `"reject"` (default),
    `"drop"`, a row to use instead, or a function of the context that gives one (None: reject)."""
    middleware: Sequence[MiddlewareLike | str]
    """Runs inside that of app and routers, the first one outermost. A text names an alias: `"throttle:60,1"`."""
    dependencies: Sequence[Depends]
    """Run before the handler, for their effects."""
    ordered_by: str | Callable[[Message], Hashable] | None
    """Messages of one key are handled one after the other, within a worker. `"topic"` (default), the name of a path
    parameter, a function of the message, or None: no order."""
    concurrency: int | None
    """How many messages of the route are handled at once, per worker. Default None: bounded by `max_in_flight`."""
    timeout: float | None
    """Seconds that one attempt may take, default 60. None: no limit but `MQTTAPI_MAX_HOLD`."""
    retained: Retained
    """Which retained messages to take: `"all"`, at every connection again; `"new"`, only those that come with the first
    subscription; `"skip"`, none; `"only"`, and nothing else. Default `"all"`, of shared routes `"skip"`."""
    overflow: Overflow
    """What becomes of messages of QoS 0 that come too fast, when the route holds `MQTTAPI_MAX_QUEUED`. `"block"`
    (default): the link stops to read at `MQTTAPI_MAX_IN_FLIGHT`. `"drop_oldest"`, `"drop_newest"`; `"latest"`: of those
    that wait, only the newest of each key stays. QoS 1 and 2 are never dropped for lack of room."""
    isolate: bool
    """Give the route a connection and a session of its own, so that its slow handlers do not hold up others."""
    ack: Literal["handled", "received"]
    """When a message of QoS 1 or 2 is acknowledged: when its handlers have ended (default), or, so far as this route
    is concerned, at once: what its handler had not finished when the process died is lost."""
    retry: Retry | int | None
    """Whether the handler runs again when it raises: a `Retry(...)`, or how many attempts it has. Default None."""
    dead_letter: str | None
    """Where a message goes that was rejected or has failed for good: a template over the route's parameters, `<topic>`
    and `<route>`, such as `dead/<topic>`. Default None: it is logged, counted and acknowledged."""
    options: RouteOptions
    """What is rarely needed."""


class TopicOptions(SharedOptions, total=False):
    """The options of one route."""

    name: str | None
    """For `app.topic_for`; given names are unique. Default: `module.qualname` of the handler."""
    inbox: Inbox | None
    """Handle a message that is delivered again only once. Default None."""
    publish_to: str | None
    """Where the handler's return value is published, unless it is None: a template as that of `dead_letter`."""


class OnOptions(TopicOptions, total=False):
    """The options of `on`."""

    worker_count: int | None
    """Another word for `workers`."""


def inherit(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """`inner` over `outer`: the nearer one wins, `where`, `dependencies` and `options` add up, outermost first."""
    merged = {**outer, **inner}
    if "where" in outer and "where" in inner:
        merged["where"] = {**outer["where"], **inner["where"]}
    if "dependencies" in outer and "dependencies" in inner:
        merged["dependencies"] = (*outer["dependencies"], *inner["dependencies"])
    if "options" in outer and "options" in inner:
        merged["options"] = inner["options"].within(outer["options"])
    return merged


def check(options: Mapping[str, Any], where: str, beside: Collection[str] = ()) -> None:
    """Check each option that is given, whatever level it is given on.

    Args:
        options: By name, as in `TopicOptions`.
        where: What the error texts start with, such as "ingest() on 'sensors/<device_id>/data'".
        beside: What else may be given there.

    Raises:
        ConfigurationError: With the option, its value, the rule and the way out.
    """
    for name, value in options.items():
        checker = _CHECKS.get(name)
        if checker is None:
            raise ConfigurationError(f"{where}: unknown option {name!r}{_nearest(name, beside)}")
        problem = checker(value)
        if problem:
            raise ConfigurationError(f"{where}: {problem}")


def check_constraints(where: Mapping[str, Constraint], label: str) -> None:
    """Check those of a router or an app, for which there may be no template yet.

    Raises:
        InvalidTemplate: With the parameter and what is wrong with its constraint.
    """
    for name, constraint in where.items():
        pattern_or_choices(constraint, f"{label}: where={{{name!r}: ...}}")


def check_together(options: Mapping[str, Any], where: str) -> None:
    """Check the options of a route against each other, once everything is inherited."""
    shared, workers = options.get("shared", False), options.get("workers")
    if workers is not None and shared is False:
        raise ConfigurationError(
            f"{where}: workers={workers} without shared: every worker would get every message. "
            f"Add shared=True (or shared='group') so that the workers share them, or leave workers out."
        )
    rare: RouteOptions = options.get("options", RouteOptions())
    if rare.no_local and shared is not False:
        raise ConfigurationError(
            f"{where}: no_local with shared is a protocol error [MQTT-3.8.3-4]. Leave one of the two out."
        )
    retained = retained_of(options)
    if rare.retain_as_published and retained in {"skip", "only"}:
        raise ConfigurationError(
            f"{where}: retained={retained!r} with retain_as_published: the flag says then how a message was published, "
            "not whether it was retained. Leave one of the two out."
        )
    if options.get("overflow") == "latest" and options.get("ordered_by", "topic") is None:
        raise ConfigurationError(
            f"{where}: overflow='latest' with ordered_by=None: without keys there is no latest of a key. "
            "Use 'drop_oldest', or give ordered_by."
        )


def retained_of(options: Mapping[str, Any]) -> Retained:
    """The option, or its default: a group has no retained messages [MQTT5 §4.8.2], though some brokers send them."""
    if "retained" in options:
        given: Retained = options["retained"]
        return given
    rare: RouteOptions = options.get("options", RouteOptions())
    return "all" if options.get("shared", False) is False or rare.retain_as_published else "skip"


def _nearest(name: str, beside: Collection[str]) -> str:
    if name in RouteOptions.__dataclass_fields__:
        return f". Write options=RouteOptions({name}=...)"
    known = sorted({*_CHECKS, *beside})
    near = difflib.get_close_matches(name, known, n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known are: {', '.join(known)}."


def _qos(value: object) -> str | None:
    return None if type(value) is int and value in {0, 1, 2} else f"qos must be 0, 1 or 2, got {value!r}"


def _shared(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if not isinstance(value, str):
        return f"shared must be True, False or the name of a group, got {value!r}"
    try:
        share(value, "t")
    except ConfigurationError as error:
        return str(error)
    return None


def _choice(name: str, choices: object) -> Callable[[object], str | None]:
    allowed = get_args(choices)

    def checker(value: object) -> str | None:
        if isinstance(value, str) and value in allowed:
            return None
        return f"{name} must be {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}, got {value!r}"

    return checker


def _isolate(value: object) -> str | None:
    return None if isinstance(value, bool) else f"isolate must be True or False, got {value!r}"


def _whole(name: str, value: object, low: int, high: int) -> str | None:
    if type(value) is int and low <= value <= high:
        return None
    return f"{name} must be a whole number from {low:,} to {high:,}, got {value!r}"


def _workers(value: object) -> str | None:
    return None if value is None else _whole("workers", value, 1, 512)


def _concurrency(value: object) -> str | None:
    return None if value is None else _whole("concurrency", value, 1, 65_535)


def _timeout(value: object) -> str | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return None
    return f"timeout must be a number of seconds above 0, or None for no limit, got {value!r}"


def _retry(value: object) -> str | None:
    if value is None or isinstance(value, Retry) or (type(value) is int and 1 <= value <= 100):
        return None
    return f"retry must be a Retry(...), the number of attempts from 1 to 100, or None, got {value!r}"


def _destination(name: str) -> Callable[[object], str | None]:
    def checker(value: object) -> str | None:
        if value is None or (isinstance(value, str) and value):
            return None
        return f"{name} must be a template, such as '{name.partition('_')[0]}/<topic>', or None, got {value!r}"

    return checker


def _ordered_by(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return None
    if callable(value):
        if iscoroutinefunction(value):
            return f"ordered_by: {called(value)} is an 'async def', and a key has to be there at once: make it a 'def'"
        return None if takes(value, 1) else f"ordered_by: {called(value)} must take one argument, the message"
    return f"ordered_by must be 'topic', the name of a path parameter, a function of the message or None, got {value!r}"


def _name(value: object) -> str | None:
    return None if value is None or (isinstance(value, str) and value) else f"name must be a text, got {value!r}"


def _where(value: Any) -> str | None:
    if hasattr(value, "items"):
        wrong = [name for name in value if not isinstance(name, str)]
        return f"where: the name of a path parameter is a text, got {wrong[0]!r}" if wrong else None
    return f"where must map names of path parameters to a pattern or a set of values, got {value!r}"


def _sequence(name: str, example: str) -> Callable[[object], str | None]:
    def checker(value: object) -> str | None:
        if isinstance(value, list | tuple):
            return None
        return f"{name} must be a list, such as [{example}], got {_named(value, '[{}]')}"

    return checker


def _dependencies(value: object) -> str | None:
    if not isinstance(value, list | tuple):
        return f"dependencies must be a list, such as [Depends(check)], got {_named(value, '[Depends({})]')}"
    wrong = next((item for item in value if not isinstance(item, Depends)), None)
    return None if wrong is None else f"dependencies takes Depends(...) only, got {_named(wrong, 'Depends({})')}"


def _named(value: object, right: str) -> str:
    """A function by its name, and how to write it right."""
    return f"{called(value)}: write {right.format(called(value)[:-2])}" if callable(value) else repr(value)


def _options(value: object) -> str | None:
    if not isinstance(value, RouteOptions):
        return f"options must be a RouteOptions(...), got {value!r}"
    problem = _without_middleware(value.without_middleware) or _sequence("tags", "'slow'")(value.tags)
    description: object = value.description
    tags: Sequence[object] = value.tags
    if not (description is None or isinstance(description, str)):
        problem = f"description must be a text or None, got {description!r}"
    if problem is None and (wrong := [tag for tag in tags if not isinstance(tag, str)]):
        problem = f"tags must be texts, got {wrong[0]!r}"
    for name in ("no_local", "retain_as_published"):
        flag = getattr(value, name)
        if not (flag is None or isinstance(flag, bool)):
            problem = f"{name} must be True, False or None, got {flag!r}"
    return problem and f"RouteOptions: {problem}"


def _without_middleware(value: object) -> str | None:
    if not isinstance(value, list | tuple):
        return _sequence("without_middleware", "log_it")(value)
    for item in value:
        if not (isinstance(item, str) or callable(item) or hasattr(item, "handle")):
            return f"without_middleware takes names, classes and middleware, got {item!r}"
    return None


def _inbox(value: object) -> str | None:
    if value is None or isinstance(value, Inbox):
        return None
    return f"inbox must be an Inbox(key=...) or None, got {value!r}"


def _missing(value: object) -> str | None:
    if value is None or value in ("reject", "drop") or is_table(type(value)):
        return None
    if callable(value) and not isinstance(value, type):
        return None if takes(value, 1) else f"missing: {called(value)} must take one argument, the context"
    return f"missing must be 'reject', 'drop', a row, or a function of the context, got {value!r}"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "ack": _choice("ack", Literal["handled", "received"]),
    "concurrency": _concurrency,
    "dead_letter": _destination("dead_letter"),
    "dependencies": _dependencies,
    "inbox": _inbox,
    "isolate": _isolate,
    "middleware": _sequence("middleware", "log_it"),
    "missing": _missing,
    "name": _name,
    "options": _options,
    "ordered_by": _ordered_by,
    "overflow": _choice("overflow", Overflow),
    "publish_to": _destination("publish_to"),
    "qos": _qos,
    "retained": _choice("retained", Retained),
    "retry": _retry,
    "shared": _shared,
    "timeout": _timeout,
    "where": _where,
    "workers": _workers,
}
