"""gmqtt's `publish`, which cannot be awaited: lots of 64, and at QoS 1 a look into its storage until all are acknowledged.

So it does less than the others: no future per message.
"""

import asyncio

import gmqtt  # type: ignore[import-not-found]
import uvloop

from benchmarks.meter import IN_FLIGHT, TOPICS, Job, Reading, figures, finish
from benchmarks.workload import PAYLOAD


async def main(job: Job) -> None:
    client = gmqtt.Client("bench")
    await client.connect("127.0.0.1", job.port)

    async def lots(count: int) -> None:
        for first in range(0, count, IN_FLIGHT):
            for number in range(first, min(first + IN_FLIGHT, count)):
                client.publish(TOPICS[number % len(TOPICS)], PAYLOAD, qos=job.qos)
            if job.qos:
                await client._persistent_storage.wait_empty()
            else:
                await asyncio.sleep(0)

    await lots(job.warmup)
    began = Reading.now()
    await lots(job.messages)
    finish(job, figures(began, Reading.now(), job.messages))


uvloop.run(main(Job()))
