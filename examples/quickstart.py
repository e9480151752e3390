"""The program of the README: readings come in, alerts go out."""

from pydantic import BaseModel

from mqttapi import App, Publisher


class Reading(BaseModel):
    temperature: float


app = App("plant")


@app.topic("sensors/<device_id>/data", qos=1, shared=True, workers=3)
async def ingest(device_id: str, reading: Reading, publisher: Publisher) -> None:
    if reading.temperature > 80:
        await publisher.publish("alerts/<id>", reading, params={"id": device_id})
