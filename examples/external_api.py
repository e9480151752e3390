"""An HTTP API that handlers call: opened once, injected by its type, replaced in tests."""

from collections.abc import AsyncIterator

import httpx
from pydantic import BaseModel

from mqttapi import App, RetryLater

app = App("plant")


class Reading(BaseModel):
    temperature: float


@app.resource
async def open_api() -> AsyncIterator[httpx.AsyncClient]:
    """One client with its pool of connections for as long as the app runs."""
    async with httpx.AsyncClient(base_url="https://weather.example", timeout=5) as client:
        yield client


@app.topic("sensors/<device_id>/data")
async def forward(device_id: str, reading: Reading, api: httpx.AsyncClient) -> None:
    response = await api.post("/readings", json={"device": device_id, "temperature": reading.temperature})
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise RetryLater(0.5)  # once more in half a second; meanwhile the message stays unacknowledged
    response.raise_for_status()
