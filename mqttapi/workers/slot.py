"""A place in the pool, and what is known of the processes that were in it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from mqttapi.workers.quarantine import SlotQuarantine

if TYPE_CHECKING:
    import asyncio

    from mqttapi.workers.process import Process

__all__ = ["CRASH_LOOP", "HANDLER_ENDED_IT", "Slot", "how_it_ended"]

HANDLER_ENDED_IT: Final = 4
"""The exit code of a worker that could not go on because of what a handler did: it is the message's, not the app's."""
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
        self.on_trial = False
        """Whether it came with a change of a pool that serves, and was not ready since: its failure is the change's."""
        self.quarantine = SlotQuarantine()
        """What its processes have died of."""
        self._brief = 0

    @property
    def processes(self) -> list[Process]:
        """Those that live, or are about to end."""
        return [each for each in (self.process, self.successor) if each is not None]

    def ended(self, process: Process, lived: float, *, charged: bool) -> None:
        """Count an end that nobody asked for.

        Args:
            process: What has ended.
            lived: For how many seconds.
            charged: Whether a message is known that it died of. However many of those there are, they are no crash loop:
                each is put aside in the end.
        """
        self.restarts += 1
        if process.was_ready:
            self.on_trial = False
        if process.was_ready or charged:
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
    if code == HANDLER_ENDED_IT:
        return "was ended by a handler"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
