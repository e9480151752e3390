"""The example of RouteMQ's architecture, as a process, with a broker, a Redis and a database."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.command_line import CommandLine
    from tests.support.mosquitto import Mosquitto
    from tests.support.redis import RedisServer


async def test_routemqs_architecture_runs(
    mosquitto: Mosquitto, redis_server: RedisServer, mqttapi: CommandLine, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "plant.db") as database:
        database.execute("CREATE TABLE devices (id TEXT PRIMARY KEY, highest REAL)")
        database.execute("INSERT INTO devices VALUES ('7', 80)")
    database.close()
    running = mqttapi.start(
        "run", "examples.routemq_architecture:app", MQTT_BROKER="127.0.0.1", MQTT_PORT=str(mosquitto.port),
        MQTT_GROUP_NAME="plant", REDIS_URL=redis_server.url, DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/plant.db",
        DEVICE_TOKEN="the token",
    )  # fmt: skip
    await eventually(lambda: "all 3 workers are ready" in running.output, within=30, what=lambda: running.output)
    async with client(mosquitto.url) as device, Redis.from_url(redis_server.url) as redis:
        for topic in ("alerts/#", "devices/+/restarting", "sensors/seen"):
            await device.subscribe(topic, qos=1)

        async def heard() -> bool:
            return await device.publish("sensors/7/data", b'{"temperature": 20}', qos=1) == 0

        await eventually(heard, within=20, what=lambda: running.output)
        await device.publish("sensors/7/data", b'{"temperature": 81.5}', qos=1)
        await device.publish("sensors/8/data", b'{"temperature": 81.5}', qos=1)
        await device.publish("sensors/data", b"[1, 2, 3]", qos=1)
        await device.publish("devices/7/restart", b'{"reason": "because", "token": "a guess"}', qos=1)
        await device.publish("devices/7/restart", b'{"reason": "tired", "token": "the token"}', qos=1)
        await eventually(lambda: len(device.messages) == 3, what=lambda: running.output)
        got = {message.topic: message.payload for message in device.messages}
        assert json.loads(got.pop("alerts/device")) == {"device": "7", "temperature": 81.5}
        assert got == {"sensors/seen": b"3", "devices/7/restarting": b"tired"}

        async def stored() -> bool:
            return await redis.mget("device:7", "device:8") == [b"81.5", b"81.5"]

        await eventually(stored)
    assert running.stop() == 0, running.output
    assert "not authorised: {'device_id': '7'}" in running.output
