"""A place in the pool, and what is known of the processes that were in it."""

from __future__ import annotations

import signal
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from mqttapi.workers.process import Process

__all__ = ["CRASH_LOOP", "Slot", "how_it_ended"]

CRASH_LOOP: Final = 5
"""Deaths in a row before the worker was ready, after which it makes no sense to go on."""
_BRIEF: Final = 5.0
"""Seconds: a process that was ready and dies sooner is restarted more slowly each time."""
_MAX_PAUSE: Final = 30.0
_MAX_PAUSE_WHEN_READY: Final = 1.0


class Slot:
    """One slot. Its process comes and goes; the number, and with it the client id, stays."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.successor: Process | None = None
        """A process that takes the place of the present one when that has ended."""
        self.task: asyncio.Task[None] | None = None
        self.restarts = 0
        """Ends that nobody asked for."""
        self.leaving = False
        """Whether the slot goes away with its process."""
        self.deaths = 0
        """In a row, before the worker was ready."""
        self.died = False
        """Whether the last process has ended abnormally: then something that it handled may have killed it."""
        self.note = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the slot
        """Outlives the processes: what one of them notes here before it dies, the next one is told."""
        self._brief = 0

    @property
    def processes(self) -> list[Process]:
        """Those that live, or are about to end."""
        return [each for each in (self.process, self.successor) if each is not None]

    def ended(self, process: Process, code: int, lived: float) -> None:
        """Count an end that nobody asked for.

        Args:
            process: What has ended.
            code: Its exit code, negative after a signal.
            lived: For how many seconds.
        """
        self.restarts += 1
        self.died = code != 0
        if process.was_ready:
            self.deaths = 0
            self._brief = self._brief + 1 if lived < _BRIEF else 0
        else:
            self.deaths += 1

    @property
    def pause(self) -> float:
        """Seconds until the next start: none at first, then more with each death."""
        if self.deaths > 1:
            return float(min(_MAX_PAUSE, 0.5 * 2 ** (self.deaths - 2)))
        if self._brief > 1:
            return float(min(_MAX_PAUSE_WHEN_READY, 0.1 * 2 ** (self._brief - 2)))
        return 0.0


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
