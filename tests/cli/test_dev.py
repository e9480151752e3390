"""`mqttapi dev`: one command, broker included."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from mqttapi.cli import embedded
from tests.support.process import executable
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine, Running
    from tests.support.mosquitto import Mosquitto

APP = """\
from mqttapi import App

app = App("plant", broker="mqtt://127.0.0.1:1")

@app.topic("dev/<id>")
async def handle(id: str, payload: str) -> None:
    print("VERSION", "got", payload, flush=True)
"""


def _started(mqttapi: CommandLine) -> tuple[Running, int]:
    executable("mosquitto")
    mqttapi.write("main.py", APP.replace("VERSION", "one"))
    command = mqttapi.start("dev")
    command.wait_for("connected to")
    found = re.search(
        r"^broker mqtt://127\.0\.0\.1:(\d+) \(mosquitto, ends with this command\)$", command.output, re.MULTILINE
    )
    assert found, command.output
    return command, int(found[1])


def test_the_printed_lines_work_as_they_are(mqttapi: CommandLine) -> None:
    command, _ = _started(mqttapi)
    pub, sub = (line.split() for line in command.output.splitlines() if line.startswith("  mqttapi "))
    assert sub[1] == "sub"
    topic = pub.index("some/topic")
    assert mqttapi(*pub[1:topic], "dev/7", "hello").returncode == 0
    command.wait_for("one got hello")
    assert command.stop(signal.SIGINT) == 0


def test_ctrl_c_leaves_no_broker_behind(mqttapi: CommandLine) -> None:
    command, port = _started(mqttapi)
    assert command.stop(signal.SIGINT) == 0
    assert not embedded._answers(port)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill_9_leaves_no_broker_behind(mqttapi: CommandLine) -> None:
    command, port = _started(mqttapi)
    command.send(signal.SIGKILL)
    command.wait()
    eventually_sync(lambda: not embedded._answers(port), what="the broker ends")


def test_a_change_is_served_at_once_by_the_same_broker(mqttapi: CommandLine) -> None:
    command, port = _started(mqttapi)
    mqttapi.write("main.py", APP.replace("VERSION", "two"))
    command.wait_for("connected to", times=2)
    mqttapi("pub", "dev/7", "again", "--broker", f"mqtt://127.0.0.1:{port}")
    command.wait_for("two got again")
    assert command.stop() == 0


def test_a_configured_broker_is_used_and_no_other_started(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    command = mqttapi.start("dev", MQTT_URL=shared_mosquitto.url)
    command.wait_for("connected to")
    assert f"broker {shared_mosquitto.url} (yours)" in command.output
    assert command.stop() == 0


def test_the_password_of_a_given_broker_is_shown_nowhere(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    url = shared_mosquitto.url.replace("mqtt://", "mqtt://u:hunter2@")
    command = mqttapi.start("dev", "--broker", url)
    command.wait_for("connected to")
    assert "\n  mqttapi sub '#'\n" in command.output
    assert "hunter2" not in command.output
    assert command.stop() == 0


def test_without_watchfiles_it_says_how_to_install_it_and_runs(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", APP)
    mqttapi.write("blocked/sitecustomize.py", "import sys\nsys.modules['watchfiles'] = None\n")
    path = f"{mqttapi.directory}/blocked:{mqttapi.environment['PYTHONPATH']}"
    command = mqttapi.start("dev", MQTT_URL=shared_mosquitto.url, PYTHONPATH=path)
    command.wait_for("connected to")
    assert "mqttapi: reloading needs watchfiles: pip install 'mqttapi-framework[dev]'" in command.output
    assert command.stop() == 0
    done = mqttapi("run", "--reload", PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == "mqttapi: reloading needs watchfiles: pip install 'mqttapi-framework[dev]'\n"
