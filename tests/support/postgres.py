"""A real PostgreSQL on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.process import HOST, Server, executable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PostgresServer"]


class PostgresServer(Server):
    """`with PostgresServer() as postgres: ... postgres.url ...`; the port and the data stay over `restart()`."""

    program = "postgres"

    def __init__(self) -> None:
        self._binaries = Path(executable(self.program)).parent
        super().__init__()
        # It does not run as root.
        self._user: Sequence[str] = (
            ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups") if os.geteuid() == 0 else ()
        )
        data = self.directory / "data"
        data.mkdir()
        if self._user:
            self.directory.chmod(0o755)
            shutil.chown(data, "postgres")
        subprocess.run(
            [*self._user, self._binaries / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
        )

    @property
    def url(self) -> str:
        """`postgresql://test:secret@127.0.0.1:port/postgres`: any password will do."""
        return f"postgresql://test:s3cret@{HOST}:{self.port}/postgres"

    def command(self) -> list[str]:
        options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "40",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [*self._user, str(self._binaries / "postgres"), "-D", str(self.directory / "data"), *words]

    def stop(self) -> None:
        """SIGINT: its "fast" shutdown; after SIGTERM it would wait for its clients to leave."""
        self._end(signal.SIGINT)

    def ready(self) -> bool:
        body = (196608).to_bytes(4) + b"user\0test\0database\0postgres\0\0"  # protocol 3.0
        with socket.create_connection((HOST, self.port), timeout=2) as connection:
            connection.sendall((len(body) + 4).to_bytes(4) + body)
            return connection.recv(1) == b"R"
