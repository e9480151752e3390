"""FastStream's `broker.publish`, awaited, of bytes."""

import uvloop
from faststream.mqtt import MQTTBroker, QoS  # type: ignore[import-not-found]

from benchmarks.meter import Job, publish_all
from benchmarks.workload import PAYLOAD


async def main(job: Job) -> None:
    qos = QoS(job.qos)
    async with MQTTBroker(f"mqtt://127.0.0.1:{job.port}", logger=None) as broker:
        await publish_all(job, lambda topic: broker.publish(PAYLOAD, topic, qos=qos))


uvloop.run(main(Job()))
