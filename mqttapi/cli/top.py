"""`mqttapi top`: an app that runs, live."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mqttapi.cli.options import Debug, EnvFile
from mqttapi.cli.processes import AppName, InstanceName, Pid, chosen, runtime_directory
from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from mqttapi.cli.figures import Sample
    from mqttapi.workers.control import Supervisor

__all__ = ["top"]

_WINDOW: Final = 5  # looks over which rates are taken, so that they do not jump about
_TEXT: Final = frozenset({"slot", "state", "route"})
_LAST_KEYS: Final = frozenset(b"qQ")


def top(
    app: AppName = None,
    instance: InstanceName = None,
    pid: Pid = None,
    interval: Annotated[float, typer.Option(min=0.1, max=60, metavar="SECONDS", help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print what there is to see, and end.")] = False,
    env_file: EnvFile = None,
    debug: Debug = False,
) -> None:
    """Watch an app that runs: rates, lag, restarts and failures, by worker and by route. q or Ctrl-C ends it."""
    if not (once or sys.stdout.isatty()):
        raise ConfigurationError("top needs a terminal to draw on: --once prints what there is to see")
    watched = _Watched(chosen(app, instance, pid, env_file), runtime_directory(env_file))
    if once:
        from mqttapi.cli.tables import show

        time.sleep(interval)
        watched.look()
        show(watched.picture())
        return
    with contextlib.suppress(KeyboardInterrupt):  # the usual way out
        _live(watched, interval)


class _Watched:
    """A supervisor and, once it is gone, its successor: the one with the same app and instance."""

    def __init__(self, supervisor: Supervisor, directory: Path) -> None:
        from mqttapi.cli.figures import Sample

        self._supervisor = supervisor
        self._directory = directory
        self._samples: deque[Sample] = deque([Sample(time.monotonic(), supervisor.state)], maxlen=_WINDOW + 1)
        self._gone = False

    def look(self) -> None:
        """Ask for the state of now."""
        from mqttapi.cli.figures import Sample

        found = self._found()
        self._gone = found is None
        if found is not None:
            if found.pid != self._supervisor.pid:
                self._samples.clear()
            self._supervisor = found
            self._samples.append(Sample(time.monotonic(), found.state))

    def _found(self) -> Supervisor | None:
        from mqttapi.workers.control import ControlError, SupervisorGone, ask, supervisors

        known = self._supervisor
        try:
            return known._replace(state=ask(known.path, "state"))
        except SupervisorGone:
            name = (known.state["app"], known.state["instance"])
            others = supervisors(self._directory)
            return next((each for each in others if (each.state.get("app"), each.state.get("instance")) == name), None)
        except ControlError:  # it stands still
            return None

    def picture(self) -> RenderableType:
        """What there is to see."""
        from rich.console import Group
        from rich.text import Text

        from mqttapi.cli.figures import ROUTE_COLUMNS, WORKER_COLUMNS, route_rows, worker_rows
        from mqttapi.cli.tables import table
        from mqttapi.workers.description import headline, name_of, problems

        before, after = self._samples[0], self._samples[-1]
        state = after.state
        lines = [Text(headline(state), style="bold"), *(Text(problem, style="yellow") for problem in problems(state))]
        if self._gone:
            lines = [Text(f"{name_of(state)} does not answer; waiting for it, or for its successor", style="bold red")]
        return Group(
            *lines,
            "",
            table(WORKER_COLUMNS, worker_rows(before, after), text=_TEXT),
            "",
            table(ROUTE_COLUMNS, route_rows(before, after), text=_TEXT),
        )


def _live(watched: _Watched, interval: float) -> None:
    from rich.live import Live

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is put back in order then, too
    with _keys() as ended, Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(watched.picture(), refresh=True)
            if ended(interval):
                return
            watched.look()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits for so many seconds; True: a key was pressed that is to end it."""
    if not sys.stdin.isatty():
        yield lambda seconds: bool(select.select([], [], [], seconds)[0])
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield lambda seconds: _ended(terminal, seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _ended(terminal: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            keys = os.read(terminal, 64)
            if not keys or _LAST_KEYS.intersection(keys):  # nothing: the terminal is no more
                return True
    return False
