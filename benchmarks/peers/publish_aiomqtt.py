"""aiomqtt's `publish`, awaited; 64 in flight (its default is 20 at QoS 1)."""

import aiomqtt
import uvloop

from benchmarks.meter import IN_FLIGHT, Job, publish_all
from benchmarks.workload import PAYLOAD


async def main(job: Job) -> None:
    protocol = aiomqtt.ProtocolVersion.V5 if job.variant == "v5" else None
    async with aiomqtt.Client("127.0.0.1", job.port, protocol=protocol, max_inflight_messages=IN_FLIGHT) as client:
        await publish_all(job, lambda topic: client.publish(topic, PAYLOAD, qos=job.qos))


uvloop.run(main(Job()))
