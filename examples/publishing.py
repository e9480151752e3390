"""What an app sends."""

from pydantic import BaseModel

from mqttapi import App, Publish, Publisher

app = App("plant")


class Setpoint(BaseModel):
    celsius: float


@app.topic("rooms/<room>/temperature")
async def regulate(room: str, payload: float, publisher: Publisher) -> None:
    if payload < 19:
        # Returns when the broker has it. A value may not add a level or a wildcard to the topic.
        await publisher.publish("rooms/<room>/heating", Setpoint(celsius=21), params={"room": room}, expiry=60)


@app.topic("doors/<door>/open")
async def alarm(door: str) -> list[Publish]:
    """What is returned is published before the message is acknowledged."""
    return [
        Publish("siren", "on"),
        Publish("log/<door>", {"open": True}, params={"door": door}, user_properties={"level": "warning"}),
    ]
