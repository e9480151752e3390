"""What a template can say."""

from mqttapi import App

app = App("plant")


@app.topic("sensors/<device_id>/data", name="data")
async def data(device_id: str, payload: float) -> None:
    print(f"{device_id} says {payload}")


@app.topic("lines/<line:int>/state")  # lines/7/state, but not lines/x/state
async def state(line: int, payload: str) -> None:
    print(f"line {line} is {payload}")


@app.topic("meters/<kind>/<meter_id>", where={"kind": {"gas", "water"}, "meter_id": r"[a-z]{2}[0-9]+"})
async def meter(kind: str, meter_id: str, payload: int) -> None:
    print(f"{kind} meter {meter_id}: {payload}")


@app.topic("doors/<door>/<event?>")  # doors/north and doors/north/open
async def door(door: str, event: str | None = None) -> None:
    print(f"door {door}: {event or 'alive'}")


@app.topic("files/<name:path>")  # files/a, files/a/b/c
async def file(name: str, payload: bytes) -> None:
    print(f"{len(payload)} bytes for {name}")


@app.topic("gateways/gw-<number:int>/boot")  # a part of a level
async def boot(number: int) -> None:
    print(f"gateway {number} has started")
