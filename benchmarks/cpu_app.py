"""The app of `benchmarks.cpu_bound`: a route that needs CPU time, in the way that is asked for, and a fast one."""

import asyncio
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from anyio import to_process

from benchmarks.cpu_work import burn, digest
from mqttapi import App

WAY = os.environ.get("CPU_WAY", "inline")
WORKERS = int(os.environ.get("CPU_WORKERS", "1"))
COUNT = int(os.environ.get("CPU_COUNT", "10000"))

app = App("burner")


@cache
def _notes() -> int:
    return os.open(Path(os.environ["CPU_NOTES"], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(kind: str, number: int = -1) -> None:
    os.write(_notes(), f"{time.monotonic_ns()} {kind} {number}\n".encode())


async def inline(n: int) -> None:
    burn(COUNT)
    note("ended", n)


def thread(n: int) -> None:
    burn(COUNT)
    note("ended", n)


def thread_without_lock(n: int) -> None:
    digest(COUNT)
    note("ended", n)


async def process(n: int) -> None:
    await to_process.run_sync(burn, COUNT)
    note("ended", n)


async def executor(n: int) -> None:
    await asyncio.get_running_loop().run_in_executor(_pool(), burn, COUNT)
    note("ended", n)


@cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))  # not forked: there are threads here


WAYS = {handler.__name__: handler for handler in (inline, thread, thread_without_lock, process, executor)}

app.topic("burn/<n:int>", shared=True, workers=WORKERS, ordered_by=None)(WAYS[WAY])


@app.on_connect
async def connected() -> None:
    note("connected")


@app.topic("fast/<n:int>")
async def fast(n: int) -> None:
    note("fast", n)
