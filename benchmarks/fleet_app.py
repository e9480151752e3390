"""The app of `benchmarks.check_fleet`: its handler takes a known time, and notes what it does in a file per process."""

import asyncio
import os
import time
from pathlib import Path

from mqttapi import App, Message

SERVICE = float(os.environ.get("FLEET_SERVICE", "0.01"))
WORKERS = int(os.environ.get("FLEET_WORKERS", "1"))
LANES = int(os.environ.get("FLEET_LANES", "1"))

app = App("fleet")


def note(*words: object) -> None:
    """Append a line: what happens to this process next, it is written."""
    global _notes
    if _notes is None:
        _notes = os.open(Path(os.environ["FLEET_NOTES"], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_notes, (" ".join(map(str, (time.monotonic_ns(), *words))) + "\n").encode())


_notes: int | None = None


@app.on_connect
async def connected() -> None:
    note("connected")


@app.topic("load/<n:int>", shared=True, workers=WORKERS, ordered_by=None, concurrency=LANES)
async def handle(n: int, message: Message) -> None:
    note("began", n, int(message.dup))
    await asyncio.sleep(SERVICE)
    note("ended", n)
