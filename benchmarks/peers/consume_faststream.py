"""FastStream: a pydantic model and a path parameter, no middleware, its log per message switched off.

It acknowledges when the handler has ended.
"""

import asyncio
from typing import Annotated

import uvloop
from faststream import FastStream, Path  # type: ignore[import-not-found]
from faststream.mqtt import MQTTBroker, QoS  # type: ignore[import-not-found]
from pydantic import BaseModel

from benchmarks.meter import Job, counter


class Reading(BaseModel):
    temperature: float
    humidity: float
    status: str
    timestamp: int


async def main(job: Job) -> None:
    tick = counter(job)
    broker = MQTTBroker(f"mqtt://127.0.0.1:{job.port}", logger=None)

    @broker.subscriber("sensors/{device_id}/data", qos=QoS(job.qos), max_workers=100 if job.sleep else 1)
    async def ingest(reading: Reading, device_id: Annotated[str, Path()]) -> None:
        if job.sleep:
            await asyncio.sleep(job.sleep)
        tick(reading.timestamp)

    await FastStream(broker, logger=None).run()


uvloop.run(main(Job()))
