"""`python -m examples.plant`: a broker, devices that publish, the app that serves them, and a check of the counts."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from examples.plant.app import Counts, app
from examples.plant.view import show
from mqttapi import MQTTAPIError, Session
from mqttapi.cli.embedded import EmbeddedBroker
from mqttapi.config import Broker, Settings

_PATIENCE = 10.0  # seconds without a message before the rest is given up


class Fleet:
    """The devices, in a process of their own."""

    def __init__(self, process: Process) -> None:
        self.published = 0
        """Messages that the broker has acknowledged to the devices."""
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, broker: Broker, devices: int, rate: float) -> AsyncIterator["Fleet"]:
        command = (sys.executable, "-m", "examples.plant.devices", broker.host, broker.port, devices, rate)
        # In a session of its own: Ctrl-C is for this process, which lets the devices end in order.
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def follow(self) -> None:
        """Keep `published` up to date until the process has ended."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.published = int(line)
        if await self._process.wait():
            raise RuntimeError("the devices have failed, see above")

    def stop(self) -> None:
        """Publish nothing more, and end once all is acknowledged."""
        assert self._process.stdin is not None
        self._process.stdin.close()


async def run(broker: Broker, devices: int, rate: float, seconds: float | None) -> tuple[int, Counts]:
    """Run the plant until it is told to stop or the time is over; what was published then, and what became of it."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if stopping.is_set():  # a second signal ends it at once
            task.cancel()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with app.running(broker=broker.url), Fleet.running(broker, devices, rate) as fleet:
        counts: Counts = app.state.counts
        view = asyncio.create_task(show(counts, lambda: fleet.published, title=f"{devices} devices on {broker.url}"))
        following = asyncio.create_task(fleet.follow())
        following.add_done_callback(lambda _: stopping.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()
        fleet.stop()
        await following
        await _drained(counts, fleet.published)
        view.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await view
    return fleet.published, counts


async def _drained(counts: Counts, published: int) -> None:
    """Wait for what the broker still has, as long as messages come."""
    loop = asyncio.get_running_loop()
    seen, since = counts.ended, loop.time()
    while counts.ended < published and loop.time() - since < _PATIENCE:
        await asyncio.sleep(0.05)
        if counts.ended > seen:
            seen, since = counts.ended, loop.time()


def summary(published: int, counts: Counts, stored: int) -> bool:
    """Print what happened to every message; whether none was lost, and none ran or was stored twice."""
    all_ended = published == counts.handled + counts.rejected
    all_stored = counts.handled == stored
    print(
        f"published {published:>9,}  acknowledged to the devices by the broker",
        f"handled   {counts.handled:>9,}",
        f"rejected  {counts.rejected:>9,}",
        f"stored    {stored:>9,}  rows in the database",
        f"alerts    {counts.alerts:>9,}",
        f"published = handled + rejected: {'yes' if all_ended else 'NO'}",
        f"handled = stored: {'yes' if all_stored else 'NO'}",
        sep="\n",
    )
    if counts.failed:
        print(f"failed    {counts.failed:>9,}  see the log above")
    return all_ended and all_stored


def rows(database: Path) -> int:
    """Count the readings in the database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM storedreading").fetchone()
    return int(count)


def main() -> int:
    parser = argparse.ArgumentParser(prog="examples.plant", description=__doc__)
    parser.add_argument("--seconds", type=float, help="end by itself after so long; else Ctrl-C ends it")
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--rate", type=float, default=5.0, help="messages per second of each device (default: 5)")
    parser.add_argument("--port", type=int, default=1883, help="of the broker; the next free one where it is taken")
    options = parser.parse_args()

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("mqttapi.handlers").setLevel(logging.ERROR)  # the view shows what was rejected
    app.session = Session.transient()
    app.settings = Settings(instance=f"demo-{os.getpid()}")
    with (
        tempfile.TemporaryDirectory(prefix="mqttapi-plant-") as directory,
        EmbeddedBroker(first_port=options.port) as broker,
    ):
        database = Path(directory) / "plant.db"
        os.environ["DATABASE_URL"] = f"sqlite+aiosqlite:///{database}"
        print(f"{options.devices} devices on {broker.url} ({broker.kind}), readings in {database}", flush=True)
        published, counts = asyncio.run(run(Broker.parse(broker.url), options.devices, options.rate, options.seconds))
        return 0 if summary(published, counts, rows(database)) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MQTTAPIError as error:
        sys.exit(f"examples.plant: {error}")
    except asyncio.CancelledError:
        sys.exit(1)
