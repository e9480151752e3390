"""An app as a program of its own, and inside another one."""

from pydantic import BaseModel

from mqttapi import App

app = App("plant", broker="mqtt://localhost")


class Reading(BaseModel):
    temperature: float


@app.topic("sensors/<device_id>/data")
async def ingest(device_id: str, reading: Reading) -> None:
    print(f"{device_id}: {reading.temperature} °C")


async def send_once() -> None:
    """Inside: the body begins when the app is connected and subscribed; at its end what was accepted is handled."""
    async with app.running():
        await app.publish("sensors/7/data", Reading(temperature=20))


if __name__ == "__main__":
    app.run()  # until SIGTERM or Ctrl-C; `await app.serve()` is the same for a program with a loop of its own
