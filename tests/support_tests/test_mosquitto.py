from __future__ import annotations

import socket

import pytest

from tests.support.mosquitto import Mosquitto, answers_connect
from tests.support.process import HOST


def test_it_answers_and_keeps_its_port_over_a_restart(mosquitto: Mosquitto) -> None:
    port = mosquitto.port
    mosquitto.restart()
    assert mosquitto.port == port
    assert answers_connect(port)


def test_a_killed_broker_refuses_connections(mosquitto: Mosquitto) -> None:
    mosquitto.kill()
    with pytest.raises(ConnectionRefusedError):
        answers_connect(mosquitto.port)


def test_a_paused_broker_accepts_and_says_nothing(mosquitto: Mosquitto) -> None:
    mosquitto.pause()
    with socket.create_connection((HOST, mosquitto.port), timeout=5) as connection:
        connection.sendall(b"\xc0\x00")
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    mosquitto.resume()
    assert answers_connect(mosquitto.port)


def test_all_kinds_of_listeners_at_once() -> None:
    with Mosquitto(tls="mutual", websockets=True, unix=True, users={"alice": "secret"}) as broker:
        for port in (broker.tls_port, broker.websocket_port):
            socket.create_connection((HOST, port), timeout=5).close()
        with (
            socket.create_connection((HOST, broker.tls_port), timeout=5) as plain,
            broker.client_context().wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version()
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(broker.unix_path))


def test_a_wrong_configuration_fails_with_the_servers_own_words() -> None:
    with pytest.raises(pytest.fail.Exception, match="no_such_option"), Mosquitto(extra=["no_such_option 1"]):
        pass
