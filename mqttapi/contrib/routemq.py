"""For applications that were written for RouteMQ: they run with changed imports.

    from mqttapi.contrib.routemq import Application, Controller, Middleware, Router

    app = Application()  # mqttapi run main:app

What is RouteMQ's here: QoS 0 unless a route says more, the first route that matches has the message, handlers are called
with the parameters, `payload` and `client`, whose `publish` does not wait, and the environment has RouteMQ's names.
Everything else is MQTTAPI's, and its own handlers, options and middleware may stand beside the old ones.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

from dotenv import dotenv_values, load_dotenv

from mqttapi.app import App
from mqttapi.config import Settings
from mqttapi.context import Context
from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, kind_of
from mqttapi.injection.methods import Method
from mqttapi.message import printable
from mqttapi.middleware import Middleware
from mqttapi.routing import Controller
from mqttapi.routing import Router as _Router
from mqttapi.routing.controllers import as_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from mqttapi.injection import Endpoint
    from mqttapi.publisher import PublishResult
    from mqttapi.routing import Route, SharedOptions, TopicOptions

__all__ = ["Application", "Client", "Controller", "Middleware", "Router", "settings"]

log = logging.getLogger("mqttapi.contrib.routemq")

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_RENAMED: Final = {
    "MQTT_TLS_CA_CERTS": "MQTT_TLS_CA_FILE",
    "MQTT_TLS_CERTFILE": "MQTT_TLS_CERT_FILE",
    "MQTT_TLS_KEYFILE": "MQTT_TLS_KEY_FILE",
}


class Application(App):
    """An `App` as RouteMQ has it: `dispatch="first"`, QoS 0, routers found in `app/routers`.

    Args:
        router: The routes; None: those of `router_directory`.
        env_file: Settings, where there is such a file; the environment comes before it. What it holds becomes part of the
            environment.
        router_directory: A package, whose modules have a `router` each.
        show_banner: There is none.
        log_to_console: `mqttapi run` and `run` log to the console.
        name: Part of the client id.
        options: Of `App`.

    Raises:
        ConfigurationError: When a setting or an option is wrong.
    """

    def __init__(
        self,
        router: _Router | None = None,
        env_file: str | Path = ".env",
        router_directory: str = "app.routers",
        show_banner: bool = True,
        log_to_console: bool = True,
        *,
        name: str = "mqtt-framework",
        **options: Any,
    ) -> None:
        given = {"qos": 0, "dispatch": "first", "settings": settings(env_file), **options}
        if (file := _existing(env_file)) is not None:
            load_dotenv(file)  # the application's own code reads it there, its routers while they are imported
        super().__init__(name, discover=router_directory if router is None else None, **given)
        if router is not None:
            self.include_router(router)

    def connect(self) -> None:
        """Does nothing: `run` connects."""


class Client:
    """What handlers and middleware know as `client`: `publish` does not wait for the broker.

    Args:
        app: The app that publishes.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    @property
    def _client_id(self) -> bytes:
        return self._app.name.encode()  # for log lines of middleware

    def publish(
        self, topic: str, payload: Any = None, qos: int = 0, retain: bool = False
    ) -> asyncio.Future[PublishResult]:
        """Publish, and do not wait; a refusal is logged. The future may be awaited, by the app's own loop.

        Args:
            topic: A topic name.
            payload: A `str`, bytes or None; anything else as JSON.
            qos: 0, 1 or 2.
            retain: Whether the broker keeps it.

        Raises:
            InvalidTopic: The topic is not valid.
            PublishQueueFull: Too many messages wait already.
        """
        future = self._app.publish_nowait(topic, payload, qos=qos, retain=retain)
        noted = partial(_log_refused, topic)
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # in a thread: paho may be called from any
            future.get_loop().call_soon_threadsafe(future.add_done_callback, noted)
        else:
            future.add_done_callback(noted)
        return future


def _log_refused(topic: str, future: asyncio.Future[PublishResult]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("could not publish to %s: %s", printable(topic), error)


class Router(_Router):
    """MQTTAPI's `Router`, with RouteMQ's arguments of `on` and `group`, and its convention for handlers.

    A handler with the parameters `payload` and `client`, or with `**kwargs`, is called with the path parameters,
    `payload` (JSON where it is, else bytes) and `client`. Any other follows MQTTAPI's rules.
    """

    def __init__(self, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]) -> None:
        given: dict[str, Any] = {"qos": 0, **options}
        given["middleware"] = [_WITH_CLIENT, *given.get("middleware", ())]
        super().__init__(prefix=prefix, name=name, **given)

    def on(  # type: ignore[override]  # RouteMQ's arguments may be given by position
        self,
        topic: str,
        handler: Any = None,
        qos: int | None = None,
        middleware: list[Any] | None = None,
        shared: bool | str = False,
        worker_count: int | None = None,
        **options: Any,
    ) -> Any:
        """Register a handler; without one it decorates.

        Args:
            topic: Such as `sensors/{device_id}/data`.
            handler: A function, a method of an object or of a class.
            qos: That of the group unless given, else 0.
            middleware: Runs inside that of the groups, the first outermost.
            shared: Whether the processes share the messages.
            worker_count: How many processes; only with `shared`.
            options: See `TopicOptions`.

        Raises:
            ConfigurationError: When the topic, an option or the signature of the handler is wrong.
        """
        given = {"qos": qos, "middleware": middleware, "workers": worker_count if shared else None}
        options |= {name: value for name, value in given.items() if value is not None}
        if shared:
            options["shared"] = shared
        return self.topic(topic, **options) if handler is None else self.add(topic, handler, **options)

    def group(  # type: ignore[override]  # as above
        self, prefix: str = "", middleware: list[Any] | None = None, **options: Any
    ) -> Group:
        """A router for the routes that are declared on it, with `with` or without.

        Args:
            prefix: Stands before every topic, joined with exactly one `/`.
            middleware: Runs around each of its routes.
            options: See `SharedOptions`.
        """
        group = Group(prefix=prefix, middleware=middleware or [], **options)
        self.include_router(group)
        return group

    def _joined(self, template: str) -> str:
        """As RouteMQ: a prefix that begins with `/` is one of topics that do."""
        joined = super()._joined(template)
        return f"/{joined}" if self.prefix.startswith("/") and self.prefix.strip("/") else joined

    def add(self, template: str, handler: Any, **options: Unpack[TopicOptions]) -> None:
        """See `mqttapi.Router.add`."""
        super().add(template, _by_convention(as_handler(handler)), **options)


class Group(Router):
    """What `Router.group` gives."""

    def __init__(self, *, prefix: str = "", name: str = "", **options: Unpack[SharedOptions]) -> None:
        _Router.__init__(self, prefix=prefix, name=name, **options)  # QoS and client are those of the router around it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _WithClient:
    """Puts RouteMQ's keys into the context, and sees to it that each handler can be called."""

    async def handle(self, context: Context, next_handler: Endpoint, /) -> object:
        context["client"] = Client(context.app)
        context["route_pattern"] = context.route.template.text
        context["correlation_id"] = uuid.uuid4().hex
        return await next_handler(context)

    def check_route(self, route: Route) -> None:
        """Called when the app starts, for each of the routes.

        Raises:
            ConfigurationError: When RouteMQ's way to call does not fit the handler.
        """
        function = route.handler.function if isinstance(route.handler, Method) else route.handler
        convention: _Convention | None = getattr(function, "convention", None)
        if convention is not None:
            convention.check(route)


_WITH_CLIENT: Final = _WithClient()


class _ConventionMethod(Method):
    """A method by RouteMQ's convention: the object, then what a function gets."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.cls, method.function.__name__)
        self.function = _called_as_routemq_does(method.function, "self")


def _by_convention(handler: Callable[..., Any]) -> Callable[..., Any]:
    function: Any = handler.function if isinstance(handler, Method) else handler
    if not callable(function) or not kind_of(function).is_async:
        return handler
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and not {"payload", "client"} <= parameters.keys():
        return handler
    return _ConventionMethod(handler) if isinstance(handler, Method) else _called_as_routemq_does(function)


@dataclass(frozen=True, slots=True)
class _Convention:
    """A handler that is called as RouteMQ does: by keywords, after the object where it is a method."""

    function: Callable[..., Any]
    itself: tuple[str, ...]

    def check(self, route: Route) -> None:
        names = (*route.template.names, "payload", "client")
        try:
            inspect.signature(self.function).bind(*self.itself, **dict.fromkeys(names))
        except TypeError as error:
            raise ConfigurationError(
                f"{called(self.function)} on {route.template.text!r} ({route.source}): it has 'payload' and 'client', or "
                f"'**', so it is called as RouteMQ does, with {', '.join(names)} by name: {error}"
            ) from None


def _called_as_routemq_does(function: Callable[..., Any], *itself: str) -> Callable[..., Any]:
    async def call(*arguments: Any) -> Any:
        *first, context = arguments  # looked up in it: a middleware may have passed on a dict of its own
        return await function(*first, **context["params"], payload=context["payload"], client=context["client"])

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(call, name, getattr(function, name, getattr(type(function), name, None)))
    call.__wrapped__ = function  # type: ignore[attr-defined]  # for `mqttapi routes`: where it is written
    call.convention = _Convention(function, itself)  # type: ignore[attr-defined]  # what `_WithClient` checks
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what it takes
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
            for name, hint in [*((name, inspect.Parameter.empty) for name in itself), ("context", Context)]
        ]
    )
    return call


def settings(env_file: str | Path | None = ".env") -> Settings:
    """The settings from RouteMQ's environment names; MQTTAPI's own names come before them.

    Args:
        env_file: Read too, where there is such a file, and `--env-file` names no other one.

    Raises:
        ConfigurationError: When one is wrong.
    """
    file = _existing(env_file)
    found = {**(dotenv_values(file) if file else {}), **os.environ}
    given = _translated({name: value for name, value in found.items() if value})
    return _Settings(**given, env_file=file)


class _Settings(Settings):
    also_known = frozenset({"MQTT_TLS_ENABLED", *_RENAMED})


def _existing(env_file: str | Path | None) -> Path | None:
    named = os.environ.get("MQTTAPI_ENV_FILE") or env_file
    return Path(named) if named and Path(named).is_file() else None


def _translated(variables: Mapping[str, str]) -> dict[str, Any]:
    """Keywords of `Settings` for RouteMQ's names, so far as MQTTAPI's own are not given."""
    given: dict[str, Any] = {} if "MQTT_GROUP_NAME" in variables else {"group_name": "mqtt_framework_group"}
    with_tls = _is_true(variables, "MQTT_TLS_ENABLED")
    for name, ours in _RENAMED.items():
        if with_tls and name in variables and ours not in variables:
            given[ours.removeprefix("MQTT_").lower()] = variables[name]
    if "MQTT_TLS_ENABLED" in variables and "MQTT_URL" not in variables:
        broker, port = variables.get("MQTT_BROKER", "localhost"), variables.get("MQTT_PORT", "1883")
        given["url"] = f"{'mqtts' if with_tls else 'mqtt'}://{broker}:{port}"
    if _is_true(variables, "ENABLE_REDIS") and "REDIS_URL" not in variables:
        given["redis_url"] = _redis_url(variables)
    scheme, found, rest = variables.get("DATABASE_URL", "").partition("://")
    if found and scheme in _DRIVERS:
        given["database_url"] = f"{_DRIVERS[scheme]}://{rest}"
    if "DATABASE_URL" not in variables and _wants_database(variables):
        given["database_url"] = _database_url(variables)
    return given


_DRIVERS: Final = dict.fromkeys(("postgres", "postgresql"), "postgresql+asyncpg") | {"mysql": "mysql+aiomysql"}
_DATABASE: Final = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_PASS")


def _wants_database(variables: Mapping[str, str]) -> bool:
    """RouteMQ wants one unless `ENABLE_MYSQL` says no; here something has to say where it is."""
    if "DB_CONNECTION" in variables:
        return True
    if "ENABLE_MYSQL" in variables:
        return _is_true(variables, "ENABLE_MYSQL")
    return any(name in variables for name in _DATABASE)


def _redis_url(variables: Mapping[str, str]) -> str:
    place = f"{variables.get('REDIS_HOST', 'localhost')}:{variables.get('REDIS_PORT', '6379')}"
    return f"redis://{_login(variables, 'REDIS_USERNAME', 'REDIS_PASSWORD')}{place}/{variables.get('REDIS_DB', '0')}"


def _database_url(variables: Mapping[str, str]) -> str:
    driver = variables.get("DB_CONNECTION", "mysql").strip().lower()
    if driver not in _DRIVERS:
        raise ConfigurationError(
            f"DB_CONNECTION must be mysql or postgres, got {driver!r}. For another database set DATABASE_URL"
        )
    port = variables.get("DB_PORT", "3306" if driver == "mysql" else "5432")
    login = _login(
        {"DB_USER": "root", **variables}, "DB_USER", "DB_PASSWORD" if "DB_PASSWORD" in variables else "DB_PASS"
    )
    name = variables.get("DB_NAME", "mqtt_framework")
    return f"{_DRIVERS[driver]}://{login}{variables.get('DB_HOST', 'localhost')}:{port}/{name}"


def _login(variables: Mapping[str, str], user: str, password: str) -> str:
    texts = quote(variables.get(user, ""), safe=""), quote(variables.get(password, ""), safe="")
    return f"{texts[0]}:{texts[1]}@" if any(texts) else ""


def _is_true(variables: Mapping[str, str], name: str) -> bool:
    return variables.get(name, "").lower() in _TRUE
