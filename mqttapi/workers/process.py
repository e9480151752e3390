"""One worker process, seen from the supervisor: from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mqttapi.workers.channel import LONGEST_LINE, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.workers.relay import Relay

__all__ = ["Launch", "Process"]

log = logging.getLogger("mqttapi.workers")

_PROGRAM: Final = "mqttapi.cli.worker"
_TO_WRITE: Final = 1.0
"""Seconds that a process which hangs has to write down its stack."""
_LAST_WORDS: Final = 1.0
"""Seconds after the end of a process within which what it told is read."""


class Launch(NamedTuple):
    """What every worker is started with; the rest it has from the environment."""

    target: str | None = None
    app_dir: str = "."
    factory: bool = False
    broker: str | None = None
    transient: bool = False
    debug: bool = False
    cap: int | None = None
    """The most processes for any route."""

    @property
    def label(self) -> str:
        """What the command line of a worker says, for whoever lists processes."""
        return self.target or "app"

    @property
    def rescue(self) -> str:
        """The command that handles what waits in the session of a worker that is no more; it lacks the client id."""
        where = ["--app-dir", self.app_dir] if self.app_dir != "." else []
        target = [self.target] if self.target else []
        return shlex.join(["mqttapi", "rescue", *where, *(["--factory"] if self.factory else []), *target])


class Process:
    """A process that runs, or has run; `start` makes one.

    It is in a session of its own, so that the terminal's signals reach the supervisor only.
    """

    def __init__(
        self, slot: int, child: asyncio.subprocess.Process, end: socket.socket, pipes: tuple[int, ...]
    ) -> None:
        self.slot = slot
        self.pid = child.pid
        self.began = time.monotonic()
        self.loaded: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        """What the worker says of its app once that is imported; None: it ended before."""
        self.report: dict[str, Any] = {}
        """The last state that it told."""
        self.heard = self.began
        """When it last told something."""
        self.silent = 0
        """How often it was looked at since."""
        self.was_ready = False
        """Whether it has ever been connected and subscribed."""
        self.told = ""
        """The command that it has to end by: `drain`, `cancel` or `leave`; empty: none was given."""
        self.serves = False
        """Whether it was told to serve."""
        self.on_change: Callable[[], None] = lambda: None
        self._child = child
        self._end = end
        self._pipes = pipes
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def start(cls, slot: int, launch: Launch, *, note: int, outputs: tuple[int, int], relay: Relay) -> Process:
        """Start a worker, and tell it what to load.

        Args:
            slot: Its place in the pool.
            launch: What to run.
            note: A file that stays ours, in which it notes what might kill it.
            outputs: Where stdout and stderr go in the end: what it writes to once we are no more.
            relay: Gets there what it writes.
        """
        ours, theirs = socket.socketpair()
        pipes: list[tuple[int, int]] = []
        try:
            for _ in outputs:
                pipes.append(os.pipe())  # noqa: PERF401  those that there are have to be closed where one fails
            passed = (theirs.fileno(), note, *outputs, *(source for source, _ in pipes))
            settings = json.dumps({"control": theirs.fileno(), "outputs": outputs, "note": note, "passed": passed})
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _PROGRAM, launch.label, f"--slot={slot}", settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                pass_fds=passed,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            for source, _ in pipes:
                os.close(source)
            raise
        finally:
            theirs.close()
            for _, sink in pipes:
                os.close(sink)
        process = cls(slot, child, ours, tuple(source for source, _ in pipes))
        for (source, _), target in zip(pipes, outputs, strict=True):
            relay.add(source, target)
        reader, process._writer = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
        name = f"mqttapi[supervisor].worker-{slot}"
        process._reading = asyncio.create_task(process._read(reader), name=name)
        process.send("load", slot=slot, **launch._asdict())
        return process

    def send(self, do: str, **rest: Any) -> None:
        """Give a command."""
        if do in {"drain", "cancel", "leave"}:
            self.told = do
        self.serves = self.serves or do == "serve"
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode({"do": do, **rest}))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    def write_stack(self) -> bool:
        """Let it write its stack to its stderr; False where the system has no signal for that."""
        if hasattr(signal, "SIGUSR2"):
            self.kill(signal.SIGUSR2)
            return True
        return False

    async def kill_with_stack(self) -> None:
        """Let it write its stack to its stderr, as far as it can, and kill it."""
        if self.write_stack():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._child.wait()), _TO_WRITE)
        self.kill()

    async def exited(self) -> None:
        """Wait for its end."""
        await self._child.wait()

    async def ended(self, relay: Relay) -> int:
        """Wait for its end, and for what it has said before; gives the exit code, negative after a signal."""
        code = await self._child.wait()
        if self._reading is not None:
            # What it had forked may hold the other end of the socket.
            await asyncio.wait((self._reading,), timeout=_LAST_WORDS)
            self._reading.cancel()
        pipes, self._pipes = self._pipes, ()  # once, though two may wait: the numbers are soon those of other pipes
        for pipe in pipes:
            relay.finish(pipe)
        if not self.loaded.done():
            self.loaded.set_result(None)
        return code

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.heard, self.silent = time.monotonic(), 0
                message = decode(line)
                match message.pop("tell"):
                    case "loaded":
                        self.loaded.set_result(message)
                    case "state":
                        self.report = message
                        self.was_ready = self.was_ready or message["state"] == "ready"
                        self.on_change()
        if self._writer is not None:
            self._writer.close()
