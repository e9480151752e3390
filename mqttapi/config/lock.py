"""One owner per client id on this machine: a directory of our own, and a lock file in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from mqttapi.errors import BrokerError, ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ClientIdInUse", "ClientLock", "runtime_dir"]

_POLL: Final = 0.05  # seconds between two looks at a lock whose holder is draining
_RECORD: Final = 32  # bytes: the holder is one write of a fixed size, so a reader never sees half of it
_held: Final[weakref.WeakSet[ClientLock]] = weakref.WeakSet()
"""What a process that is forked must not keep: a lock lives as long as any process has the file open."""


class ClientIdInUse(BrokerError):
    """Raised when another process, or another app of this one, has the client id; `pid` is None where it is unknown."""

    def __init__(self, text: str, *, client_id: str, pid: int | None) -> None:
        super().__init__(text)
        self.client_id = client_id
        self.pid = pid


def runtime_dir(path: Path | None = None) -> Path:
    """The directory for locks, made with mode 0700 where it is missing.

    `path` (`MQTTAPI_RUNTIME_DIR`), else `$XDG_RUNTIME_DIR/mqttapi`, else one per user beneath the system's temporary
    directory. Raises `ConfigurationError` where it cannot be made, belongs to someone else, or others may write to it.
    """
    directory = path or _default_runtime_dir()
    way_out = "set MQTTAPI_RUNTIME_DIR to a directory of your own"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link that someone else put in the temporary directory is not followed; one that the user names is.
        status = directory.stat() if path else directory.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the runtime directory {str(directory)!r}: {error.strerror}; {way_out}"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"the runtime directory {str(directory)!r} is not a directory; {way_out}")
    if sys.platform != "win32":
        if status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"the runtime directory {str(directory)!r} belongs to user id {status.st_uid}, not to {os.geteuid()}; "
                f"{way_out}"
            )
        if status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigurationError(
                f"others may write to the runtime directory {str(directory)!r} (mode {mode:04o}): chmod 700 it, or "
                f"{way_out}"
            )
    return directory


def _default_runtime_dir() -> Path:
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base, "mqttapi")
    user = "" if sys.platform == "win32" else f"-{os.geteuid()}"
    return Path(tempfile.gettempdir(), f"mqttapi{user}")


class ClientLock:
    """An exclusive lock on a client id at one broker, held by the process until it is released or the process ends.

    An asynchronous context manager. `broker` (an address, say) tells equal ids at different brokers apart. Where the
    holder has said that it is draining, a second owner waits for up to `wait` seconds; else it fails at once.
    `supervisor` is the process that would start this one again, were it stopped: whoever wants the id is told of it.
    On Windows there is no such lock: everything succeeds, and only the broker can tell of a second owner.
    """

    def __init__(
        self,
        client_id: str,
        directory: Path,
        *,
        wait: float = 30.0,
        broker: str = "",
        supervisor: int | None = None,
    ) -> None:
        self.client_id = client_id
        name = re.sub(r"[^A-Za-z0-9_-]", "-", client_id)[:100]
        key = hashlib.blake2s(f"{client_id}\0{broker}".encode(), digest_size=6).hexdigest()
        self.path = directory / f"{name}.{key}.lock"
        self._wait = wait
        self._holds = str(os.getpid()) if supervisor is None else f"{os.getpid()} of {supervisor}"
        self._file: int | None = None

    async def acquire(self) -> None:
        """Take the lock. Raises `ClientIdInUse`, or `ConfigurationError` where the file cannot be opened."""
        import anyio

        deadline = time.monotonic() + self._wait
        while not self._take():
            pid, supervisor, draining = self._holder()
            if not draining or time.monotonic() >= deadline:
                text = self._in_use(pid, supervisor, draining=draining)
                raise ClientIdInUse(text, client_id=self.client_id, pid=supervisor or pid)
            await anyio.sleep(_POLL)

    def draining(self) -> None:
        """Tell a successor that this owner is about to end, and that waiting is worth it."""
        self._write(f"{self._holds} draining")

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held. The file stays: removing it would be a race."""
        if self._file is not None:
            self._write("")
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _take(self) -> bool:
        if sys.platform == "win32":
            return True
        import fcntl

        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot open the lock file {str(self.path)!r}: {error.strerror}; set MQTTAPI_RUNTIME_DIR to a directory "
                "of your own"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            raise ConfigurationError(
                f"cannot lock {str(self.path)!r}: {error.strerror}; set MQTTAPI_RUNTIME_DIR to a local file system"
            ) from None
        self._file = file
        _held.add(self)
        self._write(self._holds)
        return True

    def _write(self, holder: str) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full: it is locked, and does not say by whom
                os.pwrite(self._file, holder.ljust(_RECORD - 1).encode() + b"\n", 0)

    def _holder(self) -> tuple[int | None, int | None, bool]:
        try:
            found = re.fullmatch(r"(\d+)(?: of (\d+))?( draining)?", self.path.read_text(errors="replace").strip())
        except OSError:
            found = None
        return (int(found[1]), int(found[2]) if found[2] else None, bool(found[3])) if found else (None, None, False)

    def _in_use(self, pid: int | None, supervisor: int | None, *, draining: bool) -> str:
        holder = f"process {pid}" if pid else "another process"
        if supervisor:
            holder = f"process {supervisor} (its worker {pid})"
        if pid == os.getpid():
            holder = f"another app of this process ({pid})"
        waited = f", which was draining and did not end within {self._wait:g} s" if draining else ""
        return (
            f"client id {self.client_id!r} is in use by {holder} on this machine{waited} ({self.path}): "
            "stop that one, or give this one its own MQTT_INSTANCE"
        )


def _forked() -> None:
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
