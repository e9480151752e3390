from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from mqttapi.config import ClientIdInUse, ClientLock, runtime_dir
from mqttapi.errors import ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")

HOLDER = """
import anyio, sys
from pathlib import Path
from mqttapi.config.lock import ClientLock

async def main():
    async with ClientLock("plant-host-0", Path(sys.argv[1])) as lock:
        if "draining" in sys.argv:
            lock.draining()
        print("held", flush=True)
        sys.stdin.read()

anyio.run(main)
"""


def holder(directory: Path, *flags: str) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


class TestClientLock:
    async def test_a_second_owner_learns_the_pid_at_once(self, tmp_path: Path) -> None:
        with holder(tmp_path) as other:
            lock = ClientLock("plant-host-0", tmp_path, wait=60)
            with pytest.raises(ClientIdInUse) as caught:
                await lock.acquire()
            assert caught.value.pid == other.pid
            assert str(caught.value) == (
                f"client id 'plant-host-0' is in use by process {other.pid} on this machine ({lock.path}): "
                "stop that one, or give this one its own MQTT_INSTANCE"
            )
            other.communicate()

    async def test_on_a_full_disk_it_holds_and_does_not_say_by_whom(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        async with ClientLock("plant-host-0", tmp_path):
            with pytest.raises(ClientIdInUse, match="is in use by another process on this machine"):
                await ClientLock("plant-host-0", tmp_path).acquire()
        async with ClientLock("plant-host-0", tmp_path):
            pass

    async def test_a_draining_holder_is_waited_for(self, tmp_path: Path) -> None:
        with holder(tmp_path, "draining") as other:
            lock = ClientLock("plant-host-0", tmp_path, wait=30)
            async with anyio.create_task_group() as group:
                group.start_soon(lock.acquire)
                await anyio.wait_all_tasks_blocked()
                assert other.stdin is not None
                other.stdin.close()
            lock.release()

    async def test_a_draining_holder_is_not_waited_for_without_end(self, tmp_path: Path) -> None:
        with holder(tmp_path, "draining") as other:
            with pytest.raises(ClientIdInUse, match=rf"process {other.pid} .* was draining and did not end within 0 s"):
                await ClientLock("plant-host-0", tmp_path, wait=0).acquire()
            other.communicate()

    async def test_the_lock_of_a_killed_process_is_free(self, tmp_path: Path) -> None:
        with holder(tmp_path) as other:
            other.send_signal(signal.SIGKILL)
            other.wait()
        async with ClientLock("plant-host-0", tmp_path) as lock:
            assert lock.path.read_text().strip() == str(os.getpid())

    async def test_two_apps_of_one_process_exclude_each_other(self, tmp_path: Path) -> None:
        async with ClientLock("a", tmp_path):
            with pytest.raises(ClientIdInUse, match=rf"by another app of this process \({os.getpid()}\)"):
                await ClientLock("a", tmp_path).acquire()

    async def test_a_released_lock_can_be_taken_again(self, tmp_path: Path) -> None:
        for _ in range(2):
            async with ClientLock("a", tmp_path):
                pass

    async def test_other_ids_and_other_brokers_do_not_collide(self, tmp_path: Path) -> None:
        async with (
            ClientLock("a", tmp_path, broker="h:1"),
            ClientLock("a", tmp_path, broker="h:2"),
            ClientLock("a:b", tmp_path),
            ClientLock("a.b", tmp_path),
            ClientLock("x" * 5000, tmp_path),
        ):
            pass

    async def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^cannot open the lock file '.*': No such file or directory; set MQTT"
        ):
            await ClientLock("a", tmp_path / "nope").acquire()


class TestRuntimeDir:
    def test_it_is_made_for_the_user_alone(self, tmp_path: Path) -> None:
        assert runtime_dir(tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700

    def test_the_default_is_beneath_xdg_runtime_dir(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert runtime_dir() == tmp_path / "mqttapi"

    def test_else_it_is_one_per_user_in_the_temporary_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert runtime_dir() == tmp_path / f"mqttapi-{os.geteuid()}"

    def test_a_link_in_the_temporary_directory_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / f"mqttapi-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="is not a directory; set MQTTAPI_RUNTIME_DIR"):
            runtime_dir()

    def test_one_that_others_may_write_to_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(ConfigurationError, match=r"others may write to .* \(mode 0777\): chmod 700 it"):
            runtime_dir(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a directory away")
    def test_one_of_someone_else_is_refused(self, tmp_path: Path) -> None:
        os.chown(tmp_path, 12345, -1)
        with pytest.raises(ConfigurationError, match="belongs to user id 12345, not to 0; set MQTTAPI_RUNTIME_DIR"):
            runtime_dir(tmp_path)

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match="cannot make the runtime directory"):
            runtime_dir(tmp_path / "file")
