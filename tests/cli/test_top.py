"""`mqttapi top`: on a terminal, and once."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anyio.to_thread import run_sync as in_thread

from tests.support.supervised import FakeSupervisor, in_a_process, route, short_directory, worker
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import CommandLine

BUSY = worker(0, routes={"ingest": route(done=5, rejected=3)})


@pytest.fixture
def directory(mqttapi: CommandLine) -> Iterator[Path]:
    for directory in short_directory():
        mqttapi.environment["MQTTAPI_RUNTIME_DIR"] = str(directory)
        yield directory


# It is the controlling one: Ctrl-C is a signal.
_ON_A_TERMINAL = (
    "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, '-m', 'mqttapi', *sys.argv[1:]])"
)


class Terminal:
    """A command on a terminal of 100 columns and 30 lines, and all that it has written there."""

    def __init__(self, mqttapi: CommandLine, *arguments: str) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self._written = b""
        environment = mqttapi.environment | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_A_TERMINAL, *arguments],
            cwd=mqttapi.directory,
            env=environment,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65_536):
                self._written += data
        except OSError:  # the terminal is closed
            pass

    @property
    def written(self) -> str:
        return self._written.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        eventually_sync(
            lambda: text in self.written or self.process.poll() is not None,
            within=20,
            what=lambda: f"{text!r} in:\n{self.written!r}",
        )
        assert text in self.written

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def ended(self) -> int:
        """The exit code; the terminal must be as it was."""
        code = self.process.wait(20)
        eventually_sync(lambda: "\x1b[?1049l" in self.written, what="the alternate screen is left")
        assert termios.tcgetattr(self.slave) == self.before
        return code


@contextmanager
def terminal(mqttapi: CommandLine, *arguments: str) -> Iterator[Terminal]:
    made = Terminal(mqttapi, *arguments)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.slave)
        os.close(made._master)


@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM])
def test_a_key_or_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    mqttapi: CommandLine, directory: Path, end: bytes | signal.Signals
) -> None:
    with in_a_process(directory), terminal(mqttapi, "top") as screen:
        screen.wait_for("plant-host")
        if isinstance(end, bytes):
            screen.press(b"x")
            screen.press(end)
        else:
            screen.process.send_signal(end)
        assert screen.ended() == 0
        assert "Traceback" not in screen.written


def test_it_shows_what_changes(mqttapi: CommandLine, directory: Path) -> None:
    with in_a_process(directory) as (child, _), terminal(mqttapi, "top", "--interval", "0.1") as screen:
        screen.wait_for(f"plant-host (pid {child.pid}) serving main:app: 1 of 1 workers ready")
        assert mqttapi("scale", "2").returncode == 0
        screen.wait_for("2 of 2 workers ready")
        screen.press(b"q")
        assert screen.ended() == 0


def test_it_outlives_the_supervisor_and_goes_on_with_its_successor(mqttapi: CommandLine, directory: Path) -> None:
    with ExitStack() as stack:
        with in_a_process(directory) as (first, _):
            screen = stack.enter_context(terminal(mqttapi, "top", "--interval", "0.1"))
            screen.wait_for(f"plant-host (pid {first.pid}) serving")
        screen.wait_for(f"plant-host (pid {first.pid}) does not answer; waiting for it, or for its successor")
        second, _ = stack.enter_context(in_a_process(directory))
        screen.wait_for(f"plant-host (pid {second.pid}) serving")
        screen.press(b"q")
        assert screen.ended() == 0


async def test_once_prints_workers_and_routes(mqttapi: CommandLine, directory: Path) -> None:
    async with FakeSupervisor(BUSY, worker(1, state="starting")).listening(directory):
        done = await in_thread(lambda: mqttapi("top", "--once", "--interval", "0.1"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith("serving main:app: 1 of 2 workers ready, up 100 s")
    assert lines[1] == "slot 1: starting"
    assert [line.split()[:3] for line in lines[3:7]] == [
        ["slot", "state", "received/s"],
        ["0", "ready", "0"],
        ["1", "starting", "0"],
        ["all", "0", "0"],
    ]
    assert lines[9].split() == ["ingest", "0", "0", "3", "0", "0", "0", "0"]
    assert not [line for line in lines if line != line.rstrip()]


async def test_without_a_terminal_it_says_what_to_do(mqttapi: CommandLine, directory: Path) -> None:
    async with FakeSupervisor(BUSY).listening(directory):
        done: Any = await in_thread(lambda: mqttapi("top"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mqttapi: top needs a terminal to draw on: --once prints what there is to see\n"
