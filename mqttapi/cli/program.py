"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from mqttapi.cli.bench import bench
from mqttapi.cli.check import check
from mqttapi.cli.dead import dead
from mqttapi.cli.dev import dev
from mqttapi.cli.messages import pub, sub
from mqttapi.cli.options import Debug
from mqttapi.cli.processes import ps, reload, scale, stop
from mqttapi.cli.rescue import rescue
from mqttapi.cli.routes import routes
from mqttapi.cli.run import run
from mqttapi.cli.scaffold import make, new
from mqttapi.cli.shell import shell
from mqttapi.cli.top import top

__all__ = ["program"]

program = typer.Typer(
    name="mqttapi",
    help="Typed handlers for MQTT topics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        from mqttapi._version import __version__

        print(f"mqttapi {__version__}")
        raise typer.Exit


@program.callback()
def _everywhere(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.", show_default=False)
    ] = False,
) -> None:
    pass


for _command in (run, dev, ps, top, scale, reload, stop, rescue, routes, check, shell, pub, sub, new, make, bench):
    program.command()(_command)
program.add_typer(dead, name="dead")
