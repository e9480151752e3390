"""`mqttapi shell`: an app at a prompt, with everything but its messages."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import pytest
from anyio.to_thread import run_sync as in_thread
from sqlalchemy.ext.asyncio import AsyncEngine

from mqttapi import App
from mqttapi.config import Settings
from mqttapi.resources.outbox import Outbox
from mqttapi.service import Service
from mqttapi.testing import TestClient
from tests.support.mqtt import client
from tests.support.process import free_port
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import CommandLine, InProcess
    from tests.support.mosquitto import Mosquitto
    from tests.support.redis import RedisServer

    Ended = tuple[int, str, list[str]]

APP = """\
from contextlib import asynccontextmanager
from mqttapi import App, Controller

class Devices(Controller):
    async def count(self):
        return await self.redis.incr("devices")

@asynccontextmanager
async def lifespan(app):
    app.state.model = "loaded"
    yield
    print("closed", flush=True)

app = App("plant", lifespan=lifespan)

@app.topic("s/<id>", name="reading")
async def ingest(id: str) -> None:
    print("handled", id, flush=True)

def wrong():
    raise ValueError("no good")
"""


@pytest.fixture
def nobody() -> str:
    """The URL of a broker that is not there."""
    return f"mqtt://127.0.0.1:{free_port()}"


@pytest.fixture
def run(in_process: InProcess, nobody: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Ended]]:
    """Runs code in a shell without a broker, within this process: exit code, stdout, and stderr behind its first line."""
    monkeypatch.setitem(os.environ, "MQTT_URL", nobody)
    in_process.write("main.py", APP)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(code: str) -> Ended:
        exit_code, out, err = in_process("shell", "-c", code)
        assert err[0].startswith("mqttapi: there is no publishing: ")
        return exit_code, out, err[1:]

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


# ------------------------------------------------------------------------------------------------- what is at hand


def test_a_command_sees_the_app_with_its_lifespan_and_its_topics(run: Callable[[str], Ended]) -> None:
    code = "print(app.state.model, topic_for('reading', id=7), [route.name for route in routes], settings.keepalive)"
    assert run(code) == (0, "loaded s/7 ['reading'] 60\nclosed\n", [])


def test_redis_database_and_controllers_are_open(mqttapi: CommandLine, redis_server: RedisServer, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    code = """\
from main import Devices
await Devices().count()
print(await redis.get("devices"))
await db.query("CREATE TABLE t (n INTEGER)")
async with session() as s:
    from sqlalchemy import text
    await s.execute(text("INSERT INTO t VALUES (3)"))
print(await db.query("SELECT n FROM t"))
"""
    done = mqttapi("shell", "--command", code, MQTT_URL=nobody, REDIS_URL=redis_server.url)
    assert done.stdout.splitlines() == ["b'1'", "[{'n': 3}]", "closed"], done.stderr


def test_what_is_not_configured_says_so_when_it_is_used(run: Callable[[str], Ended]) -> None:
    said = "<shell>:1: REDIS_URL is not set. Set it, such as REDIS_URL=redis://localhost:6379/0"
    assert run("await redis.get('x')") == (1, "closed\n", [said])


def test_a_resource_that_the_app_needs_and_that_is_away_is_one_line(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP + "\napp.on('d', Devices.count)\n")
    done = mqttapi("shell", "-c", "pass", MQTT_URL=nobody, REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mqttapi: Redis at 127.0.0.1:")


def test_the_app_says_that_it_takes_no_messages(run: Callable[[str], Ended]) -> None:
    _, out, _ = run("print(app.readiness, app.stats.received)")
    assert out.splitlines()[0] == "('the app takes no messages',) 0"


async def test_the_outbox_is_left_to_those_that_handle_messages(tmp_path: Path) -> None:
    app = App(settings=Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/app.db"))

    @app.topic("orders")
    async def order(outbox: Outbox) -> None: ...

    service = Service(app)
    async with service.idle(TestClient(app)):
        assert service.backends.relay is None
        assert app.opened(AsyncEngine) is not None


# ------------------------------------------------------------------------------------------------------ publishing


async def test_it_publishes_with_a_client_id_of_its_own_and_takes_no_message(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """The app runs, and neither its connection nor its messages are touched."""
    mqttapi.write("main.py", APP)
    mqttapi.environment |= {"MQTT_URL": mosquitto.url, "MQTT_INSTANCE": "host"}
    app = mqttapi.start("run")
    await in_thread(lambda: app.wait_for("subscribed"))
    code = """\
print((await publish("s/1", "one")).topic)
publish_later = app.publish_nowait("s/2", "two")
import os
print(f"plant-host-shell-{os.getpid()}-pub")
"""
    done = await in_thread(lambda: mqttapi("shell", "-c", code))
    assert (done.returncode, done.stderr) == (0, "")
    topic, client_id, end = done.stdout.splitlines()
    assert (topic, end) == ("s/1", "closed")
    await in_thread(lambda: app.wait_for("handled 2"))
    assert app.output.count("handled") == 2
    assert app.output.count("subscribed") == 1
    log = mosquitto.log()
    assert f"as {client_id} " in log
    assert f"{client_id.removesuffix('-pub')} 1 s/" not in log
    assert await in_thread(app.stop) == 0


async def test_what_waits_in_the_session_is_left_to_the_app(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    mqttapi.environment |= {"MQTT_URL": mosquitto.url, "MQTT_INSTANCE": "host"}
    app = mqttapi.start("run")
    await in_thread(lambda: app.wait_for("subscribed"))
    assert await in_thread(app.stop) == 0
    async with client(mosquitto.url) as publisher:
        await publisher.publish("s/1", b"", qos=1)
    done = await in_thread(lambda: mqttapi("shell", "-c", "await publish('other', 1)"))
    assert (done.returncode, done.stdout) == (0, "closed\n")
    again = mqttapi.start("run")
    await in_thread(lambda: again.wait_for("handled 1"))
    assert await in_thread(again.stop) == 0


def test_without_a_broker_it_says_so_and_goes_on(in_process: InProcess, run: object, nobody: str) -> None:
    why = f"cannot connect to {nobody}: Connection refused"
    assert in_process("shell", "-c", "print('on')\nawait publish('s/1', 'x')") == (
        1,
        "on\nclosed\n",
        [
            f"mqttapi: there is no publishing: {why}. It is tried again in the background",
            "Traceback (most recent call last):",
            '  File "<shell>", line 2, in <module>',
            "    await publish('s/1', 'x')",
            f"mqttapi.errors.NotConnected: publish to 's/1': {why}",
        ],
    )


async def test_publishing_is_there_as_soon_as_the_broker_is(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    mosquitto.stop()
    mqttapi.environment |= {"MQTT_URL": mosquitto.url}
    code = """\
import asyncio
from mqttapi.errors import NotConnected
print("begun", flush=True)
while True:
    try:
        print((await publish("s/1", "x")).topic)
        break
    except NotConnected:
        await asyncio.sleep(0.01)
"""
    shell = mqttapi.start("shell", "-c", code)
    await in_thread(lambda: shell.wait_for("begun"))
    mosquitto.start()
    assert await in_thread(shell.wait) == 0
    assert "s/1\n" in shell.output


# ------------------------------------------------------------------------------------------------ how it comes, and ends


def test_code_from_a_pipe_is_run_as_one_program(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    program = b"for n in range(2):\n    print(n)\n\nasync def three():\n    return 3\n\nprint(await three())\n"
    done = mqttapi("shell", stdin=program, MQTT_URL=nobody)
    assert (done.returncode, done.stdout) == (0, "0\n1\n3\nclosed\n")


def test_what_is_raised_is_shown_without_our_frames_and_ends_with_1(run: Callable[[str], Ended]) -> None:
    code, _, err = run("import main\nmain.wrong()")
    assert code == 1
    assert [line for line in err if line.strip("~^ ")] == [
        "Traceback (most recent call last):",
        '  File "<shell>", line 2, in <module>',
        "    main.wrong()",
        '  File "DIR/main.py", line 21, in wrong',
        '    raise ValueError("no good")',
        "ValueError: no good",
    ]


@pytest.mark.parametrize("arguments", [("--debug", "shell"), ("shell", "--debug")])
def test_with_debug_our_frames_are_shown_too(run: object, in_process: InProcess, arguments: tuple[str, str]) -> None:
    _, _, err = in_process(*arguments, "-c", "1 / 0")
    assert any("mqttapi/cli/prompt.py" in line for line in err)


@pytest.mark.parametrize(("code", "exit_code"), [("raise SystemExit(5)", 5), ("import sys\nsys.exit(0)", 0)])
def test_a_program_may_say_how_it_ends(run: Callable[[str], Ended], code: str, exit_code: int) -> None:
    assert run(code) == (exit_code, "closed\n", [])


def test_what_is_no_python_is_found_before_anything_is_opened(in_process: InProcess) -> None:
    code, out, err = in_process("shell", "nowhere:app", "-c", "def f(:")
    assert (code, out) == (1, "")
    assert [line.strip() for line in err] == ['File "<shell>", line 1', "def f(:", "^", "SyntaxError: invalid syntax"]


def test_a_target_that_does_not_load_is_one_line(in_process: InProcess) -> None:
    assert in_process("shell", "nowhere:app", "-c", "pass") == (
        2,
        "",
        ["mqttapi: cannot load 'nowhere:app': there is no module 'nowhere' in DIR"],
    )


# ------------------------------------------------------------------------------------------------------- the prompt


class Terminal:
    """The prompt on a terminal of its own."""

    def __init__(self, mqttapi: CommandLine, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mqttapi", "shell"],
            cwd=mqttapi.directory,
            env=mqttapi.environment | {"TERM": "dumb"} | environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def expect(self, text: str) -> str:
        """Wait until it is said; gives all that was said since the last call."""
        eventually_sync(lambda: text in self.read(), within=20, what=lambda: f"{text!r} in:\n{self._said}")
        said, _, self._said = self._said.partition(text)
        return said + text

    def read(self) -> str:
        with contextlib.suppress(OSError):  # nothing now, or nothing any more
            self._said += os.read(self._ours, 65536).decode().replace("\r\n", "\n")
        return self._said

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_the_prompt_tells_what_there_is_and_awaits(
    mqttapi: CommandLine, mosquitto: Mosquitto, redis_server: RedisServer
) -> None:
    mqttapi.write("main.py", APP)
    with Terminal(mqttapi, MQTT_URL=mosquitto.url, REDIS_URL=redis_server.url, MQTT_INSTANCE="host") as terminal:
        banner = terminal.expect(">>> ")
        assert f"{mosquitto.url} as plant-host-shell-{terminal.process.pid}-pub\n" in banner
        assert f"127.0.0.1:{redis_server.port}\n" in banner
        assert "sqlite+aiosqlite:///app.db\n" in banner
        assert "Nothing is subscribed to: no message is taken. Ctrl-D ends this." in banner
        terminal.type("(await publish('s/1', 'x')).qos, await redis.ping()")
        assert "(1, True)" in terminal.expect(">>> ")
        terminal.type("async def half(n):")
        terminal.expect("... ")
        terminal.type("    return n / 2")
        terminal.expect("... ")
        terminal.type("")
        terminal.expect(">>> ")
        terminal.type("await half(8)")
        assert "4.0" in terminal.expect(">>> ")
        terminal.press(b"\x04")
        terminal.expect("closed")
        assert terminal.process.wait(20) == 0


def test_the_prompt_goes_on_after_errors_and_tells_what_is_missing(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    with Terminal(mqttapi, MQTT_URL=nobody) as terminal:
        banner = terminal.expect(">>> ")
        assert "there is no publishing: cannot connect to" in banner
        assert "<not there: REDIS_URL is not set." in banner
        terminal.type("1 / 0")
        assert "ZeroDivisionError: division by zero" in terminal.expect(">>> ")
        terminal.type("def f(:")
        assert "SyntaxError" in terminal.expect(">>> ")
        terminal.type("await publish('a', 1)")
        assert "NotConnected: publish to 'a': cannot connect to" in terminal.expect(">>> ")
        terminal.type("raise SystemExit(4)")
        terminal.expect("closed")
        assert terminal.process.wait(20) == 4


def test_ctrl_c_cancels_what_is_awaited_and_leaves_a_line_but_not_the_prompt(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    with Terminal(mqttapi, MQTT_URL=nobody) as terminal:
        terminal.expect(">>> ")
        terminal.type("import asyncio")
        terminal.expect(">>> ")
        terminal.type("async def wait():\n    print('waits')\n    await asyncio.Event().wait()\n")
        terminal.expect(">>> ")
        terminal.type("await wait()")
        terminal.expect("\nwaits")
        terminal.process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in terminal.expect(">>> ")
        terminal.process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in terminal.expect(">>> ")
        terminal.type("6 * 7")
        assert "42" in terminal.expect(">>> ")


async def test_a_program_that_is_interrupted_ends_the_lifespan(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    code = "import asyncio\nprint('begun', flush=True)\nawait asyncio.Event().wait()"
    shell = mqttapi.start("shell", "-c", code, MQTT_URL=nobody)
    await in_thread(lambda: shell.wait_for("begun"))
    assert await in_thread(lambda: shell.stop(signal.SIGINT)) == 1
    assert "closed" in shell.output
    assert "Traceback" not in shell.output


def test_interrupts_leave_what_blocks_the_loop_behind(mqttapi: CommandLine, nobody: str) -> None:
    mqttapi.write("main.py", APP)
    with Terminal(mqttapi, MQTT_URL=nobody) as terminal:
        terminal.expect(">>> ")
        terminal.type("import threading")
        terminal.expect(">>> ")
        terminal.type("print('blo' + 'cks', flush=True); threading.Event().wait()")
        terminal.expect("blocks")

        def interrupt() -> bool:  # two at once may be one
            terminal.process.send_signal(signal.SIGINT)
            return "KeyboardInterrupt\n>>> " in terminal.read()

        eventually_sync(interrupt, within=20)
