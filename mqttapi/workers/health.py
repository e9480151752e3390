"""`/live` and `/ready` over HTTP, for what looks after processes: Kubernetes, a load balancer, a container engine."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import socketserver
import threading
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

from mqttapi.errors import ConfigurationError
from mqttapi.workers.description import unready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = ["Health", "health_address"]

log = logging.getLogger("mqttapi.health")

_STALE: Final = 10.0  # seconds without an update after which the supervisor's loop is taken for dead
_TIMEOUT: Final = 5.0  # seconds that a client has for all of its request
_MOST_CLIENTS: Final = 32  # at once; a probe takes a millisecond
_POLL: Final = 0.2  # seconds that the end waits for the thread, at most

Answer = tuple[HTTPStatus, dict[str, Any]]


class Health:
    """Answers `GET /live` and `GET /ready`, in threads of its own, as long as the block lasts.

    `/live` is 200 while the supervisor's loop turns: while `update` was called within the last 10 s. `/ready` is 200
    only while the pool has its size, and each of its workers is ready and was heard from within 5 s; else it is 503.
    Both say why in a JSON object. Of the state nothing else is shown.

    Args:
        port: 1 to 65535.
        state: The first one.
        host: Where to listen: a name or an address of this machine.
        clock: Seconds, only ever forward.

    Raises:
        ConfigurationError: When the block begins and nothing can listen there.
    """

    def __init__(
        self,
        port: int,
        state: Mapping[str, Any],
        host: str = "127.0.0.1",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._host = host
        self._clock = clock
        self.update(state)

    def update(self, state: Mapping[str, Any]) -> None:
        """What is answered from now on. Call it once a second, and with each change; `state` must not be changed then.

        It replaces one reference, so it may be called in any thread, and costs nothing.
        """
        self._latest = (self._clock(), state)

    def __enter__(self) -> Self:
        self._server = _listening(self._host, self._port, {"/live": self._live, "/ready": self._ready})
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL,), name="mqttapi-health", daemon=True
        )
        self._thread.start()
        log.info("health: http://%s/live and /ready", _shown(self._host, self._port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _live(self) -> Answer:
        age = self._clock() - self._latest[0]
        if age <= _STALE:
            return HTTPStatus.OK, {"live": True}
        return HTTPStatus.SERVICE_UNAVAILABLE, {"live": False, "problems": [_stands_still(age)]}

    def _ready(self) -> Answer:
        updated, state = self._latest
        age = self._clock() - updated
        problems = [{"problem": problem, "slots": slots} for problem, slots in unready(state, age).items()]
        if age > _STALE:
            problems.insert(0, _stands_still(age))
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        return status, {"ready": not problems, "problems": problems}


def health_address(text: str) -> tuple[str | None, int]:
    """The host and port of `--health 8080`, `--health 0.0.0.0:8080` or `--health [::1]:8080`; None: no host is named.

    Raises:
        ConfigurationError: When it is none of these.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    wrong_host = bool(colon) and (not bare or (":" in bare) != (bare != host))
    if wrong_host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"--health must be PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got {text!r}")
    return bare or None, int(port)


def _stands_still(age: float) -> dict[str, Any]:
    return {"problem": f"the supervisor stands still for {age:.0f} s", "slots": []}


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listening(host: str, port: int, answers: Mapping[str, Callable[[], Answer]]) -> _Server:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _Server(family, address, answers)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = "another program has this port: stop it, or give another one"
        else:
            problem = f"{error.strerror}: give another address"
        raise ConfigurationError(
            f"health: cannot listen on {_shown(host, port)}: {problem} with --health or MQTTAPI_HEALTH"
        ) from None


class _Server(ThreadingHTTPServer):
    """One thread per request, bounded in number and in time: strangers may reach it, and the supervisor has to live."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, family: int, address: Any, answers: Mapping[str, Callable[[], Answer]]) -> None:
        self.address_family = family
        self._since: dict[Any, float] = {}
        super().__init__(address, partial(_Request, answers))

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for the name of this machine.
        socketserver.TCPServer.server_bind(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._since) < _MOST_CLIENTS

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        late = time.monotonic() - _TIMEOUT
        for request, since in list(self._since.items()):
            if since < late:
                with contextlib.suppress(OSError):  # it has just ended
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("health: a request has failed", exc_info=True)  # noqa: LOG014  it is called where one is handled


class _Request(BaseHTTPRequestHandler):
    server_version = "mqttapi"
    sys_version = ""

    def __init__(self, answers: Mapping[str, Callable[[], Answer]], *arguments: Any) -> None:
        self._answers = answers
        super().__init__(*arguments)

    def do_GET(self) -> None:
        answer = self._answers.get(self.path.partition("?")[0])
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, {"error": f"there are only {' and '.join(self._answers)}"})
        else:
            self._send(*answer())

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What was sent is no HTTP, or (501) asks with a method for which there is no function here."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, {"error": status.phrase})

    def _send(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug("health: %s", format % arguments)
