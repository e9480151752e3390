"""What an app does before its first and after its last message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mqttapi import App


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    app.state.limits = {"7": 80.0}
    await app.publish("plant/status", "online", retain=True)
    yield
    await app.publish("plant/status", "offline", retain=True)


app = App("plant", lifespan=lifespan)


@app.topic("sensors/<device_id>/temperature")
async def check(device_id: str, payload: float, app: App) -> None:
    if payload > app.state.limits.get(device_id, 60):
        print(f"{device_id} is too hot")
