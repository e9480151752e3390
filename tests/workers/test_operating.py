"""A pool that runs is looked at, changed and stopped: real commands, real HTTP, a real broker."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import CommandLine
from tests.support.process import HOST, free_port
from tests.support.supervised import short_directory
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Running
    from tests.support.mosquitto import Mosquitto

APP = """\
from mqttapi import App, Reject

app = App("plant")

@app.topic("s/<id>", shared=True, workers=3, name="ingest")
async def ingest(payload: str) -> None:
    if payload == "bad":
        raise Reject("bad")
"""


@pytest.fixture
def directory(mqttapi: CommandLine) -> Iterator[Path]:
    for directory in short_directory():
        mqttapi.environment |= {"MQTTAPI_RUNTIME_DIR": str(directory), "MQTT_INSTANCE": "x"}
        yield directory


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def looked_at(
    tmp_path_factory: pytest.TempPathFactory, shared_mosquitto: Mosquitto
) -> Iterator[tuple[CommandLine, Running]]:
    """A pool that tests only look at."""
    line = CommandLine(tmp_path_factory.mktemp("plant"))
    for directory in short_directory():
        line.environment |= {"MQTTAPI_RUNTIME_DIR": str(directory), "MQTT_INSTANCE": "looked-at"}
        running = started(line, shared_mosquitto)
        yield line, running
        running.stop()


@pytest.fixture
def pool(mqttapi: CommandLine, shared_mosquitto: Mosquitto, directory: Path) -> Running:
    return started(mqttapi, shared_mosquitto)


def started(mqttapi: CommandLine, broker: Mosquitto, *options: str) -> Running:
    mqttapi.write("main.py", APP)
    pool = mqttapi.start("run", "main:app", "--broker", broker.url, *options)
    pool.wait_for("all 3 workers are ready")
    return pool


def state(mqttapi: CommandLine) -> dict[str, Any]:
    (found,) = json.loads(mqttapi("ps", "--json").stdout)
    assert isinstance(found, dict)
    return found


def pids(mqttapi: CommandLine) -> list[int]:
    return [worker["pid"] for worker in state(mqttapi)["workers"]]


def probe(port: int, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def statuses(port: int) -> tuple[int, int]:
    return probe(port, "/live")[0], probe(port, "/ready")[0]


class TestLooking:
    def test_ps_shows_each_worker_and_what_it_has_handled(
        self, looked_at: tuple[CommandLine, Running], shared_mosquitto: Mosquitto
    ) -> None:
        mqttapi, pool = looked_at
        for payload in ("good", "good", "bad"):
            assert mqttapi("pub", "s/1", payload, "--broker", shared_mosquitto.url).returncode == 0

        def counts() -> list[int]:
            routes = [worker["stats"]["routes"]["ingest"] for worker in state(mqttapi)["workers"]]
            return [sum(route[name] for route in routes) for name in ("done", "rejected")]

        eventually_sync(lambda: counts() == [2, 1])
        lines = mqttapi("ps").stdout.splitlines()
        assert lines[0].startswith(
            f"plant-looked-at (pid {pool.process.pid}) serving main:app: 3 of 3 workers ready, up "
        )
        assert [line.split()[2:4] for line in lines[2:]] == [[f"plant-looked-at-{slot}", "ready"] for slot in range(3)]

    def test_top_shows_it_once(self, looked_at: tuple[CommandLine, Running]) -> None:
        mqttapi, _ = looked_at
        lines = mqttapi("top", "--once").stdout.splitlines()
        assert [line.split()[0] for line in lines[3:7]] == ["0", "1", "2", "all"]
        assert lines[-1].split()[0] == "ingest"

    def test_a_signal_logs_what_ps_shows(self, looked_at: tuple[CommandLine, Running]) -> None:
        _, pool = looked_at
        pool.send(signal.SIGUSR1)
        pool.wait_for(
            f"mqttapi.workers: plant-looked-at (pid {pool.process.pid}) serving main:app: 3 of 3 workers ready"
        )
        pool.wait_for("plant-looked-at-2, ready, up ")

    def test_scale_out_of_bounds_is_wrong_usage(self, looked_at: tuple[CommandLine, Running]) -> None:
        mqttapi, _ = looked_at
        done = mqttapi("scale", "513")
        assert (done.returncode, done.stderr) == (2, "mqttapi: a pool has 1 to 512 workers, got 513\n")


class TestChanging:
    def test_scale_returns_when_the_pool_has_its_size(self, mqttapi: CommandLine, pool: Running) -> None:
        first, *_ = pids(mqttapi)
        for size in (1, 2):
            done = mqttapi("scale", str(size))
            assert (done.returncode, done.stdout) == (0, f"{size} worker{'s' * (size > 1)}\n")
            found = state(mqttapi)
            assert [worker["state"] for worker in found["workers"]] == ["ready"] * size
            assert (found["size"], found["workers"][0]["pid"]) == (size, first)

    def test_reload_replaces_every_worker(self, mqttapi: CommandLine, pool: Running) -> None:
        before = pids(mqttapi)
        done = mqttapi("reload")
        assert (done.returncode, done.stdout) == (0, "reloaded: 3 workers run the new code\n")
        after = state(mqttapi)
        assert not set(before).intersection(worker["pid"] for worker in after["workers"])
        assert [worker["state"] for worker in after["workers"]] == ["ready"] * 3

    def test_reload_of_code_that_cannot_be_loaded_changes_nothing(self, mqttapi: CommandLine, pool: Running) -> None:
        before = pids(mqttapi)
        mqttapi.write("main.py", "raise RuntimeError")
        done = mqttapi("reload")
        assert done.returncode == 2
        assert done.stderr.startswith(
            "mqttapi: the new process of worker 0 ended with exit code 2 before it had loaded"
        )
        assert pids(mqttapi) == before

    def test_stop_returns_when_the_process_has_ended_and_leaves_no_socket(
        self, mqttapi: CommandLine, directory: Path, pool: Running
    ) -> None:
        done = mqttapi("stop")
        assert (done.returncode, done.stdout) == (0, f"plant-x (pid {pool.process.pid}) has ended\n")
        assert pool.process.poll() == 0
        assert [path.suffix for path in directory.iterdir() if path.suffix != ".lock"] == []

    def test_an_app_that_is_being_imported_can_be_seen_and_stopped(
        self, mqttapi: CommandLine, directory: Path, shared_mosquitto: Mosquitto
    ) -> None:
        mqttapi.write("main.py", "print('importing', flush=True); import threading; threading.Event().wait()")
        pool = mqttapi.start("run", "main:app", "--broker", shared_mosquitto.url)
        pool.wait_for("importing")
        lines = mqttapi("ps").stdout.splitlines()
        assert lines[0].startswith(f"pid {pool.process.pid} starting main:app: 0 of 1 workers ready, up ")
        assert lines[-1] == "slot 0: the app is being imported"
        assert mqttapi("stop").returncode == 0
        assert pool.process.poll() == 0

    def test_what_a_killed_supervisor_leaves_is_not_shown(
        self, mqttapi: CommandLine, directory: Path, pool: Running
    ) -> None:
        pool.send(signal.SIGKILL)
        pool.wait()
        assert list(directory.glob("*.sock"))
        assert mqttapi("ps").returncode == 1
        assert not list(directory.glob("*.sock"))


class TestHealth:
    def test_a_broker_that_is_away_makes_it_unready_and_no_less_alive(
        self, mqttapi: CommandLine, mosquitto: Mosquitto, directory: Path, port: int
    ) -> None:
        started(mqttapi, mosquitto, "--health", str(port))
        assert statuses(port) == (200, 200)
        mosquitto.stop()
        eventually_sync(lambda: statuses(port) == (200, 503))
        refused = {"problem": f"cannot connect to {mosquitto.url}: Connection refused", "slots": [0, 1, 2]}
        eventually_sync(lambda: refused in probe(port, "/ready")[1]["problems"])
        mosquitto.start()
        eventually_sync(lambda: statuses(port) == (200, 200), within=40)

    def test_a_worker_that_stands_still_makes_it_unready(
        self, mqttapi: CommandLine, shared_mosquitto: Mosquitto, directory: Path, port: int
    ) -> None:
        started(mqttapi, shared_mosquitto, "--health", f"127.0.0.1:{port}")
        still = pids(mqttapi)[1]
        os.kill(still, signal.SIGSTOP)
        (problem,) = eventually_sync(lambda: probe(port, "/ready")[1]["problems"])
        assert problem["problem"].startswith("has not reported for ")
        assert problem["slots"] == [1]
        os.kill(still, signal.SIGCONT)
        eventually_sync(lambda: statuses(port) == (200, 200))

    def test_it_answers_before_the_app_is_imported(
        self, mqttapi: CommandLine, shared_mosquitto: Mosquitto, directory: Path, port: int
    ) -> None:
        mqttapi.write("main.py", "print('importing', flush=True); import threading; threading.Event().wait()")
        pool = mqttapi.start("run", "--broker", shared_mosquitto.url, MQTTAPI_HEALTH=str(port))
        pool.wait_for("importing")
        eventually_sync(lambda: probe(port, "/ready")[1]["problems"][0]["problem"] == "the app is being imported")
        assert statuses(port) == (200, 503)
        assert pool.stop() == 0

    def test_a_port_that_is_taken_ends_the_start(
        self, mqttapi: CommandLine, shared_mosquitto: Mosquitto, directory: Path
    ) -> None:
        mqttapi.write("main.py", "raise RuntimeError('never imported')")
        done = mqttapi("run", "--broker", shared_mosquitto.url, "--health", str(shared_mosquitto.port))
        assert done.returncode == 2
        assert done.stderr == (
            f"mqttapi: health: cannot listen on 127.0.0.1:{shared_mosquitto.port}: another program has this port: stop "
            "it, or give another one with --health or MQTTAPI_HEALTH\n"
        )

    def test_what_is_no_address_is_wrong_usage(self, mqttapi: CommandLine) -> None:
        done = mqttapi("run", "--health", "http://localhost")
        assert done.returncode == 2
        assert done.stderr == (
            "mqttapi: --health must be PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got 'http://localhost'\n"
        )
