"""`App`: routes, middleware, resources and dependencies that belong together, and the ways to run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mqttapi.arguments import check_arguments
from mqttapi.errors import ConfigurationError
from mqttapi.hooks import as_hook
from mqttapi.publisher import Publisher
from mqttapi.reporting import readiness, stats
from mqttapi.resources import Resource
from mqttapi.routing import Router, RouterRegistry
from mqttapi.routing.table import RouteTable
from mqttapi.runtime.exception_handlers import add_exception_handler
from mqttapi.runtime.stats import Stats
from mqttapi.state import State
from mqttapi.workers.plan import Worker

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from typing import Unpack

    from mqttapi.config import Session, Settings
    from mqttapi.hooks import Hook
    from mqttapi.middleware import MiddlewareLike
    from mqttapi.publisher import PublishOptions, PublishResult
    from mqttapi.routing import Declaration, OnOptions, Route, SharedOptions, TopicOptions
    from mqttapi.runtime.exception_handlers import ExceptionHandler
    from mqttapi.service import Service
    from mqttapi.topics import Constraint
    from mqttapi.workers.plan import Placement

__all__ = ["App"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


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
        placement: Of routes that are not shared: all on the `first` process of the pool, or `spread` over it, each on
            one.
        overlap: How each route gets its own messages where filters overlap: by the subscription `ids` of MQTT 5, where
            the broker has them, or by `links`, connections on none of which two filters overlap. For brokers that send
            one copy with only one of the ids.
        ack_order: Messages are acknowledged in the order of their `arrival` [MQTT-4.6.0-2], or as they are `completed`:
            then a slow one does not hold up the others behind it, at brokers that allow few unacknowledged messages.
        former_filters: Filters, with their `$share/<group>/`, that a former version has left in the session, and that
            are to be unsubscribed. Seldom needed: they are remembered on disk.
        session: How long the broker keeps what comes while the app is away. None: as `MQTTAPI_SESSION_EXPIRY` says
            (24 h) when any route has QoS ≥ 1, else not at all.
        credentials: An async function that gives `(username, password)`, or an object with these attributes. It is
            asked at every connect, by both connections, in place of what the broker's URL says.
        discover: A package such as `app.routers`: the routers of its modules are included when the app starts; see
            `RouterRegistry`.
        redis: Whether the app starts, and is ready, though Redis does not answer. Handlers that use it fail then, and
            succeed again when it is back.
        system_topics: Whether the app may publish to topics that begin with `$`, which brokers keep for themselves.
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
        placement: Placement = "first",
        overlap: Literal["ids", "links"] = "ids",
        ack_order: Literal["arrival", "completed"] = "arrival",
        former_filters: Sequence[str] = (),
        session: Session | None = None,
        credentials: Callable[[], Awaitable[object]] | None = None,
        discover: str | None = None,
        redis: Literal["required", "optional"] = "required",
        system_topics: bool = False,
        **options: Unpack[SharedOptions],
    ) -> None:
        given: dict[str, Any] = dict(options)
        label = f"App({name!r})"
        check_arguments(
            label,
            given,
            name=name,
            broker=broker,
            dispatch=dispatch,
            placement=placement,
            overlap=overlap,
            ack_order=ack_order,
            former_filters=former_filters,
            discover=discover,
            redis=redis,
            session=session,
            lifespan=lifespan,
            credentials=credentials,
        )
        self.name = name or "mqttapi"
        self.broker = broker
        self.settings = settings
        self.lifespan = lifespan
        self.dispatch: Literal["all", "first"] = dispatch
        self.placement: Placement = placement
        self.overlap = overlap
        self.ack_order = ack_order
        self.former_filters = tuple(former_filters)
        self.session = session
        self.credentials = credentials
        self.redis = redis
        self.state = State()
        self.dependency_overrides: dict[object, object] = {}
        """In tests: `app.dependency_overrides[session] = fake`; read when the app starts. Takes functions and the
        types of resources; an overridden resource is never opened."""
        self.publisher = Publisher(system_topics=system_topics)
        self.router = Router()
        self.router._called(label, given.pop("middleware", ()))
        self.resources: dict[type, Resource] = {}
        self.exception_handlers: dict[type[Exception], ExceptionHandler] = {}
        self.table = RouteTable(given)
        self._registry = None if discover is None else RouterRegistry(discover)
        self._on_connect: list[Hook] = []
        self._on_disconnect: list[Hook] = []
        self._service: Service | None = None
        self.router._includers.append(self._register)

    # -- routes -------------------------------------------------------------------------------------------------

    @property
    def routes(self) -> Sequence[Route]:
        """All routes, in the order of registration; those of `discover` last."""
        self.load()
        return tuple(self.table.routes)

    def load(self) -> None:
        """Include the routers of the package `discover`, unless that was done before. It is done at the start, too.

        Raises:
            ConfigurationError: When one of its modules cannot be imported, or has no `router`.
        """
        if self._registry is not None:
            self._registry.include(self.include_router)

    def topic(self, template: str, /, **options: Unpack[TopicOptions]) -> Callable[[F], F]:
        """Let the decorated function handle every message of a topic. It stays the function that it was.

        Args:
            template: Such as `sensors/<device_id>/data`; `{device_id}` means the same.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When the template, an option or the signature of the function is wrong.
        """
        return self.router.topic(template, **options)

    @overload
    def on(self, template: str, handler: None = None, **options: Unpack[OnOptions]) -> Callable[[F], F]: ...
    @overload
    def on(
        self, template: str, handler: Callable[..., Any] | tuple[type, str], **options: Unpack[OnOptions]
    ) -> None: ...
    def on(self, template: str, handler: Any = None, **options: Unpack[OnOptions]) -> Any:
        """Let a handler have every message of a topic; without a handler it decorates one. See `Router.on`."""
        return self.router.on(template, handler, **options)

    def group(
        self, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]
    ) -> AbstractContextManager[Router]:
        """A router for the routes that are declared on it; see `Router.group`."""
        return self.router.group(prefix=prefix, name=name, **options)

    def controller(
        self, prefix: str, controller: type | object, *, name: str = "", **options: Unpack[SharedOptions]
    ) -> None:
        """Register the methods of a class that are marked with `@topic(…)`; see `Router.controller`."""
        self.router.controller(prefix, controller, name=name, **options)

    def republish(self, source: str, to: str, *, retain: bool = False, **options: Unpack[TopicOptions]) -> None:
        """Send every message of a topic on to another, as it came; see `Router.republish`."""
        self.router.republish(source, to, retain=retain, **options)

    @overload
    def fallback(self, function: F, /) -> F: ...
    @overload
    def fallback(self, /, *, filter: str | None = None, **options: Unpack[TopicOptions]) -> Callable[[F], F]: ...
    def fallback(self, function: Any = None, /, *, filter: str | None = None, **options: Unpack[TopicOptions]) -> Any:
        """Let the decorated function handle what arrives and matches no route; see `Router.fallback`."""
        decorate = self.router.fallback(filter=filter, **options)
        return decorate if function is None else decorate(function)

    def include_router(
        self, router: Router, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]
    ) -> None:
        """Take over the routes of a router; see `Router.include_router`."""
        self.router.include_router(router, prefix=prefix, name=name, **options)

    def pattern(self, name: str, constraint: Constraint) -> None:
        """Let a constraint hold for a path parameter wherever it is: `app.pattern("id", r"[0-9]+")`.

        Args:
            name: Of the parameter.
            constraint: As in `where`, which comes before it.

        Raises:
            ConfigurationError: When it is no constraint, or a route with that parameter is already there.
        """
        self.table.add_pattern(name, constraint)

    def topic_for(self, name: str, /, **params: object) -> str:
        """A topic of the route called `name`, with its path parameters filled in.

        Raises:
            ConfigurationError: When there is no such route, a parameter is missing, or a value would add a level or a
                wildcard.
        """
        self.load()
        return self.table.named(name).template.render(params, source=f"topic_for({name!r})")

    def middleware(self, function: F) -> F:
        """Add the decorated `async def mw(context, call_next)` to the middleware of the app, inside of what is there."""
        if isinstance(function, str):
            raise ConfigurationError(
                f"@app.middleware takes no text, got {function!r}: write @app.middleware above 'async def mw(context, "
                f"call_next)'. An alias is added by app.add_middleware({function!r})"
            )
        self.add_middleware(function)
        return function

    def add_middleware(self, middleware: MiddlewareLike | str) -> None:
        """Add `middleware` innermost: it runs inside of what was added before, around that of routers and routes."""
        self._refuse_when_started("middleware")
        self.router.add_middleware(middleware)

    def middleware_alias(self, name: str, middleware: object) -> None:
        """Let a text stand for a middleware.

            app.middleware_alias("throttle", RateLimit)
            router = Router(middleware=["throttle:60,1"])  # RateLimit(60, 1)

        Args:
            name: Without `:`, `,` and spaces.
            middleware: A middleware, or a class (or a plain function) that makes one: it is called for each place where
                the text stands, with the parameters behind the `:`, each made what its hint says.

        Raises:
            ConfigurationError: When the name is taken, or there can be no middleware of it.
        """
        self.table.aliases.add(name, middleware)

    def middleware_group(self, name: str, middleware: Sequence[MiddlewareLike | str]) -> None:
        """Let a text stand for several middlewares, outermost first; aliases among them are already known.

        Raises:
            ConfigurationError: When the name is taken, or one of them is no middleware.
        """
        self.table.aliases.add_group(name, middleware)

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
            add_exception_handler(self.exception_handlers, error, function)
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
        Resource.of(function).add_to(self.resources)
        return function

    def opened(self, kind: type[T]) -> T:
        """A resource while the app runs, by its type, for what gets no arguments: the lifespan, hooks, other tasks.

            async with app.opened(AsyncEngine).begin() as connection: ...

        Redis (`redis.asyncio.Redis`) and the database (`AsyncEngine`) are there from before the lifespan until after it.

        Raises:
            ConfigurationError: When the app does not run, has no such resource, or Redis' or the database's URL is wrong.
        """
        if self._service is None:
            raise ConfigurationError(f"opened({kind.__name__}): the app is not running")
        return self._service.opened_as(kind)

    def on_connect(self, function: F) -> F:
        """Call the decorated `async def f()` or `async def f(app)` each time the app is connected and subscribed.

        It runs beside the handlers: messages may come before it has ended. What it raises is logged.

        Raises:
            ConfigurationError: When the function is something else.
        """
        self._refuse_when_started("hooks")
        self._on_connect.append(as_hook(function, "on_connect"))
        return function

    def on_disconnect(self, function: F) -> F:
        """Call the decorated `async def f()` or `async def f(app)` when the connection is lost, or ended by a stop.

        What it raises is logged. See `on_connect`.
        """
        self._refuse_when_started("hooks")
        self._on_disconnect.append(as_hook(function, "on_disconnect"))
        return function

    def _register(self, declaration: Declaration) -> None:
        """Make a route of what a decorator was told; everything that can be wrong with it is found here."""
        self._refuse_when_started("routes")
        self.table.add(declaration, (*self.resources, App, Publisher))

    def _refuse_when_started(self, what: str) -> None:
        if self._service is not None:
            raise ConfigurationError(f"{what} are frozen once the app has started: register them before it runs")

    # -- publishing ---------------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, payload: Any = None, *, timeout: float | None = None, **options: Unpack[PublishOptions]
    ) -> PublishResult:
        """Publish a message, and return when the broker has acknowledged it; see `Publisher.publish`."""
        return await self.publisher.answer(topic, payload, timeout, options)

    def publish_nowait(
        self, topic: str, payload: Any = None, **options: Unpack[PublishOptions]
    ) -> asyncio.Future[PublishResult]:
        """Publish a message without waiting for the broker; see `Publisher.publish_nowait`."""
        return self.publisher.publish_nowait(topic, payload, **options)

    # -- what it does -------------------------------------------------------------------------------------------

    @property
    def readiness(self) -> Sequence[str]:
        """Why the app is not ready to do its work, one line each; empty when all is well."""
        return ("the app is not running",) if self._service is None else readiness(self._service)

    @property
    def stats(self) -> Stats:
        """What has been counted since the app was started; all zero when it is not running."""
        return Stats() if self._service is None else stats(self._service)

    @property
    def worker(self) -> Worker:
        """Which process of the pool this is: `app.worker.slot` is 0, 1, 2 and so on, and stays over restarts."""
        return Worker() if self._service is None else self._service.worker

    # -- running ------------------------------------------------------------------------------------------------

    def running(self, *, broker: str | None = None) -> AbstractAsyncContextManager[App]:
        """Run the app inside another program, such as the lifespan of a FastAPI app.

        The body begins when the app is connected and subscribed; while the broker cannot be reached it waits, with a
        warning. At the end every message already accepted is handled, within `grace` seconds.

        Args:
            broker: URL of the broker; comes before the environment, `.env` and `App(broker=…)`.

        Raises:
            ConfigurationError: When the settings are wrong.
            ConnectionRefused: When the broker refuses the app for good.
            ClientIdInUse: When another app on this machine has the client id.
        """
        from mqttapi.serving import running

        return running(self, broker)

    async def serve(self, *, broker: str | None = None) -> None:
        """Run the app until it is told to stop: by SIGTERM or SIGINT in the main thread, or by being cancelled.

        Args and errors are those of `running`.
        """
        from mqttapi.serving import serve

        await serve(self, broker)

    def run(self, *, broker: str | None = None) -> None:
        """Run the app as the whole program, on uvloop where it is installed.

        Args:
            broker: As in `running`.

        Raises:
            SystemExit: With 0 after SIGTERM or SIGINT, 1 when the broker refuses the app or a second signal cut the
                shutdown short, 3 when another app has the client id.
        """
        from mqttapi.serving import run

        run(self, broker)
