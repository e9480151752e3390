"""`mqttapi ps`, `scale`, `reload` and `stop`, against a supervisor that does as it is told."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync as in_thread

from mqttapi.errors import MQTTAPIError
from mqttapi.workers import control
from tests.support.supervised import FakeSupervisor, in_a_process, route, short_directory, worker
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.cli.conftest import CommandLine, InProcess

PID = os.getpid()


@pytest.fixture
def directory(mqttapi: CommandLine) -> Iterator[Path]:
    for directory in short_directory():
        mqttapi.environment["MQTTAPI_RUNTIME_DIR"] = str(directory)
        yield directory


@pytest.fixture
def silent(directory: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket that nobody serves: a supervisor that stands still."""
    monkeypatch.setattr(control, "_PATIENCE", 0.05)
    monkeypatch.setenv("MQTTAPI_RUNTIME_DIR", str(directory))
    path = directory / "plant-host.77.sock"
    with socket.socket(socket.AF_UNIX) as standing:
        standing.bind(str(path))
        standing.listen()
        yield path


async def run(mqttapi: CommandLine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The supervisor is in this loop, the command in a process of its own."""
    return await in_thread(lambda: mqttapi(*arguments))


class TestPs:
    async def test_the_table_shows_workers_and_below_it_their_problems(
        self, mqttapi: CommandLine, directory: Path
    ) -> None:
        busy = {"in_flight": 2, "oldest": 0.25, "routes": {"r": route(done=1234, rejected=4, failed=5)}}
        supervisor = FakeSupervisor(
            worker(0, **busy), worker(1, state="not ready", problems=["[bold]not connected"], restarts=7)
        )
        async with supervisor.listening(directory):
            done = await run(mqttapi, "ps")
        assert (done.returncode, done.stderr) == (0, "")
        head, columns, first, second, problem = done.stdout.splitlines()
        assert head == f"plant-host (pid {PID}) serving main:app: 1 of 2 workers ready, up 100 s"
        assert columns.split("  ")[0] == "slot"
        assert first.split() == (
            "0 5000 plant-host-0 ready 100 s 0 2 0.2 s 1,234 4 5 58 MiB 1.5 s".split()  # noqa: SIM905  a line, as it is seen
        )
        assert second.split()[3:8] == ["not", "ready", "100", "s", "7"]
        assert problem == "slot 1: [bold]not connected"
        assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]

    async def test_the_table_in_the_documentation_is_true(self, mqttapi: CommandLine, directory: Path) -> None:
        page = Path(__file__).parents[2].joinpath("docs", "operating.md").read_text("utf-8")
        shown = page.partition("$ mqttapi ps\n")[2].partition("```")[0]
        long = {"uptime": 11_101.0, "cpu": 94.0}
        away = "publishing: cannot connect to mqtts://broker.example:8883: Connection refused"
        busy = {"in_flight": 2, "oldest": 0.21, "routes": {"r": route(done=81_204, rejected=17)}}
        busier = {"in_flight": 1, "oldest": 0.1, "routes": {"r": route(done=80_977, rejected=20)}}
        young = {"uptime": 41.0, "cpu": 2.1, "rss": 57 * 2**20, "restarts": 1, "routes": {"r": route(done=1310)}}
        workers = (
            worker(0, pid=4712, client_id="plant-line-7-0", **long, **busy),
            worker(1, pid=4713, client_id="plant-line-7-1", **(long | {"cpu": 93.0}), **busier),
            worker(2, pid=9120, client_id="plant-line-7-2", state="not ready", problems=[away], **young),
        )
        async with FakeSupervisor(*workers, pid=4711, instance="line-7", uptime=11_101.0).listening(directory):
            assert (await run(mqttapi, "ps")).stdout == shown

    async def test_json_is_what_the_supervisors_say(self, mqttapi: CommandLine, directory: Path) -> None:
        one, other = FakeSupervisor(worker()), FakeSupervisor(app="other")
        async with one.listening(directory), other.listening(directory):
            done = await run(mqttapi, "ps", "--json")
            assert json.loads(done.stdout) == [other.said, one.said]
            done = await run(mqttapi, "ps", "--json", "--app", "plant", "--instance", "host", "--pid", str(PID))
            assert json.loads(done.stdout) == [one.said]

    async def test_several_apps_are_parted_by_an_empty_line(self, mqttapi: CommandLine, directory: Path) -> None:
        async with FakeSupervisor(worker()).listening(directory), FakeSupervisor(app="other").listening(directory):
            done = await run(mqttapi, "ps")
        assert [line[:5] for line in done.stdout.splitlines()] == ["other", "slot ", "", "plant", "slot ", "   0 "]

    def test_nothing_runs(self, mqttapi: CommandLine, directory: Path) -> None:
        done = mqttapi("ps")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"mqttapi: no app runs here: there is none in {directory}\n"
        assert mqttapi("ps", "--json").stdout == "[]\n"

    def test_the_directory_may_come_from_an_env_file(self, mqttapi: CommandLine, directory: Path) -> None:
        del mqttapi.environment["MQTTAPI_RUNTIME_DIR"]
        mqttapi.write("prod.env", f"MQTTAPI_RUNTIME_DIR={directory}/own\n")
        assert mqttapi("ps", "--env-file", "prod.env").stderr.endswith(f"there is none in {directory}/own\n")

    def test_one_that_does_not_answer_is_named(self, silent: Path, in_process: InProcess) -> None:
        code, _, said = in_process("ps")
        assert code == 1
        assert said == [
            f"mqttapi: process 77 does not answer on '{silent}': it stands still, or is of another version",
            f"mqttapi: no app runs here: there is none in {silent.parent}",
        ]

    async def test_users_code_is_not_imported(self, mqttapi: CommandLine, directory: Path) -> None:
        mqttapi.write("main.py", "raise RuntimeError")
        async with FakeSupervisor(worker()).listening(directory):
            assert (await run(mqttapi, "ps")).returncode == 0


class TestCommands:
    async def test_scale(self, mqttapi: CommandLine, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory):
            done = await run(mqttapi, "scale", "3")
        assert (done.returncode, done.stdout, done.stderr) == (0, "3 workers\n", "")
        assert supervisor.said["size"] == 3

    async def test_what_the_supervisor_refuses_is_wrong_usage(self, mqttapi: CommandLine, directory: Path) -> None:
        async with FakeSupervisor(worker()).listening(directory):
            done = await run(mqttapi, "scale", "0")
        assert (done.returncode, done.stderr) == (2, "mqttapi: scale: 1 to 512 workers, got 0\n")

    async def test_what_fails_there_has_failed(self, mqttapi: CommandLine, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())

        async def reload() -> str:
            raise MQTTAPIError("slot 1 did not become ready")

        supervisor.reload = reload  # type: ignore[method-assign]  # what can fail
        async with supervisor.listening(directory):
            done = await run(mqttapi, "reload")
        assert (done.returncode, done.stderr) == (1, "mqttapi: slot 1 did not become ready\n")

    async def test_reload_waits_and_ctrl_c_takes_nothing_back(self, mqttapi: CommandLine, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        supervisor.may_reload.clear()
        async with supervisor.listening(directory):
            command = mqttapi.start("reload")
            await supervisor.reloading.wait()
            assert await in_thread(lambda: command.stop(signal.SIGINT)) == 1
            assert command.output == "mqttapi: not waited for: it goes on, and mqttapi ps shows how far it is\n"
            supervisor.may_reload.set()
            await eventually(lambda: supervisor.reloads == 1)

    async def test_reload_says_what_was_done(self, mqttapi: CommandLine, directory: Path) -> None:
        async with FakeSupervisor(worker()).listening(directory):
            done = await run(mqttapi, "reload")
        assert (done.returncode, done.stdout) == (0, "reloaded\n")

    async def test_stop_waits_for_the_end(self, mqttapi: CommandLine, directory: Path) -> None:
        with in_a_process(directory) as (child, _):
            done = await run(mqttapi, "stop")
            assert (done.returncode, done.stdout) == (0, f"plant-host (pid {child.pid}) has ended\n")
            assert child.poll() == 0

    async def test_stop_without_waiting(self, mqttapi: CommandLine, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory):
            done = await run(mqttapi, "stop", "--no-wait")
            assert supervisor.stopped.is_set()
        assert (done.returncode, done.stdout) == (0, f"plant-host (pid {PID}) drains\n")


class TestWhichOne:
    @pytest.mark.parametrize("command", ["scale 2", "reload", "stop", "top --once"])
    def test_none_runs(self, mqttapi: CommandLine, directory: Path, command: str) -> None:
        done = mqttapi(*command.split())
        assert (done.returncode, done.stderr) == (1, f"mqttapi: no app runs here: there is none in {directory}\n")

    async def test_several_run(self, mqttapi: CommandLine, directory: Path) -> None:
        one, other = FakeSupervisor(worker()), FakeSupervisor(worker(), instance="b")
        async with one.listening(directory), other.listening(directory):
            done = await run(mqttapi, "scale", "2")
            assert done.returncode == 2
            assert done.stderr == (
                "mqttapi: several apps run here, say which with --app, --instance or --pid: "
                f"plant-b (pid {PID}), plant-host (pid {PID})\n"
            )
            assert (await run(mqttapi, "scale", "2", "--instance", "b")).returncode == 0
        assert (one.said["size"], other.said["size"]) == (1, 2)

    async def test_another_one_runs(self, mqttapi: CommandLine, directory: Path) -> None:
        async with FakeSupervisor(worker()).listening(directory):
            done = await run(mqttapi, "stop", "--app", "plan")
        assert (done.returncode, done.stderr) == (
            2,
            f"mqttapi: no app that runs here is meant by --app, --instance and --pid: there is plant-host (pid {PID})\n",
        )

    def test_the_one_that_is_meant_stands_still(self, silent: Path, in_process: InProcess) -> None:
        code, _, said = in_process("stop", "--pid", "77")
        assert code == 1
        assert said == [f"mqttapi: process 77 does not answer on '{silent}': it stands still, or is of another version"]
