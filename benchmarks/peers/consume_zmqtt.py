"""zmqtt's iterator. It acknowledges before the program sees the message (its default, `auto_ack`)."""

import asyncio

import uvloop
import zmqtt  # type: ignore[import-not-found]

from benchmarks.meter import Job, counter
from benchmarks.workload import FILTER


async def main(job: Job) -> None:
    tick = counter(job)
    version = "5.0" if job.variant == "v5" else "3.1.1"
    async with (
        zmqtt.create_client("127.0.0.1", job.port, version=version) as client,
        client.subscribe(FILTER, qos=zmqtt.QoS(job.qos)) as subscription,
    ):
        async for message in subscription:
            if job.sleep:
                await asyncio.sleep(job.sleep)
            tick(message.payload)


uvloop.run(main(Job()))
