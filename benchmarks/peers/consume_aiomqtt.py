"""aiomqtt's iterator, as its documentation shows it. It acknowledges before the program sees the message."""

import asyncio

import aiomqtt
import uvloop

from benchmarks.meter import Job, counter
from benchmarks.workload import FILTER


async def main(job: Job) -> None:
    tick = counter(job)
    protocol = aiomqtt.ProtocolVersion.V5 if job.variant == "v5" else None
    async with aiomqtt.Client("127.0.0.1", job.port, protocol=protocol) as client:
        await client.subscribe(FILTER, qos=job.qos)
        async for message in client.messages:
            if job.sleep:
                await asyncio.sleep(job.sleep)
            tick(message.payload)


uvloop.run(main(Job()))
