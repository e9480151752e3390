"""Classes whose methods are handlers."""

from pydantic import BaseModel

from mqttapi import App, Controller, Publisher, topic


class Reading(BaseModel):
    temperature: float


class DeviceController(Controller):
    """One object serves all messages; `self.redis`, `self.db`, `self.publish` and `self.logger` are at hand."""

    @topic("data", qos=1, name="data")
    async def data(self, device_id: str, reading: Reading) -> None:
        if reading.temperature > 80:
            await self.publish("alerts/<id>", reading, params={"id": device_id})

    @topic("status")
    @topic("state")
    async def status(self, device_id: str, payload: str) -> None:
        print(f"{device_id} is {payload}")


class AlertController:
    """Any class will do. The constructor asks for something, so each message has an object of its own."""

    def __init__(self, publisher: Publisher, device_id: str) -> None:
        self.publisher = publisher
        self.device_id = device_id

    async def handle(self, reading: Reading) -> None:
        await self.publisher.publish("log/alerts", f"{self.device_id}: {reading.temperature}")


class LoudAlertController(AlertController):
    async def handle_loudly(self) -> None:
        await self.publisher.publish("log/alerts", f"{self.device_id}!")


app = App("plant")
app.controller("devices/<device_id>", DeviceController, name="devices.")
app.on("alerts/<device_id>", AlertController.handle)
app.on("alarms/<device_id>", LoudAlertController.handle_loudly)
app.on("warnings/<device_id>", (LoudAlertController, "handle"))  # an inherited method is named with its class
