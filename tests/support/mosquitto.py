"""A real mosquitto on loopback, with a configuration and a directory of its own."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Literal

import trustme

from tests.support.process import HOST, Server, executable, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Mosquitto"]

_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"  # 3.1.1, clean session, no client id


class Mosquitto(Server):
    """`with Mosquitto() as broker: ... broker.url ...`; the ports stay the same over `restart()`.

    Args:
        persistence: Keep sessions and retained messages on disk: they survive `restart()`, and `kill()` nearly always
            (sessions that began with clean start are never kept).
        max_inflight: How many QoS 1 and 2 messages a client may have unanswered; 20 is mosquitto's own default. This
            version of mosquitto exceeds it, unless it is 1.
        users: Passwords by user name; nobody else may connect then.
        acl: The text of an ACL file.
        tls: Also listen with TLS (`tls_url`, `ca_file`); "mutual" asks for a client's certificate (`client_cert`).
        websockets: Also listen for WebSockets (`websocket_url`).
        unix: Also listen on a Unix socket (`unix_url`).
        extra: Further lines of the configuration, without comments.
    """

    program = "mosquitto"

    def __init__(
        self,
        *,
        persistence: bool = True,
        max_inflight: int = 20,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: bool | Literal["mutual"] = False,
        websockets: bool = False,
        unix: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        self._path = executable("mosquitto")
        super().__init__()
        self.persistence = persistence
        self.max_inflight = max_inflight
        self.extra = extra
        self.tls = tls
        self.tls_port = free_port() if tls else 0
        self.websocket_port = free_port() if websockets else 0
        self.unix_path: Path | None = self.directory / "mqtt.sock" if unix else None
        self.users = users
        self.acl = acl
        if tls:
            self._write_certificates()

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:port`."""
        return f"mqtt://{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        """`mqtts://localhost:port`: the certificate is for `localhost` and for `127.0.0.1`."""
        return f"mqtts://localhost:{self.tls_port}"

    @property
    def websocket_url(self) -> str:
        """`ws://127.0.0.1:port/mqtt`; mosquitto takes any path."""
        return f"ws://{HOST}:{self.websocket_port}/mqtt"

    @property
    def unix_url(self) -> str:
        """`unix:///path`."""
        return f"unix://{self.unix_path}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority behind the TLS listener."""
        return self.directory / "ca.pem"

    @property
    def client_cert(self) -> tuple[Path, Path]:
        """Certificate and key that `tls="mutual"` accepts."""
        return self.directory / "client.pem", self.directory / "client.key"

    def command(self) -> list[str]:
        config = self.directory / "mosquitto.conf"
        config.write_text("\n".join(self._configuration()) + "\n")
        return [self._path, "-c", str(config)]

    def ready(self) -> bool:
        return answers_connect(self.port)

    def _configuration(self) -> list[str]:
        # Comments behind values are not allowed here.
        lines = [
            f"allow_anonymous {'false' if self.users else 'true'}",
            "max_queued_messages 0",
            f"max_inflight_messages {self.max_inflight}",
            "queue_qos0_messages false",
            "sys_interval 1",
            *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information", "subscribe")),
            f"persistence {'true' if self.persistence else 'false'}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it becomes "mosquitto", who may not read our directory
        if self.persistence:
            lines += [
                f"persistence_location {self.directory}/",
                "autosave_interval 1",
                "autosave_on_changes true",
            ]
        if self.users:
            lines.append(f"password_file {self._password_file(self.users)}")
        if self.acl is not None:
            (self.directory / "acl").write_text(self.acl)
            lines.append(f"acl_file {self.directory / 'acl'}")
        return [*lines, *self.extra, *self._listeners()]

    def _listeners(self) -> list[str]:
        lines = [f"listener {self.port} {HOST}"]
        if self.tls:
            lines += [
                f"listener {self.tls_port} {HOST}",
                f"certfile {self.directory}/server.pem",
                f"keyfile {self.directory}/server.key",
                f"cafile {self.ca_file}",
                f"require_certificate {'true' if self.tls == 'mutual' else 'false'}",
            ]
        if self.websocket_port:
            # Without `socket_domain` mosquitto 2.0.11 listens on every address.
            lines += [f"listener {self.websocket_port} {HOST}", "protocol websockets", "socket_domain ipv4"]
        if self.unix_path:
            lines.append(f"listener 0 {self.unix_path}")
        return lines

    def _password_file(self, users: Mapping[str, str]) -> Path:
        path = self.directory / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        path.chmod(0o600)
        subprocess.run([executable("mosquitto_passwd"), "-U", str(path)], check=True)
        return path

    def _write_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        for name, certificate in {
            "server": authority.issue_cert("localhost", HOST),
            "client": authority.issue_cert("client@example.com"),
        }.items():
            for position, blob in enumerate(certificate.cert_chain_pems):
                blob.write_to_path(self.directory / f"{name}.pem", append=position > 0)
            certificate.private_key_pem.write_to_path(self.directory / f"{name}.key")

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts this broker, with the client's certificate."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(*self.client_cert)
        return context


def answers_connect(port: int) -> bool:
    """True when a broker on `port` answers CONNECT: with success or not, it is up."""
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(_CONNECT)
        return connection.recv(1) == b"\x20"
