"""`mqttapi check examples.checking:app` has something to say about both routes."""

from pydantic import BaseModel

from mqttapi import App, Message


class Reading(BaseModel):
    temperature: float


app = App("plant", dead_letter="dead/<topic>")


@app.topic("sensors/<device_id>/data", name="ingest", shared=True, workers=3)
async def ingest(device_id: str, reading: Reading | dict[str, object]) -> None:
    print(device_id, reading)


@app.topic("#", name="log", qos=0, dead_letter=None)
async def log(message: Message) -> None:
    print(message.topic)
