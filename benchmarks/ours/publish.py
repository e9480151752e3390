"""`app.publish`, awaited."""

import uvloop

from benchmarks.meter import Job, publish_all
from benchmarks.workload import PAYLOAD
from mqttapi import App


async def main(job: Job) -> None:
    app = App("bench")
    async with app.running(broker=f"mqtt://127.0.0.1:{job.port}"):
        await publish_all(job, lambda topic: app.publish(topic, PAYLOAD, qos=job.qos))


uvloop.run(main(Job()))
