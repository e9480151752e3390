"""What a middleware costs that only passes on: five of them at one level, against none, in process.

The endpoint of a route is called as the workers call it: context, middleware, attempts, plan, handler.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

from mqttapi import App, Context, Message, Middleware
from mqttapi.middleware import Endpoint, MiddlewareLike
from mqttapi.service import Service
from mqttapi.testing import TestClient

MESSAGES = 20_000
ROUNDS = 15
LEVELS = {"app": (5, 0, 0), "group": (0, 5, 0), "route": (0, 0, 5), "all": (5, 5, 5)}


async def through(context: Context, call_next: Endpoint) -> Any:
    return await call_next(context)


class Through(Middleware):
    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        return await next_handler(context)


async def handler(device_id: str) -> None: ...


def app_of(layer: MiddlewareLike, app: int, group: int, route: int) -> App:
    made = App(middleware=[layer] * app)
    with made.group(prefix="sensors", middleware=[layer] * group) as sensors:
        sensors.on("<device_id>", handler, middleware=[layer] * route)
    return made


async def cost(app: App) -> float:
    """µs of CPU per message, the best of the rounds."""
    async with TestClient(app) as client:
        service = client._service
        assert isinstance(service, Service)
        (runner,) = service.runners
        message, endpoint, best = Message("sensors/7", b"{}"), runner.endpoint, float("inf")
        for _ in range(ROUNDS):
            gc.collect()
            gc.disable()
            began = time.process_time_ns()
            for _ in range(MESSAGES):
                journey: Any = endpoint(Context(message, runner.route, ("7",), app))
                try:
                    journey.send(None)
                except StopIteration:
                    continue
            best = min(best, (time.process_time_ns() - began) / MESSAGES / 1000)
            gc.enable()
        return best


async def main() -> None:
    print("| middleware | level | without, µs | with, µs | each, µs |\n|---|---|---|---|---|")
    layers: dict[str, MiddlewareLike] = {"function": through, "class": Through()}
    for name, layer in layers.items():
        bare = await cost(app_of(layer, 0, 0, 0))
        for level, counts in LEVELS.items():
            dressed = await cost(app_of(layer, *counts))
            each = (dressed - bare) / sum(counts)
            print(f"| {name} | {level} ({sum(counts)}) | {bare:.2f} | {dressed:.2f} | {each:.2f} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
