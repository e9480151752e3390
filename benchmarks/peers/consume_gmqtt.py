"""gmqtt's bare callback: no routing, no decoding. It acknowledges before it calls (its default)."""

import asyncio
from typing import Any

import gmqtt  # type: ignore[import-not-found]
import uvloop

from benchmarks.meter import Job, counter
from benchmarks.workload import FILTER


async def main(job: Job) -> None:
    tick = counter(job)

    def on_message(client: gmqtt.Client, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
        tick(payload)
        return 0

    async def slow(client: gmqtt.Client, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
        await asyncio.sleep(job.sleep)
        return on_message(client, topic, payload, qos, properties)

    client = gmqtt.Client("bench")
    client.on_message = slow if job.sleep else on_message
    await client.connect("127.0.0.1", job.port)
    client.subscribe(FILTER, qos=job.qos)
    await asyncio.Event().wait()


uvloop.run(main(Job()))
