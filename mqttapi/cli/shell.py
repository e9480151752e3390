"""`mqttapi shell`: a Python prompt with an app open, of which it takes no message."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mqttapi.cli.options import AppDir, BrokerUrl, Debug, EnvFile, Factory, Target
from mqttapi.cli.problems import FAILED, Verbosity, show_error, tell
from mqttapi.cli.run import use_settings
from mqttapi.errors import ConfigurationError, NotConnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import CodeType

    from mqttapi.app import App
    from mqttapi.cli.prompt import Evaluator
    from mqttapi.config import Settings
    from mqttapi.publisher import Publish, PublishResult
    from mqttapi.service import Service
    from mqttapi.transport.publishing import PublishingConnection

__all__ = ["shell"]

_PATIENCE: Final = 5.0
"""Seconds to wait for the broker: at the start, and at the end for what is not confirmed."""


def shell(
    context: typer.Context,
    target: Target = None,
    command: Annotated[
        str | None, typer.Option("--command", "-c", metavar="CODE", help="Run this instead, and end.")
    ] = None,
    broker: BrokerUrl = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Open a Python prompt with an app's resources and publishing; no message of it is taken.

    `await` may stand anywhere. What comes by a pipe is run, and ends it.
    """
    verbosity = context.ensure_object(Verbosity)
    use_settings(env_file=env_file)

    from anyio.from_thread import start_blocking_portal

    from mqttapi.cli.prompt import Evaluator
    from mqttapi.cli.target import load

    code = _code(command, verbosity)
    app = load(target, app_dir=app_dir, factory=factory)
    _configure_logs(app)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_opened(app, broker)) as opened:
        evaluate = Evaluator(portal, opened.names, opened.service.opened)
        end = _typed(evaluate, opened.banner, verbosity) if code is None else _given(evaluate, code, verbosity)
    if end is not None:
        raise end


def _code(command: str | None, verbosity: Verbosity) -> CodeType | None:
    """What is to be run; None: what is typed."""
    from mqttapi.cli.prompt import compiled

    if command is None and sys.stdin.isatty():
        return None
    try:
        return compiled(sys.stdin.read() if command is None else command)
    except SyntaxError as error:
        show_error(error, verbosity)
        raise typer.Exit(FAILED) from None


def _configure_logs(app: App) -> None:
    """Only what matters, unless somebody wants more: it appears between the lines that are typed."""
    from mqttapi import logs
    from mqttapi.config import Settings

    settings = app.settings or Settings()
    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    logs.configure(level, settings.log_format)


def _given(evaluate: Evaluator, code: CodeType, verbosity: Verbosity) -> BaseException | None:
    """Run code; gives what the program has to end with."""
    error = evaluate(code)
    if error is None or isinstance(error, SystemExit):
        return error
    if not isinstance(error, KeyboardInterrupt):
        show_error(error, verbosity)
    return typer.Exit(FAILED)


def _typed(evaluate: Evaluator, banner: str, verbosity: Verbosity) -> BaseException | None:
    from mqttapi.cli.prompt import Prompt

    try:
        Prompt(evaluate, verbosity).interact(banner, "")
    except SystemExit as end:
        return end
    return None


# ----------------------------------------------------------------------------------------------------- what is at hand


@dataclasses.dataclass(frozen=True)
class _Opened:
    service: Service
    names: dict[str, Any]
    banner: str


@contextlib.asynccontextmanager
async def _opened(app: App, broker: str | None) -> AsyncIterator[_Opened]:
    from mqttapi.service import Service
    from mqttapi.transport.publishing import PublishingConnection

    service = Service(app)
    settings = service.settings
    publishing = PublishingConnection(
        _options(service, broker),
        max_messages=settings.max_outgoing,
        max_bytes=settings.max_outgoing_bytes,
        protocol_fallback="protocol" not in settings.model_fields_set,
    )
    async with publishing.running():
        await asyncio.wait((publishing.tried,), timeout=_PATIENCE)
        if publishing.state:
            tell(f"there is no publishing: {publishing.state}. It is tried again in the background")
        async with service.idle(_AtOnce(publishing)):
            names = _names(app, settings)
            yield _Opened(service, names, _banner(app, names, publishing))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await publishing.sender.flushed()


def _options(service: Service, broker: str | None) -> Any:
    """With a client id of its own, so that nobody loses theirs."""
    from mqttapi.config import client_id, default_instance, resolve_broker

    app, settings = service.app, service.settings
    options = service._options(resolve_broker(broker, None, settings, app.broker))
    instance = settings.instance or default_instance()
    own = client_id(app.name, instance, f"shell-{os.getpid()}", stem=settings.client_id)
    return dataclasses.replace(options, client_id=own)


class _AtOnce:
    """Publishing that does not wait for a broker that is away: at a prompt somebody would wait with it. See `Outgoing`."""

    def __init__(self, connection: PublishingConnection) -> None:
        self._connection = connection

    @property
    def has_properties(self) -> bool:
        return self._connection.sender.has_properties

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        if self._connection.state:
            raise NotConnected(f"publish to {publish.topic!r}: {self._connection.state}")
        return self._connection.sender.submit(publish, reserved=reserved)


class _Missing:
    """In place of what is not configured: it says so when it is used."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(self._why)

    def __call__(self, *_: object, **__: object) -> Any:
        raise ConfigurationError(self._why)

    def __repr__(self) -> str:
        return f"<not there: {self._why}>"


def _names(app: App, settings: Settings) -> dict[str, Any]:
    """What the prompt knows."""
    database = _or_missing(lambda: _database(app))
    return {
        "app": app,
        "db": database,
        "publish": app.publish,
        "redis": _or_missing(lambda: _redis(app)),
        "routes": app.routes,
        "session": database if isinstance(database, _Missing) else database.session,
        "settings": settings,
        "topic_for": app.topic_for,
    }


def _or_missing(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ConfigurationError as error:
        return _Missing(str(error))


def _redis(app: App) -> Any:
    from redis.asyncio import Redis

    return app.opened(Redis)


def _database(app: App) -> Any:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mqttapi.resources.database import Database

    return Database(app.opened(AsyncEngine))


def _banner(app: App, names: Mapping[str, Any], publishing: PublishingConnection) -> str:
    """What there is, and where it is."""
    redis, database = names["redis"], names["db"]
    there = {
        "app, settings, topic_for(name, ...)": f"the app {app.name!r}",
        "routes": f"{len(app.routes)} of them",
        "await publish(topic, payload, ...)": publishing.state or publishing.place,
        "await redis.get(key), ...": repr(redis) if isinstance(redis, _Missing) else _redis_place(redis),
        "await db.query(sql, ...), session()": repr(database) if isinstance(database, _Missing) else database.place,
    }
    lines = [f"  {name:37}{about}" for name, about in there.items()]
    return "\n".join((*lines, "Nothing is subscribed to: no message is taken. Ctrl-D ends this."))


def _redis_place(redis: Any) -> str:
    from mqttapi.resources.redis import redis_place

    return redis_place(redis)
