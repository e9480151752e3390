"""The application that is measured: a parameter, a pydantic model, one middleware, and nothing switched off.

Variants: `properties` reads the content type and two user properties, `depends` adds one dependency.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from pydantic import BaseModel

from benchmarks.meter import Job, counter
from benchmarks.workload import TEMPLATE
from mqttapi import App, Context, Depends, Message


class Reading(BaseModel):
    temperature: float
    humidity: float
    status: str
    timestamp: int


async def through(context: Context, call_next: Callable[[Context], Awaitable[object]]) -> object:
    return await call_next(context)


async def limit() -> float:
    return 80.0


def application(job: Job) -> App:
    tick = counter(job)
    app = App("bench", middleware=[through])
    route = app.topic(TEMPLATE, qos=job.qos, concurrency=100 if job.sleep else None)

    if job.sleep:

        @route
        async def slow(device_id: str, reading: Reading) -> None:
            await asyncio.sleep(job.sleep)
            tick(reading.timestamp)

    elif job.variant == "properties":

        @route
        async def described(device_id: str, reading: Reading, message: Message) -> None:
            properties = message.properties
            if properties.content_type != "application/json" or len(properties.user_properties) != 2:
                raise ValueError("properties are missing")
            tick(reading.timestamp)

    elif job.variant == "depends":

        @route
        async def limited(device_id: str, reading: Reading, above: Annotated[float, Depends(limit)]) -> None:
            tick(reading.timestamp)

    else:

        @route
        async def ingest(device_id: str, reading: Reading) -> None:
            tick(reading.timestamp)

    return app
