"""A broker for development: a child process on loopback, gone when the command ends.

mosquitto where it is installed, else iotcore (rumqttd in a wheel). Neither keeps anything on disk.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, Self

from mqttapi.cli.tied import end, spawn
from mqttapi.errors import BrokerError, ConfigurationError

if TYPE_CHECKING:
    import subprocess

__all__ = ["EmbeddedBroker", "Kind"]

Kind = Literal["mosquitto", "iotcore"]

_HOST: Final = "127.0.0.1"
_FIRST_PORT: Final = 1883
_PORTS_TRIED: Final = 100
_START_SECONDS: Final = 10.0
_CHECK_SECONDS: Final = 5.0
_CONNECT: Final = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x00"  # MQTT 5, clean start, no client id
_DISCONNECT: Final = b"\xe0\x00"

# Comments behind values are not allowed in this file. Since 2.0 a listener has to allow anonymous clients by name; the
# default of 1,000 queued messages loses the rest without a word.
_MOSQUITTO: Final = """\
{user}
listener {port} 127.0.0.1
allow_anonymous true
max_queued_messages 0
persistence false
log_dest stderr
log_type error
log_type warning
"""

_IOTCORE: Final = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 4194304
max_inflight_count = 100
dynamic_filters = true
"""

# It logs an "error" for every packet.
_IOTCORE_PROGRAM: Final = """\
import logging, sys
from iotcore import Broker
logging.disable()
Broker(config_path=sys.argv[1]).run_forever()
"""

_IOTCORE_LIMITS: Final = (
    "iotcore speaks MQTT 5 only, forgets everything when it stops, and ignores session expiry, no_local and "
    "retained='new'; a topic that begins with a non-ASCII character stops it. Install mosquitto for the real thing."
)


class EmbeddedBroker:
    """`with EmbeddedBroker() as broker: ... broker.url ...`; anonymous, on loopback alone, in memory alone.

    Attributes:
        kind: What was found.
        port: 1883, or the next one that is free.
        limits: What its users should know, or "".

    Raises:
        ConfigurationError: No broker is installed.
        BrokerError: It did not start.
    """

    def __init__(self, kind: Kind | None = None, *, first_port: int = _FIRST_PORT) -> None:
        self.kind: Kind = kind or _installed()
        self.limits = _IOTCORE_LIMITS if self.kind == "iotcore" else ""
        self.port = _free_port(first_port)
        self._child: subprocess.Popen[bytes] | None = None
        self._check_at = 0.0

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:port`."""
        return f"mqtt://{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="mqttapi-broker-")
        try:
            self._start()
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._directory.cleanup()

    def revive(self) -> bool:
        """Start it again, on the same port, if it has died or no longer takes clients; True if it had to.

        To be called now and then; asks the broker itself at most once in five seconds.
        """
        if self._child is not None and self._child.poll() is None:
            if time.monotonic() < self._check_at:
                return False
            self._check_at = time.monotonic() + _CHECK_SECONDS
            if _answers(self.port, slow=True):
                return False
        self._stop()
        self._start()
        return True

    def _start(self) -> None:
        log = Path(self._directory.name) / "log"
        with log.open("wb") as output:
            self._child = self._spawn(output)
        deadline = time.monotonic() + _START_SECONDS
        while self._child.poll() is None and time.monotonic() < deadline:
            if _answers(self.port):
                self._check_at = time.monotonic() + _CHECK_SECONDS
                return
            time.sleep(0.02)
        self._stop()
        said = log.read_text(errors="replace").strip().rpartition("\n")[2] or "it did not say why"
        raise BrokerError(f"{self.kind} did not start on {self.url}: {said}")

    def _spawn(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        path = Path(self._directory.name) / "broker.toml"  # the suffix is for iotcore, which goes by it
        if self.kind == "iotcore":
            path.write_text(_IOTCORE.format(port=self.port))
            # -P: a folder called iotcore in the user's project is not meant
            return spawn([sys.executable, "-P", "-c", _IOTCORE_PROGRAM, str(path)], output=output)
        # Started by root it would become "mosquitto", who may not read this directory.
        path.write_text(_MOSQUITTO.format(port=self.port, user="user root" if os.geteuid() == 0 else ""))
        return spawn([_mosquitto() or "mosquitto", "-c", str(path)], output=output)

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            end(child, patience=5)


def _installed() -> Kind:
    if _mosquitto():
        return "mosquitto"
    if importlib.util.find_spec("iotcore"):
        return "iotcore"
    raise ConfigurationError(
        "no broker for development: install mosquitto (apt install mosquitto) or iotcore "
        "(pip install 'mqttapi-framework[dev]'), or set MQTT_URL to a broker that runs"
    )


def _mosquitto() -> str | None:
    """Debian puts it where a plain user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _free_port(first: int) -> int:
    for port in range(first, first + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former broker may linger
            try:
                probe.bind((_HOST, port))
                probe.listen()
            except OSError:
                continue
            return port
    raise BrokerError(f"no free port from {first} to {first + _PORTS_TRIED - 1} on {_HOST}")


def _answers(port: int, *, slow: bool = False) -> bool:
    """True when an MQTT 5 broker accepts a client: that a port accepts a connection proves nothing.

    One that is silent for two seconds is `slow`: a busy machine is no reason to start a broker again.
    """
    try:
        with socket.create_connection((_HOST, port), timeout=2) as connection, connection.makefile("rb") as packets:
            connection.sendall(_CONNECT)
            connack = packets.read(4)
            connection.sendall(_DISCONNECT)
    except TimeoutError:
        return slow
    except OSError:
        return False
    return connack[:1] == b"\x20" and connack[3:4] == b"\x00"
