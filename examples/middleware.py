"""What runs around handlers."""

import time

from mqttapi import App, Context, Router
from mqttapi.middleware import Endpoint

app = App("plant")


@app.middleware
async def timing(context: Context, call_next: Endpoint) -> object:
    began = time.perf_counter()
    try:
        return await call_next(context)
    finally:
        milliseconds = (time.perf_counter() - began) * 1000
        print(f"{context.route.name} took {milliseconds:.1f} ms")


async def unwrap(context: Context, call_next: Endpoint) -> object:
    """Old devices send {"data": …}: give handlers what is inside."""
    payload = context["payload"]
    if isinstance(payload, dict) and "data" in payload:
        context["payload"] = payload["data"]
    return await call_next(context)


async def only_known(context: Context, call_next: Endpoint) -> object:
    """Who does not call `call_next` ends the message here; it counts as handled."""
    if context["device_id"] not in {"7", "8"}:
        return None
    context["known"] = True
    return await call_next(context)


router = Router(prefix="sensors", middleware=[unwrap])


@router.topic("<device_id>/data", name="ingest", middleware=[only_known])
async def ingest(device_id: str, temperature: dict[str, float], context: Context) -> None:
    print(f"{device_id}: {temperature['celsius']} °C, known: {context['known']}")


app.include_router(router)
