"""One owner per client id: on one machine by a lock, elsewhere by what the broker says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import mqtt5
import pytest

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine
    from tests.support.fake_broker import FakeBroker
    from tests.support.mosquitto import Mosquitto

APP = """\
import asyncio
from mqttapi import App

app = App("plant")

@app.topic("own/<id>")
async def handle(id: str) -> None:
    print("begin", id, flush=True)
    await asyncio.sleep(1)
    print("end", id, flush=True)
"""


@pytest.mark.parametrize("options", [["run"], ["run", "--reload"], ["dev"]])
def test_a_second_owner_on_this_machine_ends_with_3_and_names_the_first(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto, options: list[str]
) -> None:
    mqttapi.write("main.py", APP)
    first = mqttapi.start("run", "--broker", shared_mosquitto.url)
    first.wait_for("subscribed")
    second = mqttapi(*options, "--broker", shared_mosquitto.url)
    assert second.returncode == 3
    assert (
        f"-0' is in use by process {first.process.pid} (its worker {first.worker()}) on this machine" in second.stderr
    )
    assert "Traceback" not in second.stderr
    assert first.stop() == 0
    assert "connection lost" not in first.output


def test_a_successor_waits_for_one_that_is_about_to_end(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    first = mqttapi.start("run", "--broker", shared_mosquitto.url)
    first.wait_for("subscribed")
    mqttapi("pub", "own/last", "--broker", shared_mosquitto.url)
    first.wait_for("begin last")
    first.process.terminate()
    first.wait_for("finishing what was accepted")
    second = mqttapi.start("run", "--broker", shared_mosquitto.url)
    second.wait_for("subscribed")
    assert first.wait() == 0
    assert "end last" in first.output
    assert second.stop() == 0
    assert "begin" not in second.output


def test_another_instance_is_another_owner(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    apps = [mqttapi.start("run", "--broker", shared_mosquitto.url, "--instance", name) for name in ("a", "b")]
    for app, name in zip(apps, "ab", strict=True):
        app.wait_for(f"as plant-{name}-0, subscribed")
    assert [app.stop() for app in apps] == [0, 0]


async def test_an_app_whose_id_was_taken_over_ends_with_3(mqttapi: CommandLine, fake_broker: FakeBroker) -> None:
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--broker", fake_broker.url, "--instance", "x")
    link = await fake_broker.subscribed()
    await eventually(lambda: "subscribed" in app.output)
    link.send(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER))
    assert await asyncio.to_thread(app.wait) == 3
    assert app.output.count("client id 'plant-x-0' was taken over by another client") == 1
    assert "Traceback" not in app.output
    assert len([each for each in fake_broker.connections if each.client_id == "plant-x-0"]) == 1


async def test_development_keeps_no_session(mqttapi: CommandLine, fake_broker: FakeBroker) -> None:
    mqttapi.write("main.py", APP)
    app = mqttapi.start("run", "--reload", "--broker", fake_broker.url)
    connect = (await fake_broker.subscribed()).received[0].connect
    assert (connect.clean_start, connect.session_expiry_interval) == (True, 0)
    assert await asyncio.to_thread(app.stop) == 0
