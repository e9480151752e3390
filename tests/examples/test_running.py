from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from examples.running import send_once
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually


async def test_an_app_runs_inside_a_function(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_URL", mosquitto.url)
    monkeypatch.setenv("MQTT_INSTANCE", "test")
    async with client(mosquitto.url) as listener:
        await listener.subscribe("sensors/+/data")
        await send_once()
        assert (await listener.message()).payload == b'{"temperature":20.0}'


async def test_an_app_runs_as_a_program_until_sigterm(mosquitto: Mosquitto) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "examples.running"),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"MQTT_URL": mosquitto.url, "MQTT_INSTANCE": "test"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with client(mosquitto.url) as device:

            async def received() -> bool:
                return await device.publish("sensors/7/data", '{"temperature": 20}') == 0  # 0x10: nobody has subscribed

            await eventually(received, within=20)
        assert process.stdout is not None
        assert (await process.stdout.readline()).decode() == "7: 20.0 °C\n"
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
