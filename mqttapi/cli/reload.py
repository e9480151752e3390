"""One child that runs the app: started again when a file changes, ended before the parent ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttapi.cli.problems import TAKEN_OVER, tell
from mqttapi.cli.tied import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

__all__ = ["HOW_TO_INSTALL", "can_watch", "supervise"]

HOW_TO_INSTALL: Final = "reloading needs watchfiles: pip install 'mqttapi-framework[dev]'"

_TICK: Final = 0.25  # seconds


def can_watch() -> bool:
    """True when watchfiles is installed."""
    return importlib.util.find_spec("watchfiles") is not None


def supervise(
    arguments: Sequence[str],
    *,
    watch: Path | None,
    environment: Mapping[str, str] | None = None,
    every_tick: Callable[[], None] = lambda: None,
) -> int:
    """Run `mqttapi <arguments>` as a child until SIGINT or SIGTERM, or until it ends for good; returns its exit code.

    A change in a Python or `.env` file drains the child and starts a new one. A child that failed waits for the next
    change; one that ended with 0 or lost its client id to another (3) is not started again.

    Args:
        arguments: As on the command line, without the program's name.
        watch: The directory to watch, with all below it; None: the child is never started again.
        environment: Variables over those of this process.
        every_tick: Called some times a second.
    """
    app = _Child([sys.executable, "-m", "mqttapi", *arguments], environment)
    with _asked_to_stop(app) as stop, app:
        waiting = False
        for changed in _changes(watch, stop):
            every_tick()
            if changed:
                tell(f"{', '.join(changed)} changed")
                app.end()
                if stop.is_set():
                    break
                app.start()
                waiting = False
            elif not waiting and (code := app.poll()) is not None:
                if watch is None or code in {0, TAKEN_OVER}:
                    return code
                tell("waiting for a change")
                waiting = True
        return app.end()


class _Child:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None) -> None:
        self._command = command
        self._environment = environment
        self.start()

    def start(self) -> None:
        self._process = spawn(self._command, environment=self._environment, orphaned=signal.SIGQUIT)

    def poll(self) -> int | None:
        """The exit code, as `end` gives it; None while it runs."""
        code = self._process.poll()
        return None if code is None else _as_shell(code)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Drain it. How long that may take is the app's affair; the user has Ctrl-C."""
        self._process.terminate()
        return _as_shell(self._process.wait())

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.end()


def _as_shell(code: int) -> int:
    """What a shell would say. SIGTERM is how we end it, also before it knows how to drain."""
    if code == -signal.SIGTERM:
        return 0
    return code if code >= 0 else 128 - code


@contextmanager
def _asked_to_stop(child: _Child) -> Iterator[threading.Event]:
    """Set at the first SIGINT or SIGTERM. The second makes the child hurry, the third kills it."""
    stop = threading.Event()
    received = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        stop.set()
        if received > 1:
            child.signal(signal.SIGTERM if received == 2 else signal.SIGKILL)

    former = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _changes(directory: Path | None, stop: threading.Event) -> Iterator[list[str]]:
    """The files that changed, some times a second, often none; ends when `stop` is set."""
    if directory is None:
        while not stop.wait(_TICK):
            yield []
        return
    import watchfiles

    for changes in watchfiles.watch(
        directory,
        watch_filter=_concerns_the_program(),
        stop_event=stop,
        rust_timeout=int(_TICK * 1000),
        yield_on_timeout=True,
    ):
        yield sorted({os.path.relpath(path, directory) for _, path in changes})


def _concerns_the_program() -> Callable[[Any, str], bool]:
    """Python and `.env` files, and packages: of a directory that comes or goes as a whole its files are not told."""
    from watchfiles import Change, DefaultFilter, PythonFilter

    is_source, is_visible = PythonFilter(extra_extensions=(".env",)), DefaultFilter()

    def concerns(change: Change, path: str) -> bool:
        if is_source(change, path):
            return True
        if change is Change.modified or not is_visible(change, path) or not Path(path).name.isidentifier():
            return False
        return change is Change.deleted or any(Path(path).rglob("*.py"))

    return concerns
