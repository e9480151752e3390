"""The control socket: how `mqttapi ps`, `scale`, `reload`, `stop` and `top` reach the supervisor that is meant.

Each supervisor listens on a Unix socket of its own in the runtime directory, `<app>-<instance>.<pid>.sock`, which only
its owner may use. A request is a JSON object on a line, and so is its answer; a connection may carry several.

    {"command": "state"}               {"ok": {"app": "plant", …}}
    {"command": "scale", "size": 4}    {"ok": "4 workers"}
    {"command": "reload"}              {"error": "configuration", "text": "cannot load 'main:app': …"}
    {"command": "stop"}                {"ok": …}, and the connection is closed when the supervisor ends
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from mqttapi.errors import ConfigurationError, MQTTAPIError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["ControlError", "ControlServer", "Controlled", "Supervisor", "SupervisorGone", "ask", "stop", "supervisors"]

log = logging.getLogger("mqttapi.control")

_LONGEST_PATH: Final = 103  # bytes: sun_path has 104 on macOS and the BSDs, 108 on Linux, the NUL included
_KEY: Final = 9  # characters of the hash behind a name that was cleaned or cut, and of the dot before it
_LONGEST_REQUEST: Final = 4096  # bytes
_IDLE: Final = 30.0  # seconds in which a connected client has to ask something, or to take its answer
_PATIENCE: Final = 5.0  # seconds in which a supervisor tells its state; it takes some milliseconds
_WRONG: Final = "configuration"
_FAILED: Final = "failed"


class ControlError(MQTTAPIError):
    """Raised when a supervisor does not answer, or could not do what it was asked for."""


class SupervisorGone(ControlError):
    """Raised when the process behind a control socket is no more."""


class Controlled(Protocol):
    """What a control server needs of a supervisor; all of it is called on the server's loop."""

    def state(self) -> Mapping[str, Any]:
        """Everything that `mqttapi ps --json` shows; JSON types only."""
        ...

    async def scale(self, size: int) -> str:
        """Return, once the pool has that size, a line for the user. Raises `ConfigurationError`."""
        ...

    async def reload(self) -> str:
        """Return, once every worker is a new one, a line for the user. Raises `ConfigurationError`."""
        ...

    def stop(self) -> None:
        """Begin to drain."""
        ...


# ------------------------------------------------------------------------------------------------------- the server


class ControlServer:
    """Lets the owner of this process ask a supervisor, as long as the block lasts.

    A client that goes away takes back nothing: what it asked for is done. Where there can be no socket (the path is too
    long, the disk is full) a warning is logged, and the supervisor goes on without; `path` is None then.

    Args:
        controlled: Whom the requests are for.
        directory: Where the socket will be; see `mqttapi.config.runtime_dir`.
        name: `<app>-<instance>`, or what is known so far; in any characters.
    """

    def __init__(self, controlled: Controlled, directory: Path, name: str) -> None:
        self.path: Path | None = None
        self._controlled = controlled
        self._directory = directory
        self._name = name
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._idle: float | None = _IDLE

    async def __aenter__(self) -> Self:
        try:
            path = _socket_path(self._directory, self._name)
            listener = _listen(path)
        except (ConfigurationError, OSError) as error:
            log.warning("no control socket, so mqttapi ps, scale, reload and stop do not find this app: %s", error)
            return self
        self.path = path
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_LONGEST_REQUEST)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        if self.path is not None:
            with contextlib.suppress(OSError):  # somebody has cleared the directory, or it is read-only by now
                self.path.unlink()
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()

    def rename(self, name: str) -> None:
        """Name the file after what is known by now; until then the supervisor can be asked by its former name."""
        self._name = name
        if self.path is not None:
            with contextlib.suppress(ConfigurationError, OSError):
                self.path = self.path.rename(_socket_path(self._directory, name))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name=f"mqttapi[{self._name}].control")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError):  # it is gone, or as good as gone
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stranger = _stranger(writer.get_extra_info("socket"))
        while True:
            try:
                async with asyncio.timeout(self._idle):
                    line = await reader.readline()
            except ValueError:
                await _send(writer, _error(_WRONG, f"a request has at most {_LONGEST_REQUEST} bytes"))
                return
            if not line.endswith(b"\n"):  # its end, in the middle of a line perhaps
                return
            await _send(writer, _error(_FAILED, stranger) if stranger else await self._answer(line))

    async def _answer(self, line: bytes) -> bytes:
        try:
            return _encoded({"ok": await self._obey(_request(line))})
        except ConfigurationError as error:
            return _error(_WRONG, str(error))
        except MQTTAPIError as error:
            return _error(_FAILED, str(error))
        except Exception as error:
            log.exception("a request on the control socket has failed")
            return _error(_FAILED, f"{type(error).__name__}: {error}")

    async def _obey(self, request: dict[str, Any]) -> object:
        match request:
            case {"command": "state", **rest} if not rest:
                return self._controlled.state()
            case {"command": "scale", "size": int(size), **rest} if not rest:
                return await self._controlled.scale(size)
            case {"command": "reload", **rest} if not rest:
                return await self._controlled.reload()
            case {"command": "stop", **rest} if not rest:
                self._controlled.stop()
                self._idle = None  # who waits for the end has nothing more to ask
                return None
        raise ConfigurationError(f"this version does not understand the request {json.dumps(request)[:200]}")


def _socket_path(directory: Path, name: str) -> Path:
    tail = f".{os.getpid()}.sock"
    room = _LONGEST_PATH - len(os.fsencode(directory / tail))
    clean = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    if clean != name or len(clean) > room:
        if room < _KEY:
            raise ConfigurationError(
                f"the runtime directory {str(directory)!r} is too long for a Unix socket, whose path has at most "
                f"{_LONGEST_PATH} bytes: set MQTTAPI_RUNTIME_DIR to a shorter one"
            )
        key = hashlib.blake2s(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        clean = f"{clean[: room - _KEY]}.{key}"
    return directory / f"{clean}{tail}"


def _listen(path: Path) -> socket.socket:
    """A socket that its owner can connect to, and that was never there without listening: that would look stale."""
    if sys.platform == "win32":
        raise ConfigurationError("this system has no Unix sockets")
    draft = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        draft.unlink(missing_ok=True)
        listener.bind(str(draft))
        draft.chmod(0o600)
        listener.listen()
        draft.rename(path)
    except BaseException:
        listener.close()
        draft.unlink(missing_ok=True)
        raise
    return listener


def _stranger(connection: socket.socket) -> str:
    """What to tell a client that belongs to another user; empty for the owner, or where the system does not say.

    The mode of the file keeps everyone out but the superuser, who would have another runtime directory.
    """
    if sys.platform != "linux":
        return ""
    format = "3i"  # struct ucred: process, user, group
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(format))
    _, user, _ = struct.unpack(format, data)
    return "" if user == os.geteuid() else f"this app belongs to user id {os.geteuid()}, not to {user}"


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise ConfigurationError("a request is a JSON object on one line")
    return request


async def _send(writer: asyncio.StreamWriter, answer: bytes) -> None:
    async with asyncio.timeout(_IDLE):
        writer.write(answer)
        await writer.drain()


def _error(kind: str, text: str) -> bytes:
    return _encoded({"error": kind, "text": text})


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


# ------------------------------------------------------------------------------------------------------- the client


class Supervisor(NamedTuple):
    """One that runs."""

    path: Path
    """Of its socket."""
    pid: int
    state: Mapping[str, Any]
    """What it says about itself; empty when it does not answer."""


def supervisors(directory: Path) -> list[Supervisor]:
    """Those that run, by name. The sockets of those that do not are removed."""
    found = []
    for path in sorted(directory.glob("*.sock")):
        if pid := re.search(r"\.([0-9]+)\.sock$", path.name):
            with contextlib.suppress(SupervisorGone):
                found.append(Supervisor(path, int(pid[1]), _state(path)))
    return found


def _state(path: Path) -> Mapping[str, Any]:
    try:
        state = ask(path, "state")
    except SupervisorGone:
        raise
    except (ControlError, ConfigurationError):
        return {}
    return state if isinstance(state, dict) else {}


def ask(path: Path, command: str, **arguments: object) -> Any:
    """Send one request and return what it led to; `state` is given 5 seconds, the others as long as they take.

    Raises:
        ConfigurationError: The supervisor says that the request is wrong.
        SupervisorGone: It is no more, or has ended before it answered.
        ControlError: It does not answer, or has failed to do it.
    """
    with _connection(path) as connection:
        return _asked(connection, path, {"command": command, **arguments})


def stop(supervisor: Supervisor, *, wait: bool) -> None:
    """Ask a supervisor to drain, and wait for the end of its process if `wait`. Raises what `ask` does."""
    with _connection(supervisor.path) as connection, _process(supervisor.pid) as ended:
        _asked(connection, supervisor.path, {"command": "stop"})
        if wait:
            with contextlib.suppress(ConnectionError):  # killed: that is an end, too
                while connection.recv(4096):
                    pass
            ended()


@contextlib.contextmanager
def _process(pid: int) -> Iterator[Callable[[], object]]:
    """What waits for the end of a process that has closed its socket: some milliseconds, where the system can tell."""
    handle = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # of another container, perhaps
            handle = os.pidfd_open(pid)
    if handle is None:
        yield lambda: None
        return
    try:
        yield lambda: select.select([handle], [], [], _PATIENCE)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(OSError):
                path.unlink()
            raise _gone(path) from None
        except OSError as error:
            raise ControlError(f"cannot connect to {str(path)!r}: {error.strerror or 'no answer'}") from None
        yield connection


def _asked(connection: socket.socket, path: Path, request: Mapping[str, Any]) -> Any:
    if request["command"] != "state":
        connection.settimeout(None)
    try:
        connection.sendall(_encoded(request))
        with connection.makefile("rb") as lines:
            line = lines.readline()
    except TimeoutError:
        raise ControlError(
            f"no answer on {str(path)!r} within {_PATIENCE:g} s: does its process stand still?"
        ) from None
    except OSError:
        line = b""
    if not line.endswith(b"\n"):
        raise _gone(path)
    with contextlib.suppress(ValueError):
        match json.loads(line):
            case {"ok": result}:
                return result
            case {"error": kind, "text": str(text)}:
                raise ConfigurationError(text) if kind == _WRONG else ControlError(text)
    raise ControlError(f"what answers on {str(path)!r} is no supervisor of this version: {line[:200]!r}")


def _gone(path: Path) -> SupervisorGone:
    return SupervisorGone(f"the app behind {str(path)!r} has ended")
