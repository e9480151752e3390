"""What the workers print and log becomes one stream, line by line, and what the supervisor logs becomes part of it.

A worker writes to pipes of its own. It holds their other end too, so that a supervisor which is killed takes no
worker's output down with it.

Whoever reads that stream may stop doing so. Then a thread stands still here, and workers that print, as any program
would; but not the supervisor, which has to see to it that they end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import selectors
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Relay"]

_CHUNK: Final = 65_536  # bytes: all that a pipe holds
_LONGEST: Final = 1 << 20  # bytes of a line, after which it is passed on as it is
_LAST_WORDS: Final = 5.0
"""Seconds that the reader has at the end to take what is left."""


class Relay:
    """Copies whole lines from pipes to file descriptors, in a thread of its own, which no method waits for but `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        self._lock = threading.Lock()  # of the selector and of what is known of each pipe; never held while writing
        self._rest: dict[int, bytearray] = {}
        self._target: dict[int, int] = {}
        self._finished: list[int] = []
        self._own = -1  # the pipe with our log records
        self._ended = False
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="mqttapi-relay", daemon=True)
        self._thread.start()

    def add(self, source: int, target: int) -> None:
        """Copy from the pipe `source` to the file descriptor `target`, until `finish`."""
        os.set_blocking(source, False)
        with self._lock:
            self._rest[source], self._target[source] = bytearray(), target
            self._selector.register(source, selectors.EVENT_READ)
        self._interrupt()

    def finish(self, source: int) -> None:
        """The process behind a pipe is no more: copy what is left before anything that comes from now on, and close it.

        What that process had started may write on to the pipe; nobody reads that.
        """
        self._finished.append(source)
        self._interrupt()

    @contextlib.contextmanager
    def logging_to(self, target: int) -> Iterator[None]:
        """Have this process's log records be lines among the others, as long as the block lasts.

        Those for which there is no room, as nobody reads them, are left out.
        """
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        self._own = source
        self.add(source, target)
        former = [
            (handler, handler.setStream(_Lines(sink)))
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.get_name() == "mqttapi"
        ]
        try:
            yield
        finally:
            for handler, stream in former:
                handler.setStream(stream)
            self.finish(source)
            os.close(sink)

    def close(self) -> None:
        """Copy what is left, as far as it is read, and end."""
        with self._lock:
            self._finished += self._rest
        self._ended = True
        self._interrupt()
        self._thread.join(_LAST_WORDS)
        if not self._thread.is_alive():
            self._selector.close()
            os.close(self._woken)
            os.close(self._wake)

    def _interrupt(self) -> None:
        os.write(self._wake, b".")

    def _run(self) -> None:
        while True:
            ended = self._ended
            self._copy_finished()
            if ended:
                return
            for key, _ in self._selector.select():
                if key.fd == self._woken:
                    os.read(self._woken, _CHUNK)
                elif key.fd in self._rest and not self._copy(key.fd):
                    with self._lock:
                        self._selector.unregister(key.fd)  # closed by `finish`: until then the number is taken

    def _copy_finished(self, but: int = -1) -> None:
        # Looked for anew each time: copying our own log records comes back here, and takes some of them.
        while (source := next((each for each in self._finished if each != but), None)) is not None:
            self._finished.remove(source)
            if source in self._rest:
                self._copy(source)
                self._forget(source)

    def _copy(self, source: int) -> bool:
        """Pass on what is there, as much as a pipe holds: then it is the turn of the others. False at the pipe's end."""
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        rest = self._rest[source]
        rest += data
        end = len(rest) if len(rest) > _LONGEST else rest.rfind(b"\n") + 1
        complete = bytes(rest[:end])
        del rest[:end]
        if source == self._own:
            self._copy_finished(but=source)  # the last words of a process come before what is said of its end
        _write(self._target[source], complete)
        return bool(data)

    def _forget(self, source: int) -> None:
        with self._lock:
            rest, target = self._rest.pop(source), self._target.pop(source)
            if source in self._selector.get_map():
                self._selector.unregister(source)
        os.close(source)
        if rest:
            _write(target, bytes(rest) + b"\n")


def _write(target: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever read it is gone
        while data:
            try:
                data = data[os.write(target, data) :]
            except BlockingIOError:  # somebody has set the file so, and may want it so
                select.select((), (target,), ())


class _Lines(io.TextIOBase):
    """A stream for log records that never waits."""

    def __init__(self, sink: int) -> None:
        self._sink = sink

    def write(self, text: str) -> int:
        with contextlib.suppress(BlockingIOError):
            os.write(self._sink, text.encode(errors="backslashreplace"))
        return len(text)
