"""What the workers print and log becomes one stream, line by line.

A worker writes to pipes of its own. It holds their other end too, so that a supervisor which is killed takes no
worker's output down with it: see `adopt`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Relay"]

_CHUNK: Final = 65_536
_LONGEST: Final = 1 << 20  # bytes of a line, after which it is passed on as it is


class Relay:
    """Copies whole lines from pipes to this process's stdout and stderr, in a thread of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        self._lock = threading.Lock()  # of the selector and of what is known of each pipe
        self._rest: dict[int, bytearray] = {}
        self._target: dict[int, int] = {}
        self._ended = False
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="mqttapi-relay", daemon=True)
        self._thread.start()

    def add(self, source: int, target: int) -> None:
        """Copy from the pipe `source` to the file descriptor `target`, until `finish` or the pipe's end."""
        os.set_blocking(source, False)
        with self._lock:
            self._rest[source], self._target[source] = bytearray(), target
            self._selector.register(source, selectors.EVENT_READ)
        self._interrupt()

    def finish(self, source: int) -> None:
        """The process behind a pipe is no more: copy what is left, and close it.

        What that process had started may write on to the pipe; nobody reads that.
        """
        with self._lock:
            if source in self._rest:
                self._copy(source)
                self._forget(source)

    def close(self) -> None:
        """Copy what is left, and end."""
        self._ended = True
        self._interrupt()
        self._thread.join()
        for source in list(self._rest):
            self.finish(source)
        self._selector.close()
        os.close(self._woken)
        os.close(self._wake)

    def _interrupt(self) -> None:
        os.write(self._wake, b".")

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                if key.fd == self._woken:
                    os.read(self._woken, _CHUNK)
                    continue
                with self._lock:
                    if key.fd in self._rest and not self._copy(key.fd):
                        self._forget(key.fd)

    def _copy(self, source: int) -> bool:
        """Pass on what is there; False at the pipe's end."""
        rest = self._rest[source]
        while True:
            try:
                data = os.read(source, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            rest += data
            end = len(rest) if len(rest) > _LONGEST else rest.rfind(b"\n") + 1
            self._write(self._target[source], bytes(rest[:end]))
            del rest[:end]

    def _forget(self, source: int) -> None:
        rest = self._rest.pop(source)
        if rest:
            self._write(self._target[source], bytes(rest) + b"\n")
        self._selector.unregister(source)
        del self._target[source]
        os.close(source)

    def _write(self, target: int, data: bytes) -> None:
        with _between_records(), contextlib.suppress(OSError):  # whoever read it is gone
            while data:
                data = data[os.write(target, data) :]


@contextlib.contextmanager
def _between_records() -> Iterator[None]:
    """While none of this process's own log records is being written."""
    with contextlib.ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            if handler.lock is not None:
                stack.enter_context(handler.lock)
        yield
