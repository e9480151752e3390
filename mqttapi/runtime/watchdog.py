"""The watchdog: tells of handlers that block the event loop.

A thread asks the loop for a sign of life, twice a second. Where two requests in a row go unanswered, the loop has not
turned for a second: what it is in the middle of is on the stack of its thread, the route included, so a message costs
nothing for it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Final

from mqttapi.message import printable
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.runs import Run

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Watchdog"]

log = logging.getLogger("mqttapi.watchdog")

PERIOD: Final = 0.5
"""Seconds between two requests."""
_PATIENCE: Final = 2  # requests without an answer
_WORK: Final = Workers._work.__code__


class Watchdog:
    """Watches the running loop from `start` to `stop`; to be made in the loop's own thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._answered = True
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has ended."""
        self._end.set()
        self._thread.join()

    def _answer(self) -> None:
        self._answered = True

    def _watch(self) -> None:
        unanswered = 0
        while not self._end.wait(PERIOD):
            # Counted, not measured: a process that was stopped for a while has not blocked anything.
            unanswered = 0 if self._answered else unanswered + 1
            if unanswered == _PATIENCE:
                self._report()
            if self._answered:
                self._answered = False
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop is closed
                    return

    def _report(self) -> None:
        frame = sys._current_frames().get(self._watched)
        if frame is None or self._answered:
            return
        where, stack = _described(frame)
        text = (
            "%s blocks the event loop for more than a second: no message is handled, no keepalive sent. "
            "Await what it waits for, or make the handler a plain 'def', which runs in a thread"
        )
        record = log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (where,), None, sinfo=stack)
        log.handle(record)


def _described(frame: FrameType) -> tuple[str, str]:
    """What the loop's thread is busy with, and its stack from there on."""
    where, outer = "something that is no handler", traceback.extract_stack(frame)
    link: FrameType | None = frame
    depth = 0
    while link is not None:
        if link.f_code is _WORK:
            run = link.f_locals.get("run")
            if isinstance(run, Run):
                where = f"{run.route.name} ({run.route.source}, on {printable(run.message.topic)})"
                outer = traceback.StackSummary.from_list(outer[-depth:] if depth else outer)
            break
        link, depth = link.f_back, depth + 1
    return where, "Stack (most recent call last):\n" + "".join(outer.format()).rstrip()
