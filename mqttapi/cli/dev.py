"""`mqttapi dev`: an app with a broker of its own, started again when a file changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mqttapi.cli.options import AppDir, BrokerUrl, Debug, EnvFile, Factory, Target
from mqttapi.cli.problems import tell
from mqttapi.cli.run import LogFormat, LogLevel, use_settings

if TYPE_CHECKING:
    from mqttapi.config import Broker

__all__ = ["dev"]


def dev(
    target: Target = None,
    broker: BrokerUrl = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Serve an app for development: broker included, one worker, started again when a file changes, nothing kept.

    The broker is that of --broker, MQTT_URL or MQTT_BROKER, where one is given; else mosquitto, or iotcore where that
    is not installed, runs for as long as this command does.
    """
    use_settings(env_file=env_file, log_level=log_level, log_format=log_format)

    from mqttapi.cli.embedded import EmbeddedBroker
    from mqttapi.cli.reload import HOW_TO_INSTALL, can_watch, supervise
    from mqttapi.config import Broker, Settings, resolve_broker

    arguments = ["run", *([target] if target else []), "--app-dir", str(app_dir), "--transient", "--workers", "1"]
    arguments += ["--factory"] * factory + ["--debug"] * debug
    if not can_watch():
        tell(HOW_TO_INSTALL)
    watch = app_dir if can_watch() else None
    settings = Settings()
    if broker or settings.url or settings.broker:
        _introduce(resolve_broker(broker, None, settings, None), "yours")
        # Not as an argument: those of a process are there for everybody to read, and it may hold a password.
        raise typer.Exit(supervise(arguments, watch=watch, environment={"MQTT_URL": broker} if broker else None))
    with EmbeddedBroker() as embedded:
        _introduce(Broker.parse(embedded.url), f"{embedded.kind}, ends with this command")
        if embedded.limits:
            tell(embedded.limits)

        def keep_alive() -> None:
            if embedded.revive():
                tell(f"{embedded.kind} had died and was started again; what it held is lost")

        code = supervise(arguments, watch=watch, environment={"MQTT_URL": embedded.url}, every_tick=keep_alive)
    raise typer.Exit(code)


def _introduce(broker: Broker, whose: str) -> None:
    # A password is not shown: there, pub and sub have to find the broker where we did.
    option = "" if broker.password else f" --broker {broker.url}"
    print(
        f"broker {broker.url} ({whose})",
        f"  mqttapi pub{option} some/topic 'hello'",
        f"  mqttapi sub{option} '#'",
        sep="\n",
        flush=True,
    )
