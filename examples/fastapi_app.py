"""MQTT and HTTP in one program: readings come by MQTT, people ask for them by HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from mqttapi import App, PublishResult

mqtt = App("plant")
latest: dict[str, float] = {}


class Reading(BaseModel):
    temperature: float


@mqtt.topic("sensors/<device_id>/data")
async def ingest(device_id: str, reading: Reading) -> None:
    latest[device_id] = reading.temperature


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    async with mqtt.running():  # connected and subscribed before the first HTTP request, drained after the last
        yield


api = FastAPI(lifespan=lifespan)


@api.get("/devices/{device_id}")
async def device(device_id: str) -> Reading:
    if device_id not in latest:
        raise HTTPException(404)
    return Reading(temperature=latest[device_id])


@api.post("/devices/{device_id}/reboot", status_code=202)
async def reboot(device_id: str) -> PublishResult:
    return await mqtt.publish("devices/<id>/reboot", params={"id": device_id})
