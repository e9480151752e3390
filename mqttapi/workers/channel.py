"""What the supervisor and a worker say to each other: a JSON object per line, over a socket that each has an end of.

    supervisor → worker   load, serve, resize, drain, cancel, leave     `do` names it
    worker → supervisor   loaded, state                                 `tell` names it

The socket also tells each of them that the other one is no more.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["GONE", "LONGEST_LINE", "Commands", "decode", "encode"]

LONGEST_LINE: Final = 16 * 2**20
"""Bytes. A state has a few hundred per route."""
GONE: Final = "gone"
"""The command that a worker gives itself when the supervisor is no more."""


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """What `encode` made."""
    message: dict[str, Any] = json.loads(line)
    return message


class Commands:
    """The worker's end. A thread of its own reads: a busy event loop is no reason not to be told, nor to live on alone.

    Another one writes: what an app with thousands of routes tells is more than a socket takes at once.

    Args:
        end: The socket.
        on_gone: Called in that thread once the supervisor is no more, after the command `GONE` was given.
        at_once: Called in that thread with each command before it is given to anybody.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        at_once: Callable[[dict[str, Any]], None] = lambda _: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = end
        self._at_once = at_once
        self._on_gone = on_gone
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._receiver: Callable[[dict[str, Any]], None] = self._queue.put
        self._receiving = threading.RLock()  # a signal may come with a command while another is being given
        self._latest: deque[bytes] = deque(maxlen=1)  # what is to be sent next
        self._due = threading.Event()

    def start(self) -> None:
        """Begin to read, and to write."""
        threading.Thread(target=self._read, name="mqttapi-commands", daemon=True).start()
        threading.Thread(target=self._write, name="mqttapi-reports", daemon=True).start()

    def give(self, command: dict[str, Any]) -> None:
        """A command that comes from elsewhere, such as a signal."""
        with self._receiving:
            self._receiver(command)

    def next(self) -> dict[str, Any]:
        """Wait for a command; to be called before `hand_to`."""
        return self._queue.get()

    def hand_to(self, receiver: Callable[[dict[str, Any]], None]) -> None:
        """From now on `receiver` is called with each command, in the thread that reads."""
        with self._receiving:
            self._receiver = receiver
            while not self._queue.empty():
                receiver(self._queue.get())

    def tell(self, what: str, **rest: Any) -> None:
        """Have a message sent, without waiting. It takes the place of one that has not begun to be sent."""
        self._latest.append(encode({"tell": what, **rest}))
        self._due.set()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the supervisor is no more
            while self._due.wait():
                self._due.clear()
                if self._latest:
                    self._socket.sendall(self._latest.pop())

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    command = decode(line)
                    self._at_once(command)
                    self.give(command)
            except OSError:  # reset: as good as its end
                pass
        self.give({"do": GONE})
        self._on_gone()
