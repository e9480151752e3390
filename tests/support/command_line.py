"""The real command line, as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import eventually_sync

__all__ = ["CommandLine", "Running", "children", "is_alive"]

_ROOT = Path(__file__).parent.parent.parent


def children(pid: int) -> list[int]:
    """The process ids of those that a process has started and that live."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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

    def children(self) -> list[int]:
        """The process ids of those that it has started and that live: its workers."""
        return children(self.process.pid)

    def dispose(self) -> None:
        """The end, whatever the state."""
        if self.process.poll() is None:
            for pid in self.children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


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
            "MQTTAPI_STATE_DIR": str(directory / "state"),
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

    def dispose(self) -> None:
        """End all that it has started."""
        for running in self.running:
            running.dispose()
