"""The broker for development: a child that starts in no time, is found again after a crash, and never stays behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING, get_args

import pytest

from mqttapi.cli import embedded
from mqttapi.cli.embedded import EmbeddedBroker, Kind
from mqttapi.errors import ConfigurationError
from tests.support.mosquitto import answers_connect
from tests.support.process import HOST, executable, free_port
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.command_line import CommandLine


@pytest.fixture(params=get_args(Kind))
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "mosquitto":
        executable("mosquitto")
        return "mosquitto"
    pytest.importorskip("iotcore")
    return "iotcore"


def test_it_carries_messages_and_is_gone_afterwards(kind: Kind, mqttapi: CommandLine) -> None:
    with EmbeddedBroker(kind, first_port=free_port()) as broker:
        sub = mqttapi.start("sub", "a", "--count", "1", "--broker", broker.url)
        sub.wait_for("subscribed to")
        assert mqttapi("pub", "a", "1", "--broker", broker.url).returncode == 0
        assert sub.wait() == 0
        assert bool(broker.limits) == (kind == "iotcore")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, broker.port), timeout=2)


def test_a_taken_port_leads_to_the_next_one() -> None:
    executable("mosquitto")
    port = free_port()
    with socket.create_server((HOST, port)), EmbeddedBroker(first_port=port) as broker:
        assert broker.port > port


def test_a_broker_that_died_comes_back_on_the_same_port(kind: Kind) -> None:
    with EmbeddedBroker(kind, first_port=free_port()) as broker:
        assert not broker.revive()
        port = broker.port
        assert broker._child is not None
        broker._child.kill()
        broker._child.wait()
        assert broker.revive()
        assert broker.port == port
        assert embedded._answers(port)


def test_only_loopback_is_served() -> None:
    executable("mosquitto")
    with EmbeddedBroker(first_port=free_port()) as broker:
        assert answers_connect(broker.port)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", broker.port), timeout=2)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_it_does_not_outlive_a_killed_parent(kind: Kind, mqttapi: CommandLine) -> None:
    program = (
        "import sys; from mqttapi.cli.embedded import EmbeddedBroker\n"
        "with EmbeddedBroker(sys.argv[1], first_port=int(sys.argv[2])) as broker:\n"
        "    print(broker.port, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, kind, str(free_port())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=mqttapi.environment,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        parent.kill()
    eventually_sync(lambda: not embedded._answers(port), what="the broker ends")


def test_without_any_broker_the_error_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_mosquitto", lambda: None)
    monkeypatch.setitem(sys.modules, "iotcore", None)
    with pytest.raises(ConfigurationError) as raised:
        EmbeddedBroker()
    assert str(raised.value) == (
        "no broker for development: install mosquitto (apt install mosquitto) or iotcore "
        "(pip install 'mqttapi-framework[dev]'), or set MQTT_URL to a broker that runs"
    )


def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable("mosquitto")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedBroker(first_port=free_port()):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
