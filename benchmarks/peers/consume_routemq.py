"""RouteMQ: a route with one parameter and one middleware, JSON decoded to a dict; needs Python 3.12.

Its log is turned down to warnings, in its favour. It acknowledges before the handler runs.
"""

import asyncio
import os
from typing import Any

from benchmarks.meter import Job, counter

os.environ |= {"MQTT_BROKER": "127.0.0.1", "LOG_LEVEL": os.environ.get("BENCH_LOG_LEVEL", "WARNING")}
os.environ["MQTT_PORT"] = os.environ["BENCH_PORT"]

from bootstrap.app import Application  # type: ignore[import-not-found]
from routemq.middleware import Middleware  # type: ignore[import-not-found]
from routemq.router import Router  # type: ignore[import-not-found]


class Through(Middleware):  # type: ignore[misc]
    async def handle(self, context: dict[str, Any], next_handler: Any) -> Any:
        return await next_handler(context)


def main(job: Job) -> None:
    tick = counter(job)

    async def ingest(device_id: str, payload: dict[str, Any], client: Any) -> None:
        if job.sleep:
            await asyncio.sleep(job.sleep)
        tick(payload["timestamp"])

    router = Router()
    router.on("sensors/{device_id}/data", ingest, qos=job.qos, middleware=[Through()])
    application = Application(router=router, show_banner=False)
    application.connect()
    application.run()


main(Job())
