"""What a payload can be: the hint decides."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mqttapi import App, Message, Payload, UserProperty

app = App("plant")


class Reading(BaseModel):
    temperature: float = Field(ge=-50, le=200)
    taken_at: datetime | None = None


@dataclass
class Position:
    latitude: float
    longitude: float


class On(BaseModel):
    kind: Literal["on"]


class Dim(BaseModel):
    kind: Literal["dim"]
    level: int = Field(ge=0, le=100)


@app.topic("sensors/<device_id>/data")
async def reading(device_id: str, reading: Reading) -> None:  # JSON, under any name
    print(f"{device_id}: {reading.temperature} °C")


@app.topic("trucks/<truck>/position")
async def position(truck: str, position: Position) -> None:  # a dataclass, likewise
    print(f"{truck} is at {position.latitude} {position.longitude}")


@app.topic("lamps/<lamp>/set")
async def lamp(lamp: str, command: Annotated[On | Dim, Field(discriminator="kind")]) -> None:
    print(f"{lamp}: {command}")


@app.topic("batches/<device_id>")
async def batch(device_id: str, readings: list[Reading]) -> None:
    print(f"{len(readings)} readings of {device_id}")


@app.topic("counters/<device_id>")
async def counter(device_id: str, payload: int) -> None:  # a number: only when called `payload` …
    print(f"{device_id} counted {payload}")


@app.topic("setpoints/<device_id>")
async def setpoint(device_id: str, celsius: Annotated[float, Payload()]) -> None:  # … or marked
    print(f"{device_id} shall have {celsius} °C")


@app.topic("notes/<device_id>")
async def note(device_id: str, payload: str) -> None:  # UTF-8 text, never JSON
    print(f"{device_id} notes {payload!r}")


@app.topic("images/<device_id>")
async def image(device_id: str, data: bytes, tenant: Annotated[str, UserProperty("tenant")]) -> None:
    print(f"{len(data)} bytes of {device_id}, which belongs to {tenant}")


@app.topic("retained/<device_id>")
async def cleared(device_id: str, message: Message, reading: Reading | None) -> None:  # None: the payload was empty
    print(f"{device_id} {'is gone' if reading is None else 'is here'}, retained: {message.retain}")
