"""Work for the CPU: in a worker, in a thread, in a process of a pool."""

import zlib

from anyio import to_process

from examples.edges import edges
from mqttapi import App

app = App("cameras")


@app.topic("cameras/<camera_id>/row", shared=True, workers=2, publish_to="cameras/<camera_id>/edges")
async def count(camera_id: str, row: bytes) -> int:
    return edges(row)  # a millisecond: the worker does nothing else meanwhile; more workers do more at once


@app.topic("cameras/<camera_id>/image", concurrency=2, publish_to="cameras/<camera_id>/packed")
def pack(camera_id: str, image: bytes) -> bytes:
    return zlib.compress(image)  # a thread: zlib lets go of the interpreter's lock


@app.topic("cameras/<camera_id>/film", concurrency=2, timeout=30, publish_to="cameras/<camera_id>/edges")
async def scan(camera_id: str, film: bytes) -> int:
    return await to_process.run_sync(edges, film, cancellable=True)  # a process, which the time-out ends
