"""The spool: dead letters that the broker does not take, in a file.

Theory of operation. A spool is a directory with one file of letters, one line each, which is only ever appended to or
replaced as a whole, and a lock file that writers of all processes hold meanwhile. A line is the CRC-32 of its JSON, a
space, and the JSON. A letter counts once it is synced to the disk. A process that dies in the middle of a line leaves
one that is not whole: it is never taken for a letter, the next writer begins a new line behind it, and whoever looks
is told.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import secrets
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["Letter", "Spool", "SpoolFull"]

_BYTES: Final = ("payload", "correlation_data")


class SpoolFull(OSError):
    """Raised when a letter would make the spool larger than it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One message that could not be handled, and could not be sent to its dead letter topic either."""

    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(5))
    time: str
    """When it failed, ISO 8601 in UTC."""
    to: str
    """The dead letter topic; empty where none could be made."""
    why: str
    """Why it is not there."""
    topic: str
    """The topic it came on."""
    payload: bytes
    qos: int
    route: str
    error: str
    """The name of the exception."""
    reason: str
    attempts: int
    content_type: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    """As the sender sent them."""

    def encoded(self) -> bytes:
        """As a line of the file."""
        fields = dataclasses.asdict(self)
        for name in _BYTES:
            fields[name] = None if fields[name] is None else base64.b64encode(fields[name]).decode()
        text = json.dumps(fields, separators=(",", ":")).encode()
        return b"%08x %b\n" % (zlib.crc32(text), text)

    @classmethod
    def decoded(cls, line: bytes) -> Letter | None:
        """The letter of a line, or None where the line is not whole."""
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
            return None
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in _BYTES:
                fields[name] = None if fields[name] is None else base64.b64decode(fields[name])
            fields["user_properties"] = tuple((name, value) for name, value in fields["user_properties"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(
                "a dead letter on the disk was written by another version of mqttapi: read it with that one"
            ) from None


class Spool:
    """The letters in a directory. Its methods block, and raise OSError; several processes may use it at once.

    Args:
        directory: Made on the first write, with mode 0700: payloads may be nobody else's business.
        max_bytes: What the file may grow to.
    """

    def __init__(self, directory: Path, max_bytes: int = 64 * 2**20) -> None:
        self.directory = directory
        self._path = directory / "letters"
        self._max_bytes = max_bytes

    def append(self, letter: Letter) -> None:
        """Add a letter; it is on the disk when this returns.

        Raises:
            SpoolFull: There is no room for it.
        """
        line = letter.encoded()
        with self._locked():
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":  # somebody died in the middle of a line
                    line = b"\n" + line
                if size + len(line) > self._max_bytes:
                    raise SpoolFull(
                        f"{self._path} has {size:,} bytes, and with a letter of {len(line):,} it would have more than "
                        f"the {self._max_bytes:,} of MQTTAPI_SPOOL_MAX_BYTES"
                    )
                try:
                    _write(file, line)
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, size)  # half a line would take room from the next one
                    raise
            finally:
                os.close(file)
            if not size:
                _sync_directory(self.directory)

    def letters(self) -> list[Letter]:
        """All letters, the oldest first."""
        return self._read()[0]

    def damaged(self) -> int:
        """Lines that are not whole: of a process that died while it wrote, or of a disk that lost something."""
        return self._read()[1]

    def remove(self, ids: Collection[str]) -> None:
        """Take letters out; ids that are not there are nothing special. Damaged lines go as well."""
        with self._locked():
            left = [letter.encoded() for letter in self._read()[0] if letter.id not in ids]
            new = self._path.with_name("letters.new")
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write(file, b"".join(left))
                os.fsync(file)
            except OSError:
                new.unlink()  # it would keep room from the letters to come
                raise
            finally:
                os.close(file)
            new.replace(self._path)
            _sync_directory(self.directory)

    def _read(self) -> tuple[list[Letter], int]:
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return [], 0
        decoded = [Letter.decoded(line) for line in lines if line != b"\n"]
        letters = [letter for letter in decoded if letter is not None]
        return letters, len(decoded) - len(letters)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _sync_directory(directory: Path) -> None:
    """A file is only there for good once its directory is on the disk as well."""
    if sys.platform == "win32":
        return
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
