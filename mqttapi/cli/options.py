"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from mqttapi.cli.problems import Verbosity
from mqttapi.errors import ConfigurationError
from mqttapi.workers.plan import MOST_WORKERS

__all__ = ["AppDir", "BrokerUrl", "Debug", "EnvFile", "Factory", "HealthAddress", "Qos", "Target", "WorkerCap"]

_QOS: Final[dict[str, Literal[0, 1, 2]]] = {"0": 0, "1": 1, "2": 2}


def _debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.ensure_object(Verbosity).debug = True
    return value


def _qos(value: object) -> Literal[0, 1, 2]:  # the default comes as it is
    if (qos := _QOS.get(str(value))) is None:
        raise ConfigurationError(f"--qos must be 0, 1 or 2, got {value}")
    return qos


def _app_dir(value: Path) -> Path:
    if not value.is_dir():
        raise ConfigurationError(f"--app-dir: {str(value)!r} is not a directory")
    return value


def _env_file(value: Path | None) -> Path | None:
    if value is not None and not value.is_file():
        raise ConfigurationError(f"--env-file: there is no file {str(value)!r}")
    return value


def _workers(value: int | None) -> int | None:
    if value is not None and not 1 <= value <= MOST_WORKERS:
        raise ConfigurationError(f"--workers must be 1-{MOST_WORKERS}, got {value}")
    return value


def _health(value: str | None) -> str | None:
    if value is not None:
        from mqttapi.workers.health import health_address

        health_address(value)
    return value


AppDir = Annotated[
    Path, typer.Option(callback=_app_dir, help="Where to import from.", show_default="the current directory")
]
BrokerUrl = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="mqtt:// mqtts:// ws:// wss:// unix://; else MQTT_URL or MQTT_BROKER, else localhost.",
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show whole tracebacks.", show_default=False)
]
EnvFile = Annotated[
    Path | None,
    typer.Option(callback=_env_file, help="A file of settings, instead of .env; the environment comes before it."),
]
Factory = Annotated[bool, typer.Option("--factory", help="The target is a function that makes the App.")]
HealthAddress = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="PORT|HOST:PORT",
        callback=_health,
        help="Answer /live and /ready over HTTP.",
        show_default="MQTTAPI_HEALTH, else no port",
    ),
]
Qos = Annotated[Literal[0, 1, 2], typer.Option(parser=_qos, metavar="0|1|2", help="The quality of service.")]
WorkerCap = Annotated[
    int | None,
    typer.Option(
        "--workers",
        callback=_workers,
        metavar="N",
        help="The most processes for any route.",
        show_default="what the routes say",
    ),
]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODULE:APP]",
        help="Where the App is.",
        show_default="main:app, else app:app, else the routers in app/routers",
    ),
]
