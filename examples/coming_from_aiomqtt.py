"""What a loop over messages with a match statement becomes."""

from pydantic import BaseModel

from mqttapi import App, Message, Publisher

app = App("plant")


class Reading(BaseModel):
    celsius: float


@app.topic("sensors/<device_id>/temperature")
async def temperature(device_id: str, reading: Reading, publisher: Publisher) -> None:
    if reading.celsius > 80:
        await publisher.publish("alerts/<id>", "too hot", params={"id": device_id})


@app.topic("sensors/+/status", qos=0, retained="new")
async def status(message: Message, payload: str) -> None:
    print(f"{message.topic}: {payload}")


if __name__ == "__main__":
    app.run(broker="mqtt://localhost")
