"""`mqttapi run --reload`: a fresh interpreter after each change."""

from __future__ import annotations

import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.command_line import is_alive
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine
    from tests.support.mosquitto import Mosquitto

APP = """\
import contextlib, os
from mqttapi import App

@contextlib.asynccontextmanager
async def lifespan(app):
    print(f"version @ up in {os.getpid()}", app.session.persistent, flush=True)
    yield
    print(f"version @ down", flush=True)

app = App("plant", lifespan=lifespan)
"""


def _app(number: int) -> str:
    return APP.replace("@ ", f"{number} ")


def test_a_change_drains_the_app_and_starts_the_new_one(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", _app(1))
    command = mqttapi.start("run", "--reload", "--broker", shared_mosquitto.url)
    command.wait_for("version 1 up")
    command.wait_for("connected to")
    mqttapi.write("main.py", _app(2))
    command.wait_for("version 2 up")
    assert "mqttapi: main.py changed" in command.output
    assert command.output.index("version 1 down") < command.output.index("version 2 up")
    command.wait_for("False", times=2)  # the session is not kept; a line is written in parts
    command.wait_for("connected to", times=2)
    assert command.stop(signal.SIGINT) == 0
    assert "version 2 down" in command.output


def test_a_syntax_error_is_shown_and_waits_for_the_next_change(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", "x = (\n")
    command = mqttapi.start("run", "--reload", "--broker", shared_mosquitto.url)
    command.wait_for("waiting for a change")
    assert "SyntaxError" in command.output
    mqttapi.write("main.py", _app(3))
    command.wait_for("version 3 up")
    command.wait_for("connected to")
    assert command.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_app_does_not_outlive_a_killed_parent(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", _app(1))
    command = mqttapi.start("run", "--reload", "--broker", shared_mosquitto.url)
    command.wait_for("connected to")
    pid = int(command.output.partition("up in ")[2].split()[0])
    command.process.kill()
    command.process.wait()
    eventually_sync(lambda: not is_alive(pid), what="the app ends")
    eventually_sync(lambda: "version 1 down" in command.output, what=lambda: command.output)  # passed on after its end
    assert command.output.count("version 1 up") == 1


ROUTER = """\
from mqttapi import Router

router = Router()

@router.topic("TOPIC")
async def handler() -> None: ...
"""

DISCOVERING = """\
import contextlib
from mqttapi import App

@contextlib.asynccontextmanager
async def lifespan(app):
    print("routes", sorted(route.template.text for route in app.routes), flush=True)
    yield

app = App("plant", discover="app.routers", lifespan=lifespan)
"""


def test_new_changed_and_removed_router_modules_are_picked_up(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", DISCOVERING)
    mqttapi.write("app/routers/a.py", ROUTER.replace("TOPIC", "a"))
    command = mqttapi.start("run", "--reload", "--broker", shared_mosquitto.url)
    command.wait_for("routes ['a']")
    command.wait_for("connected to")
    new = mqttapi.write("app/routers/deep/b.py", ROUTER.replace("TOPIC", "b"))
    command.wait_for("routes ['a', 'b']")
    command.wait_for("connected to", times=2)
    mqttapi.write("app/routers/a.py", ROUTER.replace("TOPIC", "changed"))
    command.wait_for("routes ['b', 'changed']")
    command.wait_for("connected to", times=3)
    new.unlink()
    command.wait_for("routes ['changed']")
    command.wait_for("connected to", times=4)
    assert command.stop() == 0


def test_a_package_that_comes_or_goes_as_a_whole_is_picked_up(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", DISCOVERING)
    mqttapi.write("app/routers/a.py", ROUTER.replace("TOPIC", "a"))
    package = mqttapi.write("aside/b/c.py", ROUTER.replace("TOPIC", "b")).parent
    command = mqttapi.start("run", "--reload", "--broker", shared_mosquitto.url)
    command.wait_for("routes ['a']")
    command.wait_for("connected to")
    package = package.rename(mqttapi.directory / "app/routers/b")
    command.wait_for("routes ['a', 'b']")
    command.wait_for("connected to", times=2)
    shutil.rmtree(package)
    command.wait_for("routes ['a']", times=2)
    command.wait_for("connected to", times=3)
    assert command.stop() == 0
