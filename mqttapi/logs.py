"""Logging for the command line: one record, one line, whatever a device put into a topic or a payload.

What MQTTAPI logs goes to `mqttapi.*`. An app that brings its own handlers has no need of this module; its formatter
should then escape what is not printable, as these do.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from traceback import TracebackException
from typing import TYPE_CHECKING, Final, Generic, Literal, TextIO, TypeVar

from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["JSONFormatter", "PlainFormatter", "RateLimited", "configure"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_INDENT: Final = "    "

K = TypeVar("K", bound=Hashable)


def configure(
    level: str = "info",
    format: Literal["plain", "json"] = "plain",
    *,
    stream: TextIO | None = None,
    slot: int | None = None,
) -> None:
    """Log everything from `level` (debug, info, warning, error, critical) up, to `stream` (stderr unless given).

    A worker gives its `slot`: its records say it, and the process's id, as they share a stream with those of others.
    Sets the root logger's level and adds one handler to it; called again, it replaces that handler and no other.
    """
    handler = logging.StreamHandler(stream)
    handler.set_name("mqttapi")
    handler.setFormatter(JSONFormatter(slot) if format == "json" else PlainFormatter(slot))
    root = logging.getLogger()
    for former in [former for former in root.handlers if former.get_name() == "mqttapi"]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())


class PlainFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.000Z WARNING mqttapi.transport: text`, a traceback indented beneath it.

    Of a worker: `2026-01-31 12:00:00.000Z WARNING [0 4711] mqttapi.transport: text`, with its slot and process id.
    """

    def __init__(self, slot: int | None = None) -> None:
        super().__init__()
        self._worker = "" if slot is None else f"[{slot} {os.getpid()}] "

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several where there is a traceback: only the first of them is not indented."""
        when = _time(record).replace("T", " ")
        first = f"{when} {record.levelname:<8}{self._worker}{printable(record.name)}: {printable(record.getMessage())}"
        return f"\n{_INDENT}".join((first, *_details(record)))


class JSONFormatter(logging.Formatter):
    """One JSON object per line, in ASCII: time, level, logger, message, what `extra=` holds, and `traceback`.

    Of a worker also `slot` and `pid`.
    """

    def __init__(self, slot: int | None = None) -> None:
        super().__init__()
        self._worker: dict[str, object] = {} if slot is None else {"slot": slot, "pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        """One line, with a traceback too."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
        }
        if details := "\n".join(_details(record)):
            fields["traceback"] = details
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD | fields.keys()}
        try:
            line = json.dumps(fields | extra, default=str, allow_nan=False)
        except (TypeError, ValueError):  # a key that is no text, a circle, a NaN
            line = json.dumps(fields | {name: str(value) for name, value in extra.items()})
        return line.replace("\x7f", r"\u007f")  # the one control character that JSON leaves alone


@dataclass(slots=True)
class _Window:
    ends: float
    seen: int = 0


class RateLimited(Generic[K]):
    """Which of many equal events to log: the first `limit` per key and `period` in full, of the rest the number.

    `period` and the values of `clock` are in seconds. The keys have to be few (a route and an exception's type, say,
    never a topic).
    """

    def __init__(self, limit: int = 10, period: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._period = period
        self._clock = clock
        self._windows: dict[K, _Window] = {}

    def allows(self, key: K) -> bool:
        """Count one event; True when it is to be logged in full.

        A period begins with its first event and ends when `summaries` is called after its time: call that regularly.
        """
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(self._clock() + self._period)
        window.seen += 1
        return window.seen <= self._limit

    def summaries(self, *, at_end: bool = False) -> list[tuple[K, int]]:
        """The keys whose period is over, or all of them `at_end`, with the number of events not logged in full."""
        now = self._clock()
        over = [key for key, window in self._windows.items() if at_end or window.ends <= now]
        counts = [(key, self._windows.pop(key).seen - self._limit) for key in over]
        return [(key, count) for key, count in counts if count > 0]


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _details(record: logging.LogRecord) -> Iterator[str]:
    if record.exc_info and record.exc_info[1] is not None:
        yield from _traceback(TracebackException.from_exception(record.exc_info[1]))
    elif record.exc_text:  # a record that was pickled has lost the exception
        yield from map(printable, record.exc_text.split("\n"))
    if record.stack_info:
        yield from map(printable, record.stack_info.split("\n"))


def _traceback(error: TracebackException) -> Iterator[str]:
    # As `TracebackException.format`, which leaves line breaks in what str(exception) says.
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _traceback(cause)
        yield "The above exception was the direct cause of:" if error.__cause__ else "While handling it, this happened:"
    yield "Traceback (most recent call last):"
    for frame in error.stack.format():
        yield from map(printable, frame.rstrip("\n").split("\n"))
    for text in error.format_exception_only():
        yield printable(text.removesuffix("\n"))
    for part in error.exceptions or ():
        yield from (f"  | {line}" for line in _traceback(part))
