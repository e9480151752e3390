from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqttapi.cli import main
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parent.parent.parent


class Running:
    """A `mqttapi` command that goes on; stdout and stderr go to one file."""

    def __init__(self, command: tuple[str, ...], directory: Path, environment: dict[str, str], number: int) -> None:
        self._log = directory / f"command-{number}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Wait until `text` has been said so many times."""
        eventually_sync(
            lambda: self.output.count(text) >= times or self.process.poll() is not None,
            within=20,
            what=lambda: f"{text!r} in:\n{self.output}",
        )
        assert self.output.count(text) >= times, self.output

    def worker(self, slot: int = 0) -> int:
        """The process id of the last worker in a slot that has logged something."""
        return int(re.findall(rf" \[{slot} (\d+)\] ", self.output)[-1])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(20)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and return the exit code."""
        self.send(number)
        return self.wait()


class CommandLine:
    """The real command line, in a directory of its own, without the caller's settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MQTT", "REDIS_URL", "DATABASE_URL", "WORKER_COUNT"))
        } | {
            "PYTHONPATH": str(_ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MQTTAPI_RUNTIME_DIR": str(directory / "runtime"),
            "COLUMNS": "200",
        }
        self.running: list[Running] = []

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "mqttapi", *arguments],
            check=False,
            cwd=self.directory,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            timeout=40,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str, **environment: str) -> Running:
        return self.start_program(sys.executable, "-m", "mqttapi", *arguments, **environment)

    def start_program(self, *command: str, **environment: str) -> Running:
        """Another program, in the same surroundings."""
        running = Running(command, self.directory, self.environment | environment, len(self.running))
        self.running.append(running)
        return running


class InProcess:
    """`mqttapi` without a process of its own, for tables of errors that need no more."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def __call__(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Exit code, stdout, and the lines of stderr, the directory written as `DIR`."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err.replace(str(self.directory), "DIR").splitlines()


@pytest.fixture
def in_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcess]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "MQTT" not in name})
    known = set(sys.modules)
    yield InProcess(tmp_path, capsys)
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in {"main", "other", "helper", "app"}:
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def mqttapi(tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path)
    yield line
    for command in line.running:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
