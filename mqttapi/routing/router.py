"""`Router`: declarations that belong together, to be included in an app or in another router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from mqttapi.errors import ConfigurationError
from mqttapi.middleware.chain import check_middleware
from mqttapi.routing.controllers import as_handler, marked_methods
from mqttapi.routing.options import check, check_constraints
from mqttapi.routing.republish import republishing
from mqttapi.routing.route import Declaration
from mqttapi.topics import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Unpack

    from mqttapi.middleware import MiddlewareLike
    from mqttapi.routing.options import OnOptions, SharedOptions, TopicOptions

__all__ = ["Group", "Router"]

F = TypeVar("F", bound="Callable[..., Any]")

_INCLUDE = "include_router"


class Router:
    """A group of routes with a common prefix, common options and middleware.

        router = Router(prefix="devices/<device_id>", qos=1)

        @router.topic("data")
        async def data(device_id: str, reading: Reading) -> None: ...

        router.on("status", StatusController.handle, name="status")

        app.include_router(router, prefix="plant")

    Routes that are added after the router was included arrive in the app as well, until the app starts.

    Args:
        prefix: Stands before every template, joined with exactly one `/`.
        name: Stands before every name that is given to one of its routes: `name="devices."`.
        options: Defaults of its routes; see `SharedOptions`. `middleware` runs around each of its routes.

    Raises:
        ConfigurationError: When an option is unknown or has a wrong value.
    """

    def __init__(self, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]) -> None:
        given: dict[str, Any] = dict(options)
        self._label = f"Router(prefix={prefix!r})"
        _check(self._label, prefix, name, given)
        self.prefix = prefix
        self.name = name
        self._middleware: list[MiddlewareLike | str] = []
        for middleware in given.pop("middleware", ()):
            self.add_middleware(middleware)
        self.options: Mapping[str, Any] = given
        self._declarations: list[Declaration] = []
        self._includers: list[Callable[[Declaration], None]] = []
        self._included: list[Router] = []
        self._open_groups = 0

    # -- routes -------------------------------------------------------------------------------------------------

    def topic(self, template: str, /, **options: Unpack[TopicOptions]) -> Callable[[F], F]:
        """Let the decorated function handle every message of a topic. It stays the function that it was.

        Args:
            template: Such as `sensors/<device_id>/data`; `{device_id}` means the same.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When the template, an option or the signature of the function is wrong. What depends on
                the prefix is checked when the router is included in an app.
        """
        _refuse_bare("topic", template)

        def decorate(handler: F) -> F:
            self.add(template, handler, **options)
            return handler

        return decorate

    @overload
    def on(self, template: str, handler: None = None, **options: Unpack[OnOptions]) -> Callable[[F], F]: ...
    @overload
    def on(
        self, template: str, handler: Callable[..., Any] | tuple[type, str], **options: Unpack[OnOptions]
    ) -> None: ...
    def on(self, template: str, handler: Any = None, **options: Unpack[OnOptions]) -> Any:
        """Let a handler have every message of a topic; without a handler it decorates one, as `topic` does.

            router.on("sensors/<device_id>/data", ingest, qos=1)
            router.on("sensors/<device_id>/state", DeviceController.state)
            router.on("sensors/<device_id>/alarm", (DeviceController, "alarm"))  # also for inherited methods

        Args:
            template: Such as `sensors/<device_id>/data`; `{device_id}` means the same.
            handler: A function, a method of an object, or the method of a class: the object is provided then.
            options: See `TopicOptions`; `worker_count` is the same as `workers`.

        Raises:
            ConfigurationError: As in `topic`.
        """
        _refuse_bare("on", template)
        given: dict[str, Any] = dict(options)
        if "worker_count" in given:
            if "workers" in given:
                raise ConfigurationError(f"on({template!r}): workers and worker_count are the same: give one of them")
            given["workers"] = given.pop("worker_count")
        if handler is None:
            return self.topic(template, **given)
        return self.add(template, handler, **given)

    def add(self, template: str, handler: Any, **options: Unpack[TopicOptions]) -> None:
        """What `topic` does, as a call; for handlers of all the kinds that `on` takes."""
        given: dict[str, Any] = dict(options)
        declaration = Declaration(template, as_handler(handler), given)
        check(given, declaration.label)
        self._refuse_beside_group(declaration.label)
        where = given.pop("where", {})
        asks = given.get("missing") is not None
        self._accept(Declaration(template, declaration.handler, given, where, asks_for_row=asks).within(self))

    @overload
    def fallback(self, function: F, /) -> F: ...
    @overload
    def fallback(self, /, *, filter: str | None = None, **options: Unpack[TopicOptions]) -> Callable[[F], F]: ...
    def fallback(self, function: Any = None, /, *, filter: str | None = None, **options: Unpack[TopicOptions]) -> Any:
        """Let the decorated function handle what arrives below the router's prefix and matches no route.

            @app.fallback
            async def unknown(message: Message) -> None: ...

        That is what a constraint or a part of a level refuses, and what a former version of the app had subscribed to.
        It subscribes to nothing, unless `filter` says so. Of several fallbacks the one with the nearest prefix runs.

        Args:
            function: The handler, where the decorator is written without arguments.
            filter: What to subscribe to, such as `#`; the router's prefix stands before it.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: As in `topic`, or when there is one already.
        """

        def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
            if isinstance(handler, str):
                raise ConfigurationError(
                    f"fallback({handler!r}): what it subscribes to is given by name: write fallback(filter={handler!r})"
                )
            given: dict[str, Any] = dict(options)
            declaration = Declaration("#", as_handler(handler), given, fallback=True, listens=filter)
            check(given, declaration.label)
            if given.get("where"):
                raise ConfigurationError(
                    f"{declaration.label}: a fallback has no path parameters, got where={given['where']!r}. Leave it out, "
                    "or write a route"
                )
            self._refuse_beside_group(declaration.label)
            self._accept(declaration.within(self))
            return handler

        return decorate if function is None else decorate(function)

    def controller(
        self, prefix: str, controller: type | object, *, name: str = "", **options: Unpack[SharedOptions]
    ) -> None:
        """Register the methods of a class that are marked with `@topic(…)`.

        Args:
            prefix: Stands before each of their templates, joined with exactly one `/`.
            controller: The class: its object is provided. Or an object that you made.
            name: Stands before each of their names.
            options: Defaults of the methods; see `SharedOptions`.

        Raises:
            ConfigurationError: When no method is marked, or one of them is wrong.
        """
        with self.group(prefix=prefix, name=name, **options) as group:
            for template, own, handler in marked_methods(controller):
                group.add(template, handler, **own)

    def republish(self, source: str, to: str, *, retain: bool = False, **options: Unpack[TopicOptions]) -> None:
        """Send every message of a topic on to another, as it came: payload, QoS and properties.

        The QoS is that with which it was delivered, at most the `qos` of the route: 1 unless given.

            router.republish("legacy/<id>/temp", "devices/<id>/temperature")

        Args:
            source: The template to listen to; the router's prefix stands before it.
            to: The whole topic to publish to: a template over the parameters, `<topic>` and `<route>`.
            retain: Whether the broker keeps what is published.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When `to` has a parameter that the route has not.
        """
        label = f"republish({source!r}, {to!r})"
        if "publish_to" in options:
            raise ConfigurationError(
                f"{label}: publish_to={options['publish_to']!r} is what its second argument says. Leave it out"
            )
        if not isinstance(retain, bool):
            raise ConfigurationError(f"{label}: retain must be True or False, got {retain!r}")
        given: dict[str, Any] = {**options, "publish_to": to}
        self.add(source, republishing(retain=retain), **given)

    # -- routers in routers -------------------------------------------------------------------------------------

    def group(self, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]) -> Group:
        """A router within this one, for the routes that are declared on it.

            with router.group(prefix="devices/<device_id>", middleware=[auth], name="devices.") as devices:
                devices.on("data", ingest, name="data")
                with devices.group(prefix="admin", qos=1) as admin:
                    admin.on("reboot", reboot)

        Only what is declared on the group belongs to it. Declaring something on the router itself within the block is
        refused: it would not get the group's prefix and middleware.

        Args:
            prefix: Stands before every template, joined with exactly one `/`.
            name: Stands before every name that is given to one of its routes.
            options: Defaults of its routes; see `SharedOptions`. `middleware` runs around each of its routes.

        Raises:
            ConfigurationError: When an option is unknown or has a wrong value.
        """
        return Group(self, self._child("group", prefix, name, dict(options)))

    def include_router(
        self, router: Router, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]
    ) -> None:
        """Take over the routes of another router, those it has and those it will get.

        Args:
            router: The router to include; it may be included more than once, under different prefixes.
            prefix: Stands before every template of `router`, joined with exactly one `/`.
            name: Stands before every name that was given to one of its routes.
            options: Defaults for its routes, weaker than its own. `middleware` runs around the router's own.

        Raises:
            ConfigurationError: When `router` includes this one, itself or through others.
        """
        if not isinstance(router, Router):
            raise ConfigurationError(f"include_router takes a Router, got {router!r}")
        if router is self:
            raise ConfigurationError("a router cannot include itself")
        way = router._way_to(self)
        if way:
            circle = " → ".join(map(repr, (self, *way)))
            raise ConfigurationError(
                f"routers cannot include each other in a circle: {circle}. Take one of the steps out"
            )
        self._child(_INCLUDE, prefix, name, dict(options))._include(router)

    def _child(self, kind: str, prefix: str, name: str, options: dict[str, Any]) -> Router:
        label = f"{kind}(prefix={prefix!r})"
        self._refuse_beside_group(label)
        _check(label, prefix, name, options)
        middlewares = options.pop("middleware", ())
        child = Router(prefix=prefix, name=name, **options)
        child._called(label, middlewares)
        self._include(child)
        return child

    def _called(self, label: str, middlewares: Iterable[Any]) -> None:
        """Take the name that errors use, those of its first middleware too."""
        self._label = label
        for middleware in middlewares:
            self.add_middleware(middleware)

    def _include(self, router: Router) -> None:
        def forward(declaration: Declaration) -> None:
            self._accept(declaration.within(self))

        for declaration in tuple(router._declarations):
            forward(declaration)
        router._includers.append(forward)
        self._included.append(router)

    def _way_to(self, other: Router) -> list[Router]:
        """The routers from this one to `other`, each included by the one before; empty when there is no way."""
        if self is other:
            return [self]
        for router in self._included:
            way = router._way_to(other)
            if way:
                return way if self._label.startswith(_INCLUDE) else [self, *way]
        return []

    def _joined(self, template: str) -> str:
        """A template of one of its routes, with the prefix."""
        return join(self.prefix, template)

    def _accept(self, declaration: Declaration) -> None:
        for includer in self._includers:
            includer(declaration)
        self._declarations.append(declaration)

    def _refuse_beside_group(self, label: str) -> None:
        if self._open_groups:
            raise ConfigurationError(
                f"{label}: the {self._label} has an open group, and this would be no part of it. Declare it on the "
                "group, 'with router.group(...) as group: group.on(...)', or behind the block"
            )

    # -- middleware ---------------------------------------------------------------------------------------------

    def middleware(self, function: F) -> F:
        """Add the decorated function to the middleware of this router, inside of what is there."""
        self.add_middleware(function)
        return function

    def add_middleware(self, middleware: MiddlewareLike | str) -> None:
        """Add `middleware` innermost: it runs inside of what was added before. A text names an alias of the app.

        Raises:
            ConfigurationError: When it is neither `async def mw(context, call_next)` nor has such a `handle`.
        """
        if not isinstance(middleware, str):
            check_middleware(middleware, self._label)
        self._middleware.append(middleware)

    @property
    def scope_middleware(self) -> Sequence[MiddlewareLike | str]:
        """The middleware of this router alone, outermost first."""
        return self._middleware

    @property
    def declarations(self) -> Sequence[Declaration]:
        """The routes declared so far, included routers' too."""
        return self._declarations

    def __repr__(self) -> str:
        return self._label


class Group:
    """What `Router.group` gives: a router for the routes that are declared within its `with` block."""

    def __init__(self, around: Router, router: Router) -> None:
        self._around = around
        self._router = router

    def __enter__(self) -> Router:
        self._around._open_groups += 1
        return self._router

    def __exit__(self, *_: object) -> None:
        self._around._open_groups -= 1

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._router!r} has no {name!r} yet: write 'with router.group(...) as group:'")


def _refuse_bare(decorator: str, template: object) -> None:
    """Where a decorator was written without brackets it is given the function."""
    if callable(template):
        name = getattr(template, "__name__", repr(template))
        raise ConfigurationError(f"@{decorator} needs a topic template: write @{decorator}('some/topic') above {name}")


def _check(label: str, prefix: object, name: object, options: Mapping[str, Any]) -> None:
    for argument, value in (("prefix", prefix), ("name", name)):
        if not isinstance(value, str):
            raise ConfigurationError(f"{label}: {argument} must be a text, got {value!r}")
    check(options, label, beside=("prefix", "name"))
    check_constraints(options.get("where", {}), label)
