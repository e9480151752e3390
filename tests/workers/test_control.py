"""The control socket: a real one, with a supervisor that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio.to_thread import run_sync

from mqttapi.errors import ConfigurationError, MQTTAPIError
from mqttapi.workers import control
from mqttapi.workers.control import ControlError, ControlServer, Supervisor, SupervisorGone, ask, supervisors
from tests.support.supervised import FakeSupervisor, in_a_process, short_directory, worker
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")


@pytest.fixture
def directory() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def process(directory: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with in_a_process(directory) as both:
        yield both


async def in_thread(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """The client blocks; the server is in this loop."""
    return await run_sync(partial(function, *arguments, **keywords))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def only(path: Path | None) -> Path:
    assert path is not None
    return path


async def raw(path: Path | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(only(path))


class TestTheFile:
    async def test_only_its_owner_may_use_it(self, directory: Path) -> None:
        async with FakeSupervisor().listening(directory) as server:
            status = only(server.path).stat()
            assert stat.S_ISSOCK(status.st_mode)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())

    async def test_it_is_named_after_app_instance_and_process(self, directory: Path) -> None:
        async with FakeSupervisor().listening(directory) as server:
            assert server.path == directory / f"plant-host.{os.getpid()}.sock"
            assert names(directory) == [only(server.path).name]

    @pytest.mark.parametrize("name", ["a/../b", "größe", "x" * 300, "a\0b"])
    async def test_other_characters_and_long_names_are_replaced_and_told_apart_by_a_hash(
        self, directory: Path, name: str
    ) -> None:
        paths = []
        for each in (name, f"{name}!"):
            async with ControlServer(FakeSupervisor(worker()), directory, each) as server:
                paths.append(only(server.path))
                assert (await in_thread(ask, server.path, "state"))["app"] == "plant"
        assert paths[0].name != paths[1].name
        for path in paths:
            assert path.parent == directory
            assert path.name.isascii()
            assert len(os.fsencode(path)) <= 103

    async def test_it_is_named_anew_once_the_app_is_known(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with ControlServer(supervisor, directory, "main:app") as server:
            assert await in_thread(ask, server.path, "state") == supervisor.said
            server.rename("plant-host")
            assert names(directory) == [f"plant-host.{os.getpid()}.sock"]
            assert await in_thread(ask, server.path, "state") == supervisor.said
        assert names(directory) == []

    async def test_in_a_directory_that_is_too_long_the_supervisor_goes_on_without(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        long = tmp_path / ("d" * 100)
        long.mkdir()
        async with FakeSupervisor().listening(long) as server:
            assert server.path is None
        (said,) = caplog.messages
        assert said == (
            "no control socket, so mqttapi ps, scale, reload and stop do not find this app: the runtime directory "
            f"{str(long)!r} is too long for a Unix socket, whose path has at most 103 bytes: set MQTTAPI_RUNTIME_DIR to "
            "a shorter one"
        )

    async def test_in_a_directory_that_is_not_there_the_supervisor_goes_on_without(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with FakeSupervisor().listening(directory / "no") as server:
            assert server.path is None
        assert "No such file or directory" in caplog.text

    async def test_what_a_killed_process_with_the_same_number_left_is_replaced(self, directory: Path) -> None:
        for name in ("sock", "new"):
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(directory / f"plant-host.{os.getpid()}.{name}"))
        async with FakeSupervisor(worker()).listening(directory) as server:
            assert len(await in_thread(ask, server.path, "state")) > 1
        assert names(directory) == []

    @pytest.mark.parametrize("failure", [None, RuntimeError, asyncio.CancelledError])
    async def test_it_is_removed_at_the_end_whatever_that_is(
        self, directory: Path, failure: type[BaseException] | None
    ) -> None:
        try:
            async with FakeSupervisor().listening(directory):
                if failure:
                    raise failure
        except BaseException as error:
            if failure is None or not isinstance(error, failure):
                raise
        assert names(directory) == []

    async def test_who_has_removed_it_is_no_trouble_at_the_end(self, directory: Path) -> None:
        async with FakeSupervisor().listening(directory) as server:
            only(server.path).unlink()


class TestRequests:
    async def test_a_line_of_json_is_answered_by_one(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory) as server:
            reader, writer = await raw(server.path)
            for _ in range(2):
                writer.write(b'{"command": "state"}\n')
                assert json.loads(await reader.readline()) == {"ok": supervisor.said}
            writer.close()

    @pytest.mark.parametrize(
        ("request_", "text"),
        [
            (b"state", "a request is a JSON object on one line"),
            (b"[1]", "a request is a JSON object on one line"),
            (b"\xff", "a request is a JSON object on one line"),
            (b'{"command": "x"}', 'this version does not understand the request {"command": "x"}'),
            (b'{"command": "scale", "size": "3"}', "this version does not understand the request "),
            (b'{"command": "stop", "hard": true}', "this version does not understand the request "),
            (b"[" * 4000, "RecursionError"),
            (b"x" * 5000, "a request has at most 4096 bytes"),
        ],
    )
    async def test_what_is_no_request_is_an_error_and_nothing_else(
        self, directory: Path, request_: bytes, text: str
    ) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory) as server:
            reader, writer = await raw(server.path)
            writer.write(request_ + b"\n")
            answer = json.loads(await reader.readline())
            assert text in answer["text"]
            assert not supervisor.stopped.is_set()
            assert await in_thread(ask, server.path, "state") == supervisor.said
            writer.close()

    async def test_scale_and_reload_answer_when_they_are_done(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory) as server:
            assert await in_thread(ask, server.path, "scale", size=3) == "3 workers"
            assert supervisor.said["size"] == 3
            supervisor.may_reload.clear()
            asked = asyncio.create_task(in_thread(ask, server.path, "reload"))
            await supervisor.reloading.wait()
            assert not asked.done()
            supervisor.may_reload.set()
            assert await asked == "reloaded"

    async def test_others_are_answered_meanwhile(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        supervisor.may_reload.clear()
        async with supervisor.listening(directory) as server:
            asked = asyncio.create_task(in_thread(ask, server.path, "reload"))
            await supervisor.reloading.wait()
            states = await asyncio.gather(*(in_thread(ask, server.path, "state") for _ in range(5)))
            assert states == [supervisor.said] * 5
            supervisor.may_reload.set()
            await asked

    async def test_a_configuration_error_is_one_for_the_client_too(self, directory: Path) -> None:
        async with FakeSupervisor().listening(directory) as server:
            with pytest.raises(ConfigurationError, match=r"^scale: 1 to 512 workers, got 0$"):
                await in_thread(ask, server.path, "scale", size=0)

    async def test_any_other_failure_is_told_and_where_it_is_a_bug_logged(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        supervisor = FakeSupervisor()
        failures = iter((MQTTAPIError("slot 1 did not start"), ValueError("oops")))

        async def reload() -> str:
            raise next(failures)

        supervisor.reload = reload  # type: ignore[method-assign]  # what else could fail
        async with supervisor.listening(directory) as server:
            with pytest.raises(ControlError, match=r"^slot 1 did not start$"):
                await in_thread(ask, server.path, "reload")
            assert caplog.messages == []
            with pytest.raises(ControlError, match=r"^ValueError: oops$"):
                await in_thread(ask, server.path, "reload")
            assert caplog.messages == ["a request on the control socket has failed"]

    async def test_a_client_that_goes_away_takes_back_nothing(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        supervisor.may_reload.clear()
        async with supervisor.listening(directory) as server:
            _, half = await raw(server.path)
            half.write(b'{"command": "st')
            _, asked = await raw(server.path)
            asked.write(b'{"command": "reload"}\n')
            await supervisor.reloading.wait()
            half.transport.abort()
            asked.transport.abort()
            supervisor.may_reload.set()
            await eventually(lambda: supervisor.reloads)
            assert await in_thread(ask, server.path, "state") == supervisor.said
            await eventually(lambda: not server._clients)

    async def test_who_asks_nothing_is_not_kept_for_ever(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "_IDLE", 0.01)
        async with FakeSupervisor().listening(directory) as server:
            reader, writer = await raw(server.path)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    async def test_who_does_not_read_its_answer_is_not_kept_for_ever(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(control, "_IDLE", 0.1)
        supervisor = FakeSupervisor(worker(problems=["x" * 10_000_000]))
        async with supervisor.listening(directory) as server:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(server.path))
                connection.sendall(b'{"command": "state"}\n')
                await eventually(lambda: server._clients)
                await eventually(lambda: not server._clients)
        assert caplog.messages == []

    @pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be somebody else, on Linux")
    async def test_another_user_is_refused_even_where_the_file_would_let_them(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        script = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setuid(65534); s.connect(sys.argv[1]); "
            's.sendall(b\'{"command": "stop"}\\n\'); print(s.makefile().readline())'
        )
        async with supervisor.listening(directory) as server:
            directory.chmod(0o755)
            only(server.path).chmod(0o666)
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-c", script, str(server.path)), stdout=subprocess.PIPE
            )
            out, _ = await child.communicate()
        assert json.loads(out)["text"] == "this app belongs to user id 0, not to 65534"
        assert not supervisor.stopped.is_set()


class TestFinding:
    async def test_those_that_answer_are_listed_with_their_state(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory) as server:
            found = await in_thread(supervisors, directory)
            assert found == [Supervisor(only(server.path), os.getpid(), supervisor.said)]
        assert await in_thread(supervisors, directory) == []

    def test_the_socket_of_a_killed_one_is_removed(
        self, directory: Path, process: tuple[subprocess.Popen[str], Path]
    ) -> None:
        child, path = process
        assert [each.pid for each in supervisors(directory)] == [child.pid]
        child.kill()
        child.wait()
        assert path.exists()
        assert supervisors(directory) == []
        assert not path.exists()

    def test_what_else_is_in_the_directory_is_left_alone(self, directory: Path) -> None:
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(str(directory / "mosquitto.sock"))
        (directory / "plant-host-0.lock").touch()
        assert supervisors(directory) == []
        assert names(directory) == ["mosquitto.sock", "plant-host-0.lock"]

    def test_one_that_stands_still_is_listed_without_a_state(
        self, directory: Path, process: tuple[subprocess.Popen[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child, path = process
        monkeypatch.setattr(control, "_PATIENCE", 0.1)
        child.send_signal(signal.SIGSTOP)
        assert supervisors(directory) == [Supervisor(path, child.pid, {})]
        with pytest.raises(ControlError, match=r"no answer on '.*' within 0.1 s: does its process stand still\?"):
            ask(path, "state")

    @pytest.mark.parametrize("answer", [b"HTTP/1.0 400\n", b"[]\n", b'{"ok": 1}\n', b'{"error": 1}\n'])
    async def test_what_is_no_supervisor_has_no_state(self, directory: Path, answer: bytes) -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(answer)
            await writer.drain()
            writer.close()

        path = directory / "other.1.sock"
        async with await asyncio.start_unix_server(other, path):
            assert await in_thread(supervisors, directory) == [Supervisor(path, 1, {})]


class TestTheEnd:
    def test_who_asks_one_that_is_killed_is_told(self, process: tuple[subprocess.Popen[str], Path]) -> None:
        child, path = process
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"command": "reload"}\n')
            child.kill()
            with pytest.raises(SupervisorGone):
                control._asked(connection, path, {"command": "reload"})

    def test_stop_waits_for_the_process_to_end(
        self, directory: Path, process: tuple[subprocess.Popen[str], Path]
    ) -> None:
        child, _ = process
        (found,) = supervisors(directory)
        control.stop(found, wait=True)
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    async def test_stop_without_waiting_returns_at_once(self, directory: Path) -> None:
        supervisor = FakeSupervisor(worker())
        async with supervisor.listening(directory):
            (found,) = await in_thread(supervisors, directory)
            await in_thread(control.stop, found, wait=False)
            assert supervisor.stopped.is_set()

    async def test_requests_that_go_on_end_with_the_supervisor(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        supervisor = FakeSupervisor(worker())
        supervisor.may_reload.clear()
        async with supervisor.listening(directory) as server:
            path = only(server.path)
            asked = asyncio.create_task(in_thread(ask, path, "reload"))
            await supervisor.reloading.wait()
        with pytest.raises(SupervisorGone, match=r"^the app behind '.*' has ended$"):
            await asked
        assert caplog.messages == []
