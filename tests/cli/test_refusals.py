"""Brokers that cannot be used: one line that says why, and an exit code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.mosquitto import Mosquitto
from tests.support.process import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.command_line import CommandLine

APP = """\
from mqttapi import App

app = App("plant")

@app.topic("a/<id>")
async def handle(id: str) -> None: ...
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with Mosquitto(tls=True) as mosquitto:
        yield mosquitto


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    path = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def refused(mqttapi: CommandLine, code: int, *arguments: str, **environment: str) -> str:
    """What the one line says."""
    mqttapi.write("main.py", APP)
    done = mqttapi("run", *arguments, stdin=b"", **environment)
    lines = (done.stdout + done.stderr).splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done
    return lines[0]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mqtt://h:99999", "port must be 1-65535, got '99999'"),
        ("mqtt://h:abc", "port must be 1-65535, and is not a number"),
        ("http://h", "unknown scheme 'http': use mqtt, mqtts, ws, wss, unix"),
        ("mqtt://u:hunter2@x@h", "percent-encode the password"),
    ],
)
def test_a_wrong_url(mqttapi: CommandLine, url: str, text: str) -> None:
    for line in (refused(mqttapi, 2, "--broker", url), refused(mqttapi, 2, MQTT_URL=url)):
        assert text in line
        assert "hunter2" not in line


def test_a_password_file_that_is_not_there(mqttapi: CommandLine) -> None:
    line = refused(mqttapi, 2, MQTT_USERNAME="u", MQTT_PASSWORD_FILE="nowhere")
    assert line == "mqttapi: MQTT_PASSWORD_FILE: cannot read 'nowhere': No such file or directory"


def test_a_ca_file_that_is_not_there(mqttapi: CommandLine, broker: Mosquitto) -> None:
    line = refused(mqttapi, 2, "--broker", broker.tls_url, MQTT_TLS_CA_FILE="nowhere.pem")
    assert line == "mqttapi: MQTT_TLS_CA_FILE: cannot use 'nowhere.pem': No such file or directory"


def test_tls_to_a_plain_listener(mqttapi: CommandLine, broker: Mosquitto) -> None:
    line = refused(mqttapi, 1, "--broker", f"mqtts://127.0.0.1:{broker.port}")
    assert f"TLS handshake with 127.0.0.1:{broker.port} failed: is port {broker.port} a plain listener?" in line


def test_a_certificate_of_an_unknown_authority(mqttapi: CommandLine, broker: Mosquitto, other_ca: Path) -> None:
    line = refused(mqttapi, 1, "--broker", broker.tls_url, MQTT_TLS_CA_FILE=str(other_ca))
    assert f"(checked with MQTT_TLS_CA_FILE '{other_ca}'; --broker)" in line


def test_a_certificate_for_another_host(mqttapi: CommandLine, broker: Mosquitto) -> None:
    url = f"mqtts://0.0.0.0:{broker.tls_port}"
    line = refused(mqttapi, 1, "--broker", url, MQTT_TLS_CA_FILE=str(broker.ca_file))
    assert "IP address mismatch, certificate is not valid for '0.0.0.0'" in line


def test_a_client_certificate_that_is_missing(mqttapi: CommandLine) -> None:
    with Mosquitto(tls="mutual") as broker:
        line = refused(mqttapi, 1, "--broker", broker.tls_url, MQTT_TLS_CA_FILE=str(broker.ca_file))
    assert "the broker wants another client certificate (MQTT_TLS_CERT_FILE)" in line


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_wrong_credentials(mqttapi: CommandLine, protocol: str) -> None:
    with Mosquitto(users={"ada": "secret"}) as broker:
        url = broker.url.replace("//", "//ada:hunter2@")
        line = refused(mqttapi, 1, "--broker", url, MQTT_PROTOCOL=protocol)
    assert "refuses the connection: Not authorized (0x87)" in line
    assert "hunter2" not in line


def test_a_broker_that_is_away_is_waited_for(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    broker = Mosquitto()
    app = mqttapi.start("run", "--broker", broker.url)
    app.wait_for("Connection refused; trying again until it works")
    with broker:
        app.wait_for("subscribed")
        assert app.stop() == 0
    assert app.output.count("Connection refused") == 1


def test_a_name_that_does_not_resolve_is_waited_for(mqttapi: CommandLine) -> None:
    """In a cluster the broker's name may come later than the app."""
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--broker", "mqtt://nowhere.invalid")
    app.wait_for("cannot resolve broker host 'nowhere.invalid' (--broker); trying again until it works")
    assert app.stop() == 0


def test_a_runtime_directory_of_others_is_refused(mqttapi: CommandLine) -> None:
    directory = mqttapi.directory / "open"
    directory.mkdir()
    directory.chmod(0o777)
    line = refused(mqttapi, 2, "--broker", f"mqtt://127.0.0.1:{free_port()}", MQTTAPI_RUNTIME_DIR=str(directory))
    assert f"others may write to the runtime directory '{directory}' (mode 0777)" in line
    assert os.fspath(directory) in line
