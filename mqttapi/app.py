"""`App`: routes, middleware, resources and dependencies that belong together, and the ways to run them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mqttapi.config import Session
from mqttapi.errors import ConfigurationError
from mqttapi.injection import analyse
from mqttapi.injection.functions import called
from mqttapi.middleware import as_middleware
from mqttapi.publisher import Publisher
from mqttapi.resources import Resource
from mqttapi.routing import Declaration, Destination, Retry, Route, RouteOptions, Router
from mqttapi.routing.options import check, check_together, inherit
from mqttapi.routing.route import source_of
from mqttapi.runtime.exception_handlers import check_exception_handler
from mqttapi.runtime.stats import Stats
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from mqttapi.config import Settings
    from mqttapi.context import Context
    from mqttapi.publisher import PublishResult
    from mqttapi.routing import SharedOptions, TopicOptions
    from mqttapi.runtime.exception_handlers import ExceptionHandler
    from mqttapi.service import Service

__all__ = ["App", "State"]

F = TypeVar("F", bound="Callable[..., Any]")

_DEFAULTS: dict[str, Any] = {
    "qos": 1,
    "shared": False,
    "workers": None,
    "ordered_by": "topic",
    "concurrency": None,
    "timeout": 60.0,
    "retry": None,
    "dead_letter": None,
    "publish_to": None,
    "dependencies": (),
    "options": RouteOptions(),
}


class State:
    """A place for the app's own things, as attributes: `app.state.model = load_model()`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"app.state has no {name!r}: set it in the lifespan")

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...


class App:
    """An MQTT application.

        app = App("plant")

        @app.topic("sensors/<device_id>/data", qos=1, shared=True)
        async def ingest(device_id: str, reading: Reading) -> None: ...

    `mqttapi run main:app` serves it.

    Args:
        name: Part of the client id, and the name of the shared group. Default `mqttapi`.
        broker: URL of the broker, such as `mqtts://broker.example:8883`; `--broker`, `run(broker=…)` and the
            environment come before it.
        settings: In place of those from the environment and `.env`.
        lifespan: `async with lifespan(app):` is around the whole run; open here what the app needs.
        dispatch: Which routes get a message that several match: `all` of them, or the `first` registered.
        session: How long the broker keeps what comes while the app is away. None: as `MQTTAPI_SESSION_EXPIRY` says
            (24 h) when any route has QoS ≥ 1, else not at all.
        options: Defaults of all routes; see `SharedOptions`. `middleware` is outermost, `dependencies` run first.

    Raises:
        ConfigurationError: When an option is unknown or has a wrong value.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        broker: str | None = None,
        settings: Settings | None = None,
        lifespan: Callable[[App], AbstractAsyncContextManager[None]] | None = None,
        dispatch: Literal["all", "first"] = "all",
        session: Session | None = None,
        **options: Unpack[SharedOptions],
    ) -> None:
        given: dict[str, Any] = dict(options)
        check(given, f"App({name!r})")
        if dispatch not in {"all", "first"}:
            raise ConfigurationError(f"App({name!r}): dispatch must be 'all' or 'first', got {dispatch!r}")
        if session is not None and not isinstance(session, Session):
            raise ConfigurationError(f"App({name!r}): session must be a Session(...) or None, got {session!r}")
        self.name = name or "mqttapi"
        self.broker = broker
        self.settings = settings
        self.lifespan = lifespan
        self.dispatch = dispatch
        self.session = session
        self.state = State()
        self.dependency_overrides: dict[object, object] = {}
        """In tests: `app.dependency_overrides[session] = fake`; read when the app starts. Takes functions and the
        types of resources; an overridden resource is never opened."""
        self.publisher = Publisher()
        self.router = Router(middleware=given.pop("middleware", ()))
        self.resources: dict[type, Resource] = {}
        self.exception_handlers: dict[type[Exception], ExceptionHandler] = {}
        self._options = given
        self._routes: list[Route] = []
        self._service: Service | None = None
        self.router._includers.append(self._register)

    # -- routes -------------------------------------------------------------------------------------------------

    @property
    def routes(self) -> Sequence[Route]:
        """All routes, in the order of registration."""
        return tuple(self._routes)

    def topic(self, template: str, /, **options: Unpack[TopicOptions]) -> Callable[[F], F]:
        """Let the decorated function handle every message of a topic. It stays the function that it was.

        Args:
            template: Such as `sensors/<device_id>/data`; `{device_id}` means the same.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When the template, an option or the signature of the function is wrong.
        """
        return self.router.topic(template, **options)

    def include_router(self, router: Router, *, prefix: str = "", **options: Unpack[SharedOptions]) -> None:
        """Take over the routes of a router; see `Router.include_router`."""
        self.router.include_router(router, prefix=prefix, **options)

    def topic_for(self, name: str, /, **params: object) -> str:
        """A topic of the route called `name`, with its path parameters filled in.

        Raises:
            ConfigurationError: When there is no such route, a parameter is missing, or a value would add a level or a
                wildcard.
        """
        for route in self._routes:
            if route.name == name:
                return route.template.render(params)
        raise ConfigurationError(
            f"there is no route called {name!r}: known are {', '.join(repr(route.name) for route in self._routes)}"
        )

    def middleware(self, function: F) -> F:
        """Add the decorated `async def mw(context, call_next)` to the middleware of the app, inside of what is there."""
        self.add_middleware(function)
        return function

    def add_middleware(self, middleware: object) -> None:
        """Add `middleware` innermost: it runs inside of what was added before, around that of routers and routes."""
        self._refuse_when_started("middleware")
        self.router.add_middleware(as_middleware(middleware))

    def exception_handler(self, error: type[Exception]) -> Callable[[F], F]:
        """Let the decorated `async def handle(context, error)` say what becomes of a message that ended with `error`.

            @app.exception_handler(UnknownDevice)
            async def unknown(context: Context, error: UnknownDevice) -> None:
                await context.publish("devices/unknown", error.device_id)

        It runs once the attempts have run out, for `error` and its subclasses; the nearest class wins. When it returns,
        the message is done, and what it returns answers the Response Topic; when it raises, the message ends with that.
        `Drop`, `Reject` and `RetryLater` go past it.

        Raises:
            ConfigurationError: When `error` is no exception, already has a handler, or the function is no such function.
        """
        self._refuse_when_started("exception handlers")

        def decorate(function: F) -> F:
            check_exception_handler(error, function)
            if error in self.exception_handlers:
                other = self.exception_handlers[error]
                raise ConfigurationError(
                    f"exception_handler({error.__name__}): there is one already: {called(other)} ({source_of(other)})"
                )
            self.exception_handlers[error] = function
            return function

        return decorate

    def resource(self, function: F) -> F:
        """Let the decorated generator provide something that lives as long as the app runs.

            @app.resource
            async def http() -> AsyncIterator[httpx.AsyncClient]:
                async with httpx.AsyncClient() as client:
                    yield client

        It is opened after the lifespan began, and closed before it ends, after the last message. Handlers, dependencies
        and later resources get it by its type: `client: httpx.AsyncClient`.

        Raises:
            ConfigurationError: When the function does not say what it yields, or there is already one of that type.
        """
        self._refuse_when_started("resources")
        resource = Resource.of(function)
        if resource.kind in self.resources:
            raise ConfigurationError(
                f"{resource.label}: there is already a resource of the type {resource.kind.__name__}: "
                f"{self.resources[resource.kind].label}"
            )
        self.resources[resource.kind] = resource
        return function

    def _register(self, declaration: Declaration) -> None:
        """Make a route of what a decorator was told; everything that can be wrong with it is found here."""
        self._refuse_when_started("routes")
        options = inherit({**_DEFAULTS, **self._options}, declaration.options)
        label = declaration.label
        check_together(options, label)
        try:
            template = TopicTemplate(declaration.template, where=options.get("where"))
        except ConfigurationError as error:
            raise type(error)(f"{label}: {error}") from None
        order = options["ordered_by"]
        if isinstance(order, str) and order != "topic" and order not in template.names:
            raise ConfigurationError(
                f"{label}: ordered_by={order!r} is neither 'topic' nor a path parameter "
                f"({', '.join(template.names) or 'there is none'})"
            )
        self._refuse_twice(declaration, template, options)
        signature = analyse(
            declaration.handler,
            template=template,
            resources={**dict.fromkeys(self.resources), App: None, Publisher: None},
            dependencies=options["dependencies"],
            name=options.get("name"),
        )
        name = self._name(declaration, options.get("name"))
        sent = {
            option: text and Destination(text, source=template, route=name, label=f"{label}: {option}")
            for option in ("dead_letter", "publish_to")
            for text in [options[option]]
        }
        self._routes.append(
            Route(
                name=name,
                template=template,
                handler=declaration.handler,
                signature=signature,
                scopes=declaration.scopes,
                qos=options["qos"],
                shared=options["shared"],
                workers=options["workers"],
                middleware=tuple(as_middleware(mw) for mw in options.get("middleware", ())),
                dependencies=tuple(options["dependencies"]),
                ordered_by=order,
                concurrency=options["concurrency"],
                timeout=options["timeout"],
                retry=Retry.of(options["retry"]),
                **sent,
                options=options["options"],
            )
        )

    def _refuse_when_started(self, what: str) -> None:
        if self._service is not None:
            raise ConfigurationError(f"{what} are frozen once the app has started: register them before it runs")

    def _refuse_twice(self, declaration: Declaration, template: TopicTemplate, options: Mapping[str, Any]) -> None:
        for route in self._routes:
            if (
                route.handler is declaration.handler
                and route.template.filters == template.filters
                and route.shared == options["shared"]
            ):
                raise ConfigurationError(
                    f"{declaration.label}: the handler ({source_of(route.handler)}) already has a route on the filter "
                    f"{template.filters[0]!r}, called {route.name!r}: it would run twice for each message"
                )

    def _name(self, declaration: Declaration, given: str | None) -> str:
        taken = {route.name: route for route in self._routes}
        if given is not None:
            if given in taken:
                raise ConfigurationError(
                    f"{declaration.label} ({source_of(declaration.handler)}): the name {given!r} is taken by "
                    f"{taken[given].handler.__name__}() ({taken[given].source}); names of routes are unique"
                )
            return given
        handler = declaration.handler
        base = name = f"{handler.__module__}.{getattr(handler, '__qualname__', type(handler).__qualname__)}"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}:{count}"
        return name

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: Any = None, **options: Any) -> PublishResult:
        """Publish a message, and return when the broker has acknowledged it; see `Publisher.publish`."""
        return await self.publisher.publish(topic, payload, **options)

    def publish_nowait(self, topic: str, payload: Any = None, **options: Any) -> asyncio.Future[PublishResult]:
        """Publish a message without waiting for the broker; see `Publisher.publish_nowait`."""
        return self.publisher.publish_nowait(topic, payload, **options)

    async def reply(self, context: Context, payload: Any = None) -> None:
        """Answer the Response Topic of a message; see `Context.reply`."""
        message = context.message
        if message.response_topic is not None:
            await self.publish(
                message.response_topic, payload, qos=message.qos, correlation_data=message.correlation_data
            )

    # -- what it does -------------------------------------------------------------------------------------------

    @property
    def readiness(self) -> Sequence[str]:
        """Why the app is not ready to do its work, one line each; empty when all is well."""
        return ("the app is not running",) if self._service is None else self._service.readiness()

    @property
    def stats(self) -> Stats:
        """What has been counted since the app was started; all zero when it is not running."""
        return Stats() if self._service is None else self._service.stats()

    # -- running ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, *, broker: str | None = None) -> AsyncIterator[App]:
        """Run the app inside another program, such as the lifespan of a FastAPI app.

        The body begins when the app is connected and subscribed; while the broker cannot be reached it waits, with a
        warning. At the end every message already accepted is handled, within `grace` seconds.

        Args:
            broker: URL of the broker; comes before the environment, `.env` and `App(broker=…)`.

        Raises:
            ConfigurationError: When the settings are wrong.
            ConnectionRefused: When the broker refuses the app for good.
        """
        from mqttapi.service import Service

        async with Service(self).connected(broker):
            yield self

    async def serve(self, *, broker: str | None = None) -> None:
        """Run the app until it is told to stop: by SIGTERM or SIGINT in the main thread, or by being cancelled.

        Args and errors are those of `running`.
        """
        from mqttapi.service import serve

        await serve(self, broker)

    def run(self, *, broker: str | None = None) -> None:
        """Run the app as the whole program, on uvloop where it is installed.

        Args:
            broker: As in `running`.

        Raises:
            SystemExit: With 0 after SIGTERM or SIGINT, 1 when the broker refuses the app or a second signal cut the
                shutdown short.
        """
        from mqttapi.service import run

        run(self, broker)
