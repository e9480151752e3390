"""The programs that say `workers=3` have three processes."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine
    from tests.support.mosquitto import Mosquitto


async def test_the_messages_of_a_camera_go_to_three_workers(mosquitto: Mosquitto, mqttapi: CommandLine) -> None:
    pool = mqttapi.start("run", "examples.workers:app", "--broker", mosquitto.url)
    await eventually(lambda: "all 3 workers are ready" in pool.output, within=30, what=lambda: pool.output)
    async with client(mosquitto.url) as camera:
        for number in range(12):
            await camera.publish(f"cameras/{number}/images", b'{"width": 640, "height": 480}')
            await camera.publish(f"cameras/{number}/state", b"on")
    await eventually(lambda: pool.output.count(" is on") == 12, what=lambda: pool.output)
    await eventually(lambda: pool.output.count("640 × 480") == 12, what=lambda: pool.output)
    assert await asyncio.to_thread(pool.stop) == 0
    assert set(re.findall(r"worker (\d): 640", pool.output)) == {"0", "1", "2"}
    assert set(re.findall(r"worker (\d): \d+ is on", pool.output)) == {"0"}


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
async def test_the_program_of_the_readme_runs_over_as_many_processes_as_it_says(
    mosquitto: Mosquitto, mqttapi: CommandLine, workers: tuple[str, ...]
) -> None:
    pool = mqttapi.start("run", "examples.quickstart:app", "--broker", mosquitto.url, *workers)
    size = 1 if workers else 3
    await eventually(lambda: pool.output.count("connected to") == size, within=30, what=lambda: pool.output)
    async with client(mosquitto.url) as device:
        await device.subscribe("alerts/#")
        for number in range(9):
            assert await device.publish(f"sensors/{number}/data", b'{"temperature": 90}') == 0
        await device.wait_for(9)
        assert {message.topic for message in device.messages} == {f"alerts/{number}" for number in range(9)}
    assert await asyncio.to_thread(pool.stop) == 0
