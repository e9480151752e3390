"""`mqttapi ps`, `scale`, `reload` and `stop`: the apps that run here, by way of their control sockets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mqttapi.cli.options import Debug, EnvFile
from mqttapi.cli.problems import FAILED, tell
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from mqttapi.workers.control import Supervisor

__all__ = ["AppName", "InstanceName", "Pid", "chosen", "ps", "reload", "runtime_directory", "scale", "stop"]

_TEXT: Final = frozenset({"client id", "state"})

AppName = Annotated[str | None, typer.Option("--app", metavar="NAME", help="That of App(NAME).")]
InstanceName = Annotated[str | None, typer.Option("--instance", metavar="NAME", help="That of MQTT_INSTANCE.")]
Pid = Annotated[int | None, typer.Option("--pid", metavar="N", help="That of mqttapi run.")]


def ps(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
    app: AppName = None,
    instance: InstanceName = None,
    pid: Pid = None,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Show the apps that run here, and their workers; exit code 1 when there are none."""
    from mqttapi.workers.control import supervisors

    directory = runtime_directory(env_file)
    found = [each for each in supervisors(directory) if _fits(each, app, instance, pid)]
    for each in found:
        if not each.state:
            tell(_silent(each))
    states = [each.state for each in found if each.state]
    if as_json:
        import json

        print(json.dumps(states, indent=2))
    else:
        for number, state in enumerate(states):
            print(end="\n" if number else "")
            _show(state)
    if not states:
        tell(f"no app runs here: there is none in {directory}")
        raise typer.Exit(FAILED)


def scale(
    size: Annotated[int, typer.Argument(metavar="N", help="Worker processes, 1 to 512.")],
    app: AppName = None,
    instance: InstanceName = None,
    pid: Pid = None,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Let an app that runs have so many workers, and wait until it has. A new start has as many as the routes say."""
    from mqttapi.workers.control import ask

    supervisor = chosen(app, instance, pid, env_file)
    with _not_taken_back():
        print(ask(supervisor.path, "scale", size=size))


def reload(
    app: AppName = None,
    instance: InstanceName = None,
    pid: Pid = None,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Replace the workers of an app that runs, one after the other, by new ones with the code of now, and wait.

    Code that cannot be loaded changes nothing.
    """
    from mqttapi.workers.control import ask

    supervisor = chosen(app, instance, pid, env_file)
    with _not_taken_back():
        print(ask(supervisor.path, "reload"))


def stop(
    app: AppName = None,
    instance: InstanceName = None,
    pid: Pid = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until its process has ended.")] = True,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Stop an app that runs, as SIGTERM does: what was accepted is finished first."""
    from mqttapi.workers import control
    from mqttapi.workers.description import name_of

    supervisor = chosen(app, instance, pid, env_file)
    with _not_taken_back():
        control.stop(supervisor, wait=wait)
    print(f"{name_of(supervisor.state)} {'has ended' if wait else 'drains'}")


@contextlib.contextmanager
def _not_taken_back() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        tell("not waited for: it goes on, and mqttapi ps shows how far it is")
        raise typer.Exit(FAILED) from None


# ----------------------------------------------------------------------------------------------------------- which one


def runtime_directory(env_file: Path | None) -> Path:
    """Where the control sockets are."""
    from mqttapi.config import Settings, runtime_dir

    return runtime_dir(Settings.load(env_file).runtime_dir)


def chosen(app: str | None, instance: str | None, pid: int | None, env_file: Path | None) -> Supervisor:
    """The one supervisor that is meant.

    Raises:
        ConfigurationError: When several are meant, or none of those that run.
        ControlError: When none runs, or the one that is meant does not answer.
    """
    from mqttapi.workers.control import ControlError, supervisors
    from mqttapi.workers.description import name_of

    directory = runtime_directory(env_file)
    all_of_them = supervisors(directory)
    if not all_of_them:
        raise ControlError(f"no app runs here: there is none in {directory}")
    meant = [each for each in all_of_them if _fits(each, app, instance, pid)]
    if len(meant) == 1:
        if not meant[0].state:
            raise ControlError(_silent(meant[0]))
        return meant[0]
    running = ", ".join(name_of(each.state) if each.state else f"(pid {each.pid})" for each in meant or all_of_them)
    if meant:
        raise ConfigurationError(f"several apps run here, say which with --app, --instance or --pid: {running}")
    raise ConfigurationError(f"no app that runs here is meant by --app, --instance and --pid: there is {running}")


def _fits(supervisor: Supervisor, app: str | None, instance: str | None, pid: int | None) -> bool:
    state = supervisor.state
    asked = ((app, state.get("app")), (instance, state.get("instance")), (pid, supervisor.pid))
    return all(wanted is None or wanted == found for wanted, found in asked)


def _silent(supervisor: Supervisor) -> str:
    return f"process {supervisor.pid} does not answer on {str(supervisor.path)!r}: it stands still, or is of another version"


def _show(state: Mapping[str, Any]) -> None:
    from mqttapi.cli.tables import show, table
    from mqttapi.workers.description import COLUMNS, cells, headline, problems, workers

    print(headline(state))
    show(table(COLUMNS, [cells(worker) for worker in workers(state)], text=_TEXT))
    for problem in problems(state):
        print(problem)
