"""`mqttapi rescue`: handle what waits in a session that nobody will come back for, and end it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqttapi.cli.options import AppDir, BrokerUrl, Debug, EnvFile, Factory
from mqttapi.cli.problems import FAILED, tell
from mqttapi.cli.run import LogFormat, LogLevel, use_settings
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from mqttapi.app import App
    from mqttapi.service import Service

__all__ = ["rescue"]


def rescue(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODULE:APP] CLIENT_ID",
            help="Where the App is, as for run, and whose session is meant, such as plant-host-3.",
        ),
    ],
    broker: BrokerUrl = None,
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="After so long the session is kept, with what is left in it."),
    ] = 60.0,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    app_dir: AppDir = Path(),
    factory: Factory = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Handle what waits in the session of a process that will not come back, and end the session.

    Only for a process that is no more: one that runs on another machine would lose its session, and end.
    """
    use_settings(env_file=env_file, log_level=log_level, log_format=log_format)

    from mqttapi import logs
    from mqttapi.cli.target import load
    from mqttapi.config import Settings
    from mqttapi.serving import leave, run_to_its_end

    *targets, client_id = words
    if len(targets) > 1:
        raise ConfigurationError(f"give the app and one client id, got {' '.join(words)}")
    target = targets[0] if targets else None
    if not client_id or set(client_id) & set("/+#\0 "):
        raise ConfigurationError(
            "CLIENT_ID must be that of one of the app's connections, such as plant-host-3 (without '/', '+', '#' and "
            f"spaces), got {client_id!r}"
        )
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    app = load(target, app_dir=app_dir, factory=factory)
    _must_be_of(app, client_id, settings.client_id)
    leave(run_to_its_end(_rescue(app, target, client_id, broker, timeout)))


def _must_be_of(app: App, client_id: str, stem: str | None) -> None:
    """Messages of another app's session would match no route, and be gone."""
    from mqttapi.config import client_id_prefix

    prefix = client_id_prefix(app.name, stem=stem)
    if not client_id.startswith(prefix):
        raise ConfigurationError(
            f"{client_id!r} is no client id of app {app.name!r}, whose ids begin with {prefix!r}: give the app whose "
            "session it is, or set MQTT_CLIENT_ID to what it was for that process"
        )


async def _rescue(app: App, target: str | None, client_id: str, broker: str | None, timeout: float) -> int:
    import asyncio

    from mqttapi.service import Service, Stopped
    from mqttapi.serving import stopped_by_signals

    service = Service(app, rescues=client_id)
    ends = asyncio.get_running_loop().call_later(timeout, service.stop)
    try:
        with stopped_by_signals(service):
            async with service.connected(broker):
                if not await service.leave(timeout):
                    # Where the broker wants no fence, what waits in the session still comes.
                    await asyncio.wait((service.stopping, service.failure), return_when=asyncio.FIRST_COMPLETED)
    except Stopped:
        tell(f"nothing was done: the app had not started after {timeout:g} s, or was told to stop")
        return FAILED
    finally:
        ends.cancel()
    if service.failure.done():
        raise service.failure.result()
    return _conclude(service, target, client_id)


def _conclude(service: Service, target: str | None, client_id: str) -> int:
    """Say what has become of it, and give the exit code."""
    from mqttapi.reporting import stats

    consumer, counts = service.consumer, stats(service)
    assert consumer is not None  # noqa: S101  it is there from the start on
    for other in consumer.relatives:
        again = shlex.join(["mqttapi", "rescue", *([target] if target else []), other])
        tell(f"the process had another session, which is recorded on this machine: {again}")
    if not (consumer.links[0].found_session or consumer.kept):
        print(f"{client_id}: the broker has no session of it, so there is nothing to rescue")
        return 0
    routes = counts.routes.values()
    counted = {
        "handled": sum(each.done + each.dropped for each in routes),
        "rejected": sum(each.rejected for each in routes),
        "failed": sum(each.failed for each in routes),
        "for no route": counts.unmatched,
    }
    print(f"{client_id}: {', '.join(f'{count} {name}' for name, count in counted.items())}")
    if consumer.kept:
        tell(
            f"the session of {client_id} is kept, as something may wait in it ({consumer.kept[client_id]}): try again, "
            "with a longer --timeout"
        )
        return FAILED
    print(f"{client_id}: the session has ended")
    if counts.unmatched:
        tell(f"what matched no route of this app was acknowledged, and is gone: {counts.unmatched}")
        return FAILED
    return 0
