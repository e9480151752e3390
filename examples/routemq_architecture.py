"""An application as RouteMQ has them: routers, middleware, controllers, configuration by the environment.

MQTT_BROKER, MQTT_PORT, MQTT_GROUP_NAME, REDIS_URL, DATABASE_URL (with a table `devices`: id, highest) and DEVICE_TOKEN.
"""

import hmac
import os

from mqttapi.contrib.routemq import Application, Controller, Middleware, Router


class Auth(Middleware):
    def __init__(self, token):
        self.token = token

    async def handle(self, context, next_handler):
        payload = context["payload"]
        token = str(payload.get("token")) if isinstance(payload, dict) else ""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            self.logger.warning("not authorised: %s", context["params"])
            return {"error": "not authorised"}  # the message ends here
        return await next_handler(context)


class KnownDevices(Middleware):
    async def handle(self, context, next_handler):
        context["devices"] = await self.db.query("SELECT id, highest FROM devices")  # other messages go on meanwhile
        return await next_handler(context)


class DeviceController(Controller):
    async def handle_data(self, context):
        device_id, temperature = context["device_id"], context["payload"]["temperature"]
        await self.redis.set(f"device:{device_id}", temperature)
        highest = {row["id"]: row["highest"] for row in context["devices"]}
        if temperature > highest.get(device_id, 100):
            await self.publish("alerts/device", {"device": device_id, "temperature": temperature})

    @staticmethod
    async def restart(device_id, payload, client):
        Controller.logger.info("%s restarts", device_id)
        client.publish(f"devices/{device_id}/restarting", payload.get("reason", ""))
        return {"ok": True}


async def count(payload, client, **params):
    client.publish("sensors/seen", len(payload))


router = Router()
router.on("sensors/{device_id}/data", DeviceController.handle_data, qos=1, middleware=[KnownDevices()])
router.on("sensors/data", count, shared=True, worker_count=3)

with router.group(prefix="devices", middleware=[Auth(os.environ.get("DEVICE_TOKEN", "secret"))]) as devices:
    devices.on("{device_id}/restart", DeviceController.restart, qos=1)

app = Application(router)

if __name__ == "__main__":
    app.run()
