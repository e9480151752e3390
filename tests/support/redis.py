"""A real redis-server on loopback."""

from __future__ import annotations

import socket

from tests.support.process import HOST, Server, executable

__all__ = ["RedisServer"]


class RedisServer(Server):
    """`with RedisServer() as redis: ... redis.url ...`; the port stays the same over `restart()`.

    Args:
        persistence: Write every command to disk, so that the data survives `restart()` and `kill()`.
    """

    program = "redis-server"

    def __init__(self, *, persistence: bool = False) -> None:
        self._path = executable("redis-server")
        super().__init__()
        self.persistence = persistence

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:port/0`."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self.persistence else "no",
            "appendfsync": "always",
        }
        return [self._path, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def ready(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
