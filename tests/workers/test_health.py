"""`/live` and `/ready`, over real HTTP."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi.errors import ConfigurationError
from mqttapi.workers import health
from mqttapi.workers.health import Health, health_address
from tests.support.process import HOST, free_port
from tests.support.supervised import state, worker
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = state(worker(0), worker(1))
AWAY = {"state": "not ready", "problems": ["not connected"]}


class Served:
    def __init__(self, served: Health, port: int) -> None:
        self.health = served
        self.port = port

    def ask(self, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        status, headers, body = self.ask(path)
        assert headers["Content-Type"] == "application/json"
        return status, json.loads(body)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(clock: Clock) -> Iterator[Served]:
    port = free_port()
    with Health(port, READY, clock=clock) as server:
        yield Served(server, port)


class TestReady:
    def test_200_while_each_worker_is_ready(self, served: Served) -> None:
        assert served.get("/ready") == (200, {"ready": True, "problems": []})

    def test_503_with_the_reasons_of_each_slot_merged(self, served: Served) -> None:
        served.health.update(state(worker(0, **AWAY), worker(1, **AWAY), worker(2, state="starting"), size=4))
        assert served.get("/ready") == (
            503,
            {
                "ready": False,
                "problems": [
                    {"problem": "not connected", "slots": [0, 1]},
                    {"problem": "starting", "slots": [2]},
                    {"problem": "no process", "slots": [3]},
                ],
            },
        )

    def test_what_has_changed_is_answered_at_once(self, served: Served) -> None:
        served.health.update(state(worker(0, **AWAY)))
        assert served.get("/ready")[0] == 503
        served.health.update(READY)
        assert served.get("/ready")[0] == 200

    def test_a_worker_that_was_not_heard_from_for_5_s_is_not_ready(self, served: Served, clock: Clock) -> None:
        served.health.update(state(worker(0), worker(1, heard=3.0)))
        clock.now += 1.9
        assert served.get("/ready")[0] == 200
        clock.now += 0.2
        assert served.get("/ready") == (
            503,
            {"ready": False, "problems": [{"problem": "has not reported for 5.1 s", "slots": [1]}]},
        )

    def test_of_the_state_nothing_but_problems_is_shown(self, served: Served) -> None:
        served.health.update(state(worker(0, **AWAY, environment="hunter2"), target="secret:app", password="hunter2"))
        for path in ("/ready", "/live"):
            assert not {"hunter2", "secret", "plant"} & set(served.ask(path)[2].decode().split('"'))


class TestLive:
    def test_200_whatever_the_workers_do(self, served: Served) -> None:
        served.health.update(state(worker(0, state="dead"), size=2, phase="stopping"))
        assert served.get("/live") == (200, {"live": True})

    def test_503_once_the_supervisor_stands_still(self, served: Served, clock: Clock) -> None:
        served.health.update(READY)
        clock.now += 9.9
        assert served.get("/live")[0] == 200
        clock.now += 2.1
        stands_still = {"problem": "the supervisor stands still for 12 s", "slots": []}
        assert served.get("/live") == (503, {"live": False, "problems": [stands_still]})
        assert served.get("/ready")[1]["problems"][0] == stands_still
        served.health.update(READY)
        assert served.get("/live")[0] == 200


class TestHTTP:
    def test_HEAD_is_GET_without_the_body(self, served: Served) -> None:
        for said in (READY, state(worker(0, **AWAY))):
            served.health.update(said)
            status, headers, body = served.ask("/ready")
            assert (status, headers["Content-Length"]) == (200 if said is READY else 503, str(len(body)))
            again, head, nothing = served.ask("/ready", "HEAD")
            assert (again, head["Content-Length"], nothing) == (status, headers["Content-Length"], b"")

    def test_a_query_is_no_part_of_the_path(self, served: Served) -> None:
        assert served.get("/ready?verbose")[0] == 200

    @pytest.mark.parametrize("path", ["/", "/metrics", "/ready/", "/../ready", "*"])
    def test_404_for_other_paths(self, served: Served, path: str) -> None:
        assert served.get(path) == (404, {"error": "there are only /live and /ready"})

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
    def test_405_for_other_methods(self, served: Served, method: str) -> None:
        status, headers, body = served.ask("/ready", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert json.loads(body) == {"error": "Method Not Allowed"}

    def test_it_does_not_say_what_it_is_made_of(self, served: Served) -> None:
        assert served.ask("/live")[1]["Server"].strip() == "mqttapi"

    @pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET /live HTTP/9.9\r\n\r\n"])
    def test_what_is_no_HTTP_gets_an_error_that_does_not_repeat_it(self, served: Served, sent: bytes) -> None:
        with socket.create_connection((HOST, served.port), 10) as connection:
            connection.sendall(sent)
            with connection.makefile("rb") as answer:
                assert b'{"error": ' in answer.read()
        assert served.get("/live")[0] == 200

    def test_a_client_that_goes_away_disturbs_nobody(
        self, served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        for sent in (b"", b"GET /li", b"GET /live HTTP/1.0\r\n"):
            connection = socket.create_connection((HOST, served.port), 10)
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.close()
        assert served.get("/live")[0] == 200
        eventually_sync(lambda: not served.health._server._since)
        assert capfd.readouterr() == ("", "")
        assert [record for record in caplog.records if record.levelname != "DEBUG"] == []

    def test_clients_that_dawdle_are_few_and_do_not_stay(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection((HOST, served.port), 10)) for _ in range(100)]
            eventually_sync(lambda: len(served.health._server._since) == 32)
            threads = [thread for thread in threading.enumerate() if "process_request" in thread.name]
            assert len(threads) <= 32
            monkeypatch.setattr(health, "_TIMEOUT", 0.1)
            eventually_sync(lambda: not served.health._server._since)
            for connection in connections:
                with suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        assert served.get("/live")[0] == 200


class TestThePort:
    def test_it_is_on_the_loopback_unless_asked(self, served: Served) -> None:
        assert served.health._server.server_address[0] == "127.0.0.1"

    @pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "::1"])
    def test_another_address(self, host: str) -> None:
        port = free_port()
        try:
            with (
                Health(port, READY, host),
                socket.create_connection(("localhost" if host != "::1" else host, port), 10),
            ):
                pass
        except ConfigurationError as error:
            if host != "::1":
                raise
            pytest.skip(str(error))  # no IPv6 here

    def test_it_is_free_again_at_the_end_whatever_that_is(self) -> None:
        port = free_port()
        for _ in range(2):
            with pytest.raises(RuntimeError), Health(port, READY) as server:
                assert Served(server, port).get("/live")[0] == 200
                raise RuntimeError
        assert not [thread for thread in threading.enumerate() if thread.name == "mqttapi-health"]

    def test_a_port_that_is_in_use_is_named(self, served: Served) -> None:
        with pytest.raises(ConfigurationError) as caught, Health(served.port, READY):
            pass
        assert str(caught.value) == (
            f"health: cannot listen on 127.0.0.1:{served.port}: another program has this port: stop it, or give another "
            "one with --health or MQTTAPI_HEALTH"
        )

    def test_an_address_of_another_machine_is_named(self) -> None:
        with pytest.raises(ConfigurationError) as caught, Health(8080, READY, "192.0.2.1"):
            pass
        assert str(caught.value) == (
            f"health: cannot listen on 192.0.2.1:8080: {os.strerror(errno.EADDRNOTAVAIL)}: give another address with "
            "--health or MQTTAPI_HEALTH"
        )

    def test_a_host_that_is_not_known_is_named(self) -> None:
        with (
            pytest.raises(ConfigurationError, match=r"^health: cannot listen on no\.invalid:8080: .+: give another"),
            Health(8080, READY, "no.invalid"),
        ):
            pass


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("8080", (None, 8080)),
            ("1", (None, 1)),
            ("0.0.0.0:65535", ("0.0.0.0", 65535)),
            ("localhost:80", ("localhost", 80)),
            ("[::1]:80", ("::1", 80)),
        ],
    )
    def test_is_a_port_or_a_host_and_a_port(self, text: str, address: tuple[str | None, int]) -> None:
        assert health_address(text) == address

    @pytest.mark.parametrize(
        "text",
        ["", "0", "65536", "-1", "x", ":80", "h:", "h:x", "::1:80", "[::1]", "[]:80", "8 0", "²", "h:80:", "[h]:80"],
    )
    def test_and_nothing_else(self, text: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            health_address(text)
        assert str(caught.value) == (f"--health must be PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got {text!r}")
