"""A supervisor that only seems to be one: it has a state, a real control socket, and does as it is told at once.

As a program, `python -m tests.support.supervised DIRECTORY`, it lasts until it is told to stop; a reload never ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.workers.control import ControlServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["FakeSupervisor", "in_a_process", "route", "short_directory", "state", "worker"]


def route(**counts: int) -> dict[str, int]:
    names = "done dropped rejected failed retried dead_lettered spooled replies_failed overflowed in_flight"
    return dict.fromkeys(names.split(), 0) | counts


def worker(slot: int = 0, **values: Any) -> dict[str, Any]:
    """A worker that is ready; `received`, `oldest`, `routes` and so on are of its stats."""
    names = "received unmatched refused violations unknown_ids in_flight unacknowledged outgoing dead_letters_held"
    stats: dict[str, Any] = {**dict.fromkeys(names.split(), 0), "stuck_threads": 0, "oldest": 0, "routes": {}}
    stats |= {name: values.pop(name) for name in list(values) if name in stats}
    return {
        "slot": slot,
        "pid": 5000 + slot,
        "client_id": f"plant-host-{slot}",
        "state": "ready",
        "uptime": 100.0,
        "restarts": 0,
        "quarantine": False,
        "problems": [],
        "heard": 0.5,
        "cpu": 1.5,
        "rss": 58 * 2**20,
        "loop_lag": 0.001,
        "stats": stats,
    } | values


def state(*workers: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "app": "plant",
        "instance": "host",
        "pid": os.getpid(),
        "target": "main:app",
        "version": "0.1",
        "uptime": 100.0,
        "phase": "serving",
        "size": len(workers),
        "workers": list(workers),
    } | values


class FakeSupervisor:
    """`Controlled`, as workers of it would never be in the way of a test."""

    def __init__(self, *workers: dict[str, Any], **values: Any) -> None:
        self.said = state(*workers, **values)
        self.stopped = asyncio.Event()
        self.reloading = asyncio.Event()
        self.may_reload = asyncio.Event()
        self.may_reload.set()
        self.reloads = 0

    def state(self) -> dict[str, Any]:
        return self.said

    async def scale(self, size: int) -> str:
        if not 1 <= size <= 512:
            raise ConfigurationError(f"scale: 1 to 512 workers, got {size}")
        self.said["size"] = size
        self.said["workers"] = [worker(slot) for slot in range(size)]
        return f"{size} workers"

    async def reload(self) -> str:
        self.reloading.set()
        await self.may_reload.wait()
        self.reloads += 1
        return "reloaded"

    def stop(self) -> None:
        self.stopped.set()

    @asynccontextmanager
    async def listening(self, directory: Path) -> AsyncIterator[ControlServer]:
        """Until it is told to stop, and beyond, if the block lasts longer."""
        async with ControlServer(self, directory, f"{self.said['app']}-{self.said['instance']}") as server:
            yield server


@contextmanager
def in_a_process(directory: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """One that can be killed, and its socket."""
    command = [sys.executable, "-m", __name__, str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert child.stdout is not None
        yield child, Path(child.stdout.readline().strip())
    finally:
        child.kill()
        child.communicate()


async def _main(directory: Path) -> None:
    supervisor = FakeSupervisor(worker())
    supervisor.may_reload.clear()
    async with supervisor.listening(directory) as server:
        print(server.path, flush=True)
        await supervisor.stopped.wait()


def short_directory() -> Iterator[Path]:
    """For sockets, whose paths must be short: the body of a fixture."""
    directory = Path(tempfile.mkdtemp(prefix="mq-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
