"""`mqttapi run`: serve an app."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mqttapi.cli.options import AppDir, BrokerUrl, Debug, EnvFile, Factory, HealthAddress, Target, WorkerCap
from mqttapi.cli.problems import tell
from mqttapi.errors import ConfigurationError
from mqttapi.workers.control import ControlServer
from mqttapi.workers.process import Launch
from mqttapi.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from mqttapi.config import Settings

__all__ = ["LogFormat", "LogLevel", "run", "use_settings"]

LogFormat = Annotated[
    Literal["plain", "json"] | None, typer.Option(case_sensitive=False, help="Text, or one JSON object per line.")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"] | None,
    typer.Option(case_sensitive=False, help="The least level that is logged.", show_default="info"),
]


def run(
    target: Target = None,
    broker: BrokerUrl = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a file changes; the session ends with each connection.")
    ] = False,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    instance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Tells the replicas of an app apart.", show_default="the host's name"),
    ] = None,
    workers: WorkerCap = None,
    health: HealthAddress = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Start a worker again for ever, whatever it dies of.")
    ] = False,
    transient: Annotated[bool, typer.Option("--transient", hidden=True)] = False,
    debug: Debug = False,
) -> None:
    """Serve an app until Ctrl-C or SIGTERM, which drain it."""
    if reload:
        raise typer.Exit(_reloading(app_dir))
    use_settings(env_file=env_file, log_level=log_level, log_format=log_format, instance=instance, health=health)

    from mqttapi import logs
    from mqttapi.cli.target import split
    from mqttapi.config import Settings

    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    if sys.platform == "win32":  # it has no sockets between processes as workers need them
        _serve_alone(target, app_dir=app_dir, factory=factory, broker=broker, transient=transient)
    if target is not None:
        split(target)  # what is wrong with the name needs no process to be found
    launch = Launch(
        target=target,
        app_dir=str(app_dir),
        factory=factory,
        broker=broker,
        transient=transient,
        debug=debug,
        cap=workers,
    )
    raise typer.Exit(asyncio.run(_supervise(launch, settings, keep_going=keep_going)))


async def _supervise(launch: Launch, settings: Settings, *, keep_going: bool) -> int:
    from mqttapi.config import runtime_dir
    from mqttapi.workers.health import Health

    def told(state: dict[str, Any]) -> None:
        if health is not None:
            health.update(state)

    def loaded(supervisor: Supervisor) -> None:
        control.rename(f"{supervisor.about['app']}-{supervisor.about['instance']}")

    supervisor = Supervisor(launch, keep_going=keep_going, on_state=told, on_loaded=loaded)
    health = Health(settings.health, supervisor.state(), settings.health_host) if settings.health else None
    control = ControlServer(supervisor, runtime_dir(settings.runtime_dir), launch.label)
    with health or contextlib.nullcontext():
        async with control:
            return await supervisor.run()


def _serve_alone(target: str | None, *, app_dir: Path, factory: bool, broker: str | None, transient: bool) -> None:
    """Serve every route in this process."""
    from mqttapi.cli.target import load
    from mqttapi.config import Session
    from mqttapi.serving import run

    app = load(target, app_dir=app_dir, factory=factory)
    if transient:
        app.session = Session.transient()
    run(app, broker, source="--broker")


def use_settings(
    *,
    env_file: Path | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
    instance: str | None = None,
    health: str | None = None,
) -> None:
    """Make what was given the settings of this process.

    Through the environment, so that whoever asks for settings, the user's code and child processes included, gets the
    same ones.
    """
    host, port = None, None
    if health is not None:
        from mqttapi.workers.health import health_address

        host, port = health_address(health)
    given = {
        "MQTTAPI_HEALTH": port,
        "MQTTAPI_HEALTH_HOST": host,
        "MQTTAPI_ENV_FILE": env_file and env_file.resolve(),
        "MQTTAPI_LOG_LEVEL": log_level,
        "MQTTAPI_LOG_FORMAT": log_format,
        "MQTT_INSTANCE": instance,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


def _reloading(app_dir: Path) -> int:
    from mqttapi.cli.reload import HOW_TO_INSTALL, can_watch, supervise

    if not can_watch():
        raise ConfigurationError(HOW_TO_INSTALL)
    tell("--reload is for development: what comes while the app restarts is lost to it")
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    return supervise([*arguments, "--transient"], watch=app_dir)
