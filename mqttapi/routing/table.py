"""`RouteTable`: the routes of an app. What can be wrong with a route is found when it is added."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from mqttapi.errors import ConfigurationError
from mqttapi.injection import analyse
from mqttapi.injection.columns import column_converters, has_rows
from mqttapi.middleware import Aliases
from mqttapi.resources.backends import known_types
from mqttapi.routing.destination import Destination
from mqttapi.routing.options import RouteOptions, check_together, inherit, retained_of
from mqttapi.routing.retry import Retry
from mqttapi.routing.route import Route, source_of
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mqttapi.middleware import MiddlewareFunction
    from mqttapi.routing.route import Declaration

__all__ = ["DEFAULT_TIMEOUT", "RouteTable"]

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds."""
_DEFAULTS: dict[str, Any] = {
    "qos": 1,
    "shared": False,
    "workers": None,
    "ordered_by": "topic",
    "concurrency": None,
    "timeout": DEFAULT_TIMEOUT,
    "overflow": "block",
    "isolate": False,
    "ack": "handled",
    "retry": None,
    "dead_letter": None,
    "publish_to": None,
    "dependencies": (),
    "missing": None,
    "inbox": None,
    "options": RouteOptions(),
}


class RouteTable:
    """Routes in the order of registration, and the names that their middleware may have.

    Args:
        options: The defaults of all routes, over those of MQTTAPI.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.routes: list[Route] = []
        self.aliases = Aliases()
        self._options = {**_DEFAULTS, **options}
        self._patterns: dict[str, object] = {}

    def add_pattern(self, name: str, constraint: object) -> None:
        """Let `constraint` hold for the parameter `name` of every route to come.

        Raises:
            ConfigurationError: When a route has that parameter already, or it is no constraint.
        """
        for route in self.routes:
            if name in route.template.names:
                raise ConfigurationError(
                    f"pattern({name!r}): the route {route.name!r} ({route.source}) has this parameter already. "
                    "Set patterns before the routes are registered"
                )
        patterns = self._patterns
        if name in patterns and patterns[name] != constraint:
            raise ConfigurationError(
                f"pattern({name!r}): it has the pattern {patterns[name]!r} already, got {constraint!r}. Keep one of them; "
                "where= of a route or a group comes before it"
            )
        TopicTemplate(f"pattern/<{name}>", where={name: constraint})  # type: ignore[dict-item]  # what it has to find out
        patterns[name] = constraint
        self._options["where"] = {**self._options.get("where", {}), name: constraint}

    def add(self, declaration: Declaration, resources: Collection[type]) -> None:
        """Make a route of what a decorator was told.

        Args:
            declaration: With the options of its routers.
            resources: The types that the app has something of.

        Raises:
            ConfigurationError: With the handler, the template and what is wrong.
        """
        options = inherit(self._options, declaration.options)
        label = declaration.label
        check_together(options, label)
        try:
            template = _template(declaration, options)
            listens = _listens(declaration, template)
        except ConfigurationError as error:
            raise type(error)(f"{label}: {error}") from None
        order = options["ordered_by"]
        if isinstance(order, str) and order != "topic" and order not in template.names:
            raise ConfigurationError(
                f"{label}: ordered_by={order!r} is neither 'topic' nor a path parameter "
                f"({', '.join(template.names) or 'there is none'})"
            )
        self._refuse_twice(declaration, template, options)
        inbox, dependencies = options["inbox"], options["dependencies"]
        if inbox is not None:  # first, so that its transaction is committed last
            dependencies = (inbox.claim(), *dependencies)
        signature = analyse(
            declaration.handler,
            template=template,
            resources=(*resources, *known_types()),
            dependencies=dependencies,
            name=options.get("name"),
        )
        if declaration.asks_for_row and not has_rows(template.names, declaration.handler, options["dependencies"]):
            raise ConfigurationError(
                f"{label}: missing={options['missing']!r}, and no path parameter is a table whose row could be missing. "
                "Leave it out, or give a parameter a SQLModel table as its hint"
            )
        name = self._name(declaration, options.get("name"))
        sent = {
            option: text and Destination(text, source=template, route=name, label=f"{label}: {option}")
            for option in ("dead_letter", "publish_to")
            for text in [options[option]]
        }
        for scope in declaration.scopes:
            self.aliases.layers_of_scope(scope, scope.scope_middleware, label)
        self.aliases.check(options["options"].without_middleware, f"{label}: without_middleware")
        self.routes.append(
            Route(
                name=name,
                template=template,
                handler=declaration.handler,
                signature=signature,
                scopes=declaration.scopes,
                qos=options["qos"],
                shared=options["shared"],
                workers=options["workers"],
                middleware=tuple(self.aliases.layers(options.get("middleware", ()), label)),
                dependencies=tuple(options["dependencies"]),
                ordered_by=order,
                concurrency=options["concurrency"],
                timeout=options["timeout"],
                retry=Retry.of(options["retry"]),
                **sent,
                missing=options["missing"],
                inbox=inbox,
                retained=retained_of(options),
                overflow=options["overflow"],
                isolate=options["isolate"],
                ack=options["ack"],
                fallback=declaration.fallback,
                listens=listens,
                options=options["options"],
            )
        )

    def unused_constraints(self) -> list[str]:
        """A warning for each constraint of the app, a router or a group that holds for no route at all."""
        holders: dict[object, tuple[str, Mapping[str, object], set[str]]] = {
            self: ("the app", self._options.get("where", {}), set())
        }
        for route in self.routes:
            for scope in (self, *route.scopes):
                where = getattr(scope, "options", {}).get("where", {})
                holders.setdefault(scope, (repr(scope), where, set()))[2].update(route.template.names)
        return [
            f"where={{{name!r}: ...}} of {label} holds for none of its routes{_nearest(name, names)}"
            for label, where, names in holders.values()
            for name in where
            if name not in names
        ]

    def named(self, name: str) -> Route:
        """The route of that name.

        Raises:
            ConfigurationError: When there is none.
        """
        for route in self.routes:
            if route.name == name:
                return route
        known = ", ".join(repr(route.name) for route in self.routes)
        raise ConfigurationError(
            f"there is no route called {name!r}: " + (f"known are {known}" if known else "the app has no routes yet")
        )

    def middleware_of(self, route: Route) -> tuple[list[MiddlewareFunction], list[MiddlewareFunction]]:
        """What runs around a route, of app, routers and groups, and the route's own; outermost first.

        Raises:
            ConfigurationError: When a middleware, by its `check_route(route)`, is not for this route.
        """
        without = route.options.without_middleware
        around = [
            layer.function
            for scope in route.scopes
            for layer in self.aliases.layers_of_scope(scope, scope.scope_middleware, repr(scope))
            if not layer.is_one_of(without)
        ]
        inner = [layer.function for layer in route.middleware]
        for function in (*around, *inner):
            check = getattr(getattr(function, "__self__", None), "check_route", None)
            if check is not None:
                check(route)
        return around, inner

    def _refuse_twice(self, declaration: Declaration, template: TopicTemplate, options: Mapping[str, Any]) -> None:
        for route in self.routes:
            if declaration.fallback and route.fallback and route.template.filters == template.filters:
                raise ConfigurationError(
                    f"{declaration.label}: there is already a fallback for {template.filters[0]!r}, called "
                    f"{route.name!r} ({route.source}): only one could have a message"
                )
            if (
                route.fallback == declaration.fallback
                and route.handler == declaration.handler
                and route.template.filters == template.filters
                and route.shared == options["shared"]
            ):
                raise ConfigurationError(
                    f"{declaration.label}: the handler ({source_of(route.handler)}) already has a route on the filter "
                    f"{template.filters[0]!r}, called {route.name!r}: it would run twice for each message. "
                    "Take one of them out; a router that is included twice needs another prefix each time"
                )

    def _name(self, declaration: Declaration, given: str | None) -> str:
        taken = {route.name: route for route in self.routes}
        if given is not None:
            if given in taken:
                raise ConfigurationError(
                    f"{declaration.label} ({source_of(declaration.handler)}): the name {given!r} is taken by "
                    f"{taken[given].handler.__name__}() ({taken[given].source}); names of routes are unique. Give one "
                    "another name, or its group or include_router(...) a name=, which stands before those of its routes"
                )
            return given
        handler = declaration.handler
        base = name = f"{handler.__module__}.{getattr(handler, '__qualname__', type(handler).__qualname__)}"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}:{count}"
        return name


def _nearest(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else f", whose parameters are: {', '.join(sorted(names)) or 'none'}"


def _template(declaration: Declaration, options: Mapping[str, Any]) -> TopicTemplate:
    """The template, with the constraints of the route, and those inherited ones whose parameters it has."""
    text, where = declaration.template, dict(declaration.where)
    converters = column_converters(text, declaration.handler, options["dependencies"])
    if inherited := options.get("where"):
        names = TopicTemplate(text, converters=converters).names
        where = {**{name: inherited[name] for name in names if name in inherited}, **where}
    return TopicTemplate(text, where=where, converters=converters)


def _listens(declaration: Declaration, template: TopicTemplate) -> tuple[str, ...]:
    if not declaration.fallback:
        return template.filters
    return () if declaration.listens is None else TopicTemplate(declaration.listens).filters
