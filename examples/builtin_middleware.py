"""Middleware that comes with MQTTAPI."""

from mqttapi import App, Context, Router
from mqttapi.middleware import AccessLog, Authenticate, Deduplicate, MaxAge, RateLimit, Signature

app = App("plant")
app.add_middleware(AccessLog(0.01))  # one line for one message of a hundred
app.middleware_alias("throttle", RateLimit)
app.middleware_alias("uploads", RateLimit(100, seconds=1, by=None, name="uploads"))  # one limit for all that name it

SECRETS = {"7": "the secret of device 7", "8": "the secret of device 8"}


def secret_of(context: Context) -> str | None:
    return SECRETS.get(context["device_id"])


devices = Router(
    prefix="devices/<device_id>",
    middleware=[Authenticate(Signature(secret=secret_of, identity="device_id"))],
)


@devices.topic("data", name="data", middleware=["throttle:2,1,device_id"])  # each device: 2 in 1 minute
async def data(payload: float, context: Context) -> None:
    print(f"{context['identity']}: {payload} °C")


@devices.topic("orders", name="orders", middleware=["uploads", Deduplicate("property.message-id")])
async def order(device_id: str, article: bytes) -> None:
    print(f"{device_id} orders {article.decode()}")


@devices.topic("open", name="open", middleware=[MaxAge(30, "property.timestamp")])
async def open_door(device_id: str) -> None:
    print(f"the door of {device_id} opens")


app.include_router(devices)
