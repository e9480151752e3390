"""Middleware as classes, and names for it."""

from mqttapi import App, Context, Middleware, Reject, RouteOptions, Router
from mqttapi.middleware import Endpoint


class Known(Middleware):
    """Rejects what comes from a device that the database does not know."""

    async def handle(self, context: Context, next_handler: Endpoint) -> object:
        rows = await self.db.query("SELECT name, room FROM devices WHERE id = :id", id=context["device_id"])
        if not rows:
            raise Reject("unknown device")
        context["device"] = rows[0]
        return await next_handler(context)


class Scale(Middleware):
    def __init__(self, factor: float, digits: int = 1) -> None:
        self.factor, self.digits = factor, digits

    async def handle(self, context: Context, next_handler: Endpoint) -> object:
        context["payload"] = round(context["payload"] * self.factor, self.digits)
        return await next_handler(context)


app = App("plant")
app.middleware_alias("known", Known)
app.middleware_alias("scale", Scale)
app.middleware_group("device", ["known", "scale:0.1,2"])  # Known(), Scale(0.1, 2)

router = Router(prefix="devices/<device_id>", middleware=["device"])


@router.topic("temperature")
async def temperature(payload: float, context: Context) -> None:
    print(f"{context['device']['room']}: {payload} °C")


@router.topic("restarts", options=RouteOptions(without_middleware=["scale"]))
async def restarts(payload: int, context: Context) -> None:
    print(f"{context['device']['name']}: {payload} restarts")


app.include_router(router)
