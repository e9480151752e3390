"""Routes that belong together."""

from mqttapi import App, Router

devices = Router(prefix="devices/<device_id>")


@devices.topic("data", name="data")
async def data(device_id: str, payload: float) -> None:
    print(f"{device_id}: {payload}")


@devices.topic("status", name="status", qos=0)
async def status(device_id: str, payload: str) -> None:
    print(f"{device_id} is {payload}")


plant = Router(prefix="plant")
plant.include_router(devices, where={"device_id": r"[0-9]+"}, timeout=5)

app = App("plant")
app.include_router(plant, prefix="acme")  # acme/plant/devices/<device_id>/data
