from __future__ import annotations

import httpx
import pytest

from examples.fastapi_app import api, lifespan
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually


async def test_readings_by_mqtt_are_there_by_http_and_orders_go_out(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_URL", mosquitto.url)
    monkeypatch.setenv("MQTT_INSTANCE", "test")
    transport = httpx.ASGITransport(api)
    async with (
        lifespan(api),
        client(mosquitto.url) as device,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        await device.subscribe("devices/7/reboot")
        assert (await http.get("/devices/7")).status_code == 404
        await device.publish("sensors/7/data", '{"temperature": 21}')

        async def reading() -> object:
            answer = await http.get("/devices/7")
            return answer.json() if answer.is_success else None

        assert await eventually(reading) == {"temperature": 21}
        assert (await http.post("/devices/7/reboot")).status_code == 202
        assert (await device.message()).topic == "devices/7/reboot"
