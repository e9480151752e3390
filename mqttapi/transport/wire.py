"""A socket that never blocks, whatever is around it: nothing, TLS, a WebSocket, or both."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Wire"]

CHUNK: Final = 256 * 1024
"""Bytes that are read, and offered for writing, at once."""
MOST_OWED: Final = 2**20
"""Bytes that a peer may leave unread before more is not read from it."""
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """Bytes in and out of one connected socket, with one buffer for what it does not take at once.

    `sock` is a socket, a TLS socket or paho's wrapper for WebSockets. `failed` is called when a write fails, `drained`
    when the socket has taken a rest that it had not taken at once, `congested` at each write that finds too large a one.
    """

    __slots__ = (
        "_congested",
        "_drained",
        "_failed",
        "_fileno",
        "_loop",
        "_pending",
        "_socket",
        "_unsent",
        "_writing",
        "error",
    )

    def __init__(
        self,
        sock: Any,
        loop: asyncio.AbstractEventLoop,
        *,
        failed: Callable[[Exception], None],
        drained: Callable[[], None],
        congested: Callable[[], None] = lambda: None,
    ) -> None:
        raw = getattr(sock, "_socket", sock)
        if raw.family != getattr(socket, "AF_UNIX", None):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each write is a batch already
        self.error: Exception | None = None
        """Why the last read failed."""
        self._socket = sock
        self._loop = loop
        self._failed = failed
        self._drained = drained
        self._congested = congested
        self._fileno: int = sock.fileno()
        self._pending: Callable[[], int] | None = getattr(sock, "pending", None)
        self._unsent = bytearray()
        self._writing = False

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    @property
    def pending(self) -> bool:
        """Whether there are bytes that TLS has decrypted already: the socket does not report them as readable."""
        return self._pending is not None and self._pending() > 0

    def watch(self, readable: Callable[[], None]) -> None:
        """Call `readable` whenever there is something to read, in place of what was called before."""
        self._loop.add_reader(self._fileno, readable)
        if self.pending:
            self._loop.call_soon(readable)

    def unwatch(self) -> None:
        """Call nothing."""
        self._loop.remove_reader(self._fileno)

    def detach(self) -> None:
        """Leave the socket, which is about to be closed, and forget what is unsent."""
        self._loop.remove_reader(self._fileno)
        self._loop.remove_writer(self._fileno)
        self._writing = False
        self._unsent = bytearray()

    def read(self, size: int = CHUNK) -> bytes | None:
        """What is there, up to `size` bytes: b"" means closed (see `error`), None that it would block."""
        try:
            data: bytes = self._socket.recv(size)
        except _WOULD_BLOCK:
            if not self.pending:
                return None
            data = b""  # a WebSocket's frame goes over several records
        except OSError as error:
            self.error = error
            return b""
        else:
            if self._pending is None or not data:
                return data
        return self._read_pending(data, size)

    def _read_pending(self, data: bytes, size: int) -> bytes | None:
        chunks = [data]
        size -= len(data)
        while size > 0 and self.pending:
            try:
                data = self._socket.recv(size)
            except _WOULD_BLOCK:
                continue
            except OSError:
                break  # the next read meets it again
            chunks.append(data)
            size -= len(data)
        return b"".join(chunks) or None

    def write(self, data: bytes | bytearray) -> None:
        """Send at once what the socket takes, and the rest when it can; the order of calls is the order of bytes."""
        if self._unsent:
            self._unsent += data
            if len(self._unsent) > MOST_OWED:
                self._congested()
        elif (sent := self._send(data)) < len(data):
            self._unsent += data[sent:] if sent else data
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fileno, self._writable)

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """How much the socket took, 0 to the length of `data`.

        TLS and WebSockets have to be given the same bytes again after a 0: the buffer only grows at its end.
        """
        try:
            sent: int = self._socket.send(data)
        except _WOULD_BLOCK:
            return 0
        except OSError as error:
            self._failed(error)
            return len(data)
        return sent

    def _writable(self) -> None:
        while self._unsent:
            with memoryview(self._unsent) as view, view[:CHUNK] as chunk:
                sent = self._send(chunk)
            if not sent or not self._writing:
                return
            del self._unsent[:sent]
        self._writing = False
        self._loop.remove_writer(self._fileno)
        self._drained()
