"""`mqttapi run`: a real app, a real broker, real signals."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine

APP = """\
import asyncio
from mqttapi import App

app = App("plant")

@app.topic("run/<id>", qos=1)
async def handle(id: str, payload: bytes) -> None:
    print("begin", id, flush=True)
    await asyncio.sleep(float(payload or b"0"))
    print("end", id, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_app_and_ends_with_0(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto, number: signal.Signals
) -> None:
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--broker", shared_mosquitto.url, "--instance", f"drain-{number}")
    app.wait_for("subscribed")
    mqttapi("pub", "run/slow", "0.3", "--broker", shared_mosquitto.url)
    app.wait_for("begin slow")
    assert app.stop(number) == 0
    assert "end slow" in app.output


def test_logs_are_json_where_asked_and_keep_to_the_level(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--broker", shared_mosquitto.url, "--log-format", "json", "--log-level", "debug")
    app.wait_for("subscribed")
    app.stop()
    levels = {json.loads(line)["level"].lower() for line in app.output.splitlines()}
    assert "debug" in levels


def test_it_runs_on_uvloop_with_the_settings_of_the_env_file(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("prod.env", f"MQTT_URL={shared_mosquitto.url}\nMQTT_INSTANCE=from-file\n")
    mqttapi.write(
        "src/api.py",
        "import asyncio, contextlib\n"
        "from mqttapi import App\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    print('loop', type(asyncio.get_running_loop()).__module__, flush=True)\n"
        "    yield\n"
        "def make():\n"
        "    return App('made', lifespan=lifespan)\n",
    )
    app = mqttapi.start("run", "api:make", "--factory", "--app-dir", "src", "--env-file", "prod.env")
    app.wait_for("connected to")
    assert "loop uvloop" in app.output
    assert "made-from-file-0" in app.output
    assert app.stop() == 0


def test_the_option_goes_before_the_environment(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--broker", shared_mosquitto.url, MQTT_URL="mqtt://127.0.0.1:1")
    app.wait_for("subscribed")
    assert app.stop() == 0


def test_an_app_that_is_refused_for_good_ends_with_1_and_keeps_the_password(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    with Mosquitto(users={"alice": "secret"}) as broker:
        done = mqttapi("run", "--broker", f"mqtt://alice:hunter2@127.0.0.1:{broker.port}", "--log-level", "debug")
    assert done.returncode == 1
    assert "Not authorized (0x87)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_an_error_in_the_lifespan_shows_the_users_frames_only(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write(
        "main.py",
        "import contextlib\n"
        "from mqttapi import App\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    raise RuntimeError('no database')\n"
        "    yield\n"
        "app = App('plant', lifespan=lifespan)\n",
    )
    done = mqttapi("run", "--broker", shared_mosquitto.url)
    assert done.returncode == 1
    frames = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert frames == [f'  File "{mqttapi.directory}/main.py", line 5, in lifespan']
    assert done.stderr.splitlines()[-2:] == [
        "RuntimeError: no database",
        "mqttapi: failed with RuntimeError; --debug shows the whole traceback",
    ]


def test_an_app_that_cannot_be_loaded_ends_with_2(mqttapi: CommandLine) -> None:
    done = mqttapi("run", "nosuch:app")
    assert done.returncode == 2
    assert done.stderr == f"mqttapi: cannot load 'nosuch:app': there is no module 'nosuch' in {mqttapi.directory}\n"


def test_no_password_is_shown_whatever_goes_wrong(mqttapi: CommandLine) -> None:
    mqttapi.write(
        "main.py", "import os\nfrom mqttapi import App\nraise ValueError('cannot use ' + os.environ['MQTT_URL'])\n"
    )
    for arguments in (["run"], ["run", "--debug"]):
        done = mqttapi(*arguments, MQTT_URL="mqtt://u:hunter2@h")
        assert done.returncode == 2
        assert "mqtt://***@h" in done.stderr
        assert "hunter2" not in done.stderr
