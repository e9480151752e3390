"""A server as a child process: a free port that stays, a directory of its own, an end that is certain."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HOST", "Server", "executable", "free_port"]

HOST = "127.0.0.1"
_OUTSIDE_PATH = "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"
# Processes that run tests side by side have ports of their own: what one has found free the other does not take.
_PORTS = range(15_000, 32_000)[
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
]
_random = random.SystemRandom()  # a test may have seeded the other one


def executable(name: str) -> str:
    """The path of a program, also where a plain user's PATH does not look.

    Without it the test is skipped, with the reason; under `CI=true` it fails, so that nothing is left out unseen.
    """
    debian = sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))  # one for each version
    path = shutil.which(name) or shutil.which(name, path=":".join((*_OUTSIDE_PATH, *reversed(debian))))
    if path:
        return path
    reason = f"{name} is not installed (scripts/test installs it with apt-get where it may)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; under CI=true this test must run")
    pytest.skip(reason)


def free_port() -> int:
    """A loopback port that nobody listens on.

    It is outside the range the kernel takes client ports from: else a client that reconnects while the server is away
    could be given the server's port, or be connected to itself.
    """
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


class Server:
    """One server process; used with `with`. The port, the directory and the log stay over a restart."""

    program: str

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"mqttapi-{self.program}-"))
        self.process: subprocess.Popen[bytes] | None = None

    # What a kind of server says about itself.

    def command(self) -> Sequence[str]:
        """The command line, after writing the configuration."""
        raise NotImplementedError

    def ready(self) -> bool:
        """True when the server has answered in its own protocol; may raise OSError."""
        raise NotImplementedError

    # What tests do to it. All of it blocks, for some hundredths of a second.

    def start(self) -> None:
        """Start, and wait until clients can connect."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.process = process
        eventually_sync(
            lambda: process.poll() is not None or self._answers(),
            what=lambda: f"{self.program} answers; its log:\n{self.log()}",
        )
        if process.poll() is not None:
            pytest.fail(f"{self.program} ended at once; its log:\n{self.log()}")

    def _answers(self) -> bool:
        try:
            return self.ready()
        except OSError:
            return False

    def stop(self) -> None:
        """SIGTERM, and wait for the end: connections are closed in order, state is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for the end: connections are reset, nothing is saved."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`stop` and `start`, on the same port and with the same state."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stand, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self._signal(signal.SIGCONT)

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def log(self) -> str:
        """All that the server has written to stdout and stderr."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, f"{self.program} is not running"
        self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a paused process does not notice SIGTERM
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
