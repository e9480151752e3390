"""Chaos: a pool of workers under a steady stream of messages, while everything is killed that can be.

    python -m tests.workers.chaos --messages 20000 --rate 200 --seed 1
    python -m tests.workers.chaos --inbox

A worker that is connected is killed every half second, the broker restarted five times, and the supervisor killed and started once. A
message counts as published once the broker has said so with reason code 0x00; it is sent again after 0x10 (nobody has
subscribed: mosquitto forgets shared subscriptions over a restart) and after a lost connection. At the end all that was
published must have been handled, and nothing may be among the dead letters. With `--inbox` each message must have had
its effect, a row, exactly once.

Exit code 1 else.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.support.command_line import CommandLine, Running
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import Client, client
from tests.support.packets import PacketType, publish
from tests.support.waiting import eventually

KEYS = 50
"""Devices."""
WINDOW = 100
"""Publishes that the broker has not answered."""

PREAMBLE = """\
import asyncio, os
from mqttapi import App

_notes = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(*words):
    os.write(_notes, (" ".join(words) + "\\n").encode())

app = App("chaos", dead_letter="dead/<topic>")

@app.topic("dead/<rest:path>")
async def dead(payload: str) -> None:
    note("dead", payload)
"""
PLAIN = """
@app.topic("work/<id>", shared=True, workers=4)
async def work(payload: str) -> None:
    await asyncio.sleep(0.001)
    note("handled", payload)
"""
INBOX = """
from typing import Annotated
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from mqttapi import Inbox, Message

def key(message: Message) -> str:
    return message.payload.decode()

@app.topic("work/<id>", shared=True, workers=4, inbox=Inbox(key=key))
async def work(payload: str, db: AsyncSession) -> None:
    await db.execute(text("INSERT INTO effects (payload) VALUES (:payload)"), {"payload": payload})
    note("handled", payload)
"""


class Chaos:
    """One run."""

    def __init__(self, directory: Path, *, messages: int, rate: float, seed: int, inbox: bool) -> None:
        self.line = CommandLine(directory)
        self.directory = directory
        self.random = random.Random(seed)
        self.payloads = [f"m{number}" for number in range(messages)]
        self.rate = rate
        self.inbox = inbox
        self.published: set[str] = set()
        self.again = 0
        self.kills = 0
        self.restarts = 0
        self.over = False
        self.broker = Mosquitto()
        self.pool: Running

    async def run(self) -> bool:
        """Gives whether all is well."""
        self.line.write("main.py", PREAMBLE + (INBOX if self.inbox else PLAIN))
        database = self.directory / "effects.db"
        self.line.environment |= {
            "MQTT_INSTANCE": "x",
            "MQTTAPI_MAX_IN_FLIGHT": "50",
            "DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        }
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE effects (payload TEXT)")
        began = time.monotonic()
        with self.broker:
            try:
                self.start()
                await self.ready(1)
                faults = asyncio.create_task(self.faults())
                await self.publish_all()
                self.over = True
                await faults
                await eventually(
                    lambda: self.published <= set(self.noted("handled")),
                    within=300,
                    what=lambda: f"the rest; {self.state()}",
                )
                code = await asyncio.to_thread(self.pool.stop)
            finally:
                self.line.dispose()
        return self.report(database, code, time.monotonic() - began)

    def start(self) -> None:
        self.pool = self.line.start("run", "--broker", self.broker.url)

    async def ready(self, times: int) -> None:
        await eventually(
            lambda: self.pool.output.count("all 4 workers are ready") >= times, within=60, what=lambda: self.pool.output
        )

    # -- the stream -------------------------------------------------------------------------------------------------

    async def publish_all(self) -> None:
        """At a steady rate, over any number of connections; nothing counts before the broker has said so."""
        waiting = list(reversed(self.payloads))
        while len(self.published) < len(self.payloads):
            with suppress(OSError, AssertionError, ConnectionRefusedError):
                async with client(self.broker.url) as publisher:
                    await self.publish_over(publisher, waiting)

    async def publish_over(self, publisher: Client, waiting: list[str]) -> None:
        ids = itertools.cycle(range(1, 60_000))
        under_way: dict[int, str] = {}
        seen = 0
        try:
            while len(self.published) < len(self.payloads):
                for packet in publisher.received[seen:]:
                    seen += 1
                    if packet.kind is PacketType.PUBACK:
                        payload = under_way.pop(packet.packet_id)
                        if packet.reason_code == 0:
                            self.published.add(payload)
                        else:
                            self.again += 1
                            waiting.append(payload)
                if publisher.closed:
                    return
                if waiting and len(under_way) < WINDOW:
                    payload = waiting.pop()
                    under_way[packet_id := next(ids)] = payload
                    topic = f"work/{int(payload[1:]) % KEYS}"
                    publisher.send(publish(topic, payload.encode(), qos=1, packet_id=packet_id))
                await asyncio.sleep(1 / self.rate)
        finally:
            self.again += len(under_way)
            waiting += under_way.values()

    # -- the faults -------------------------------------------------------------------------------------------------

    async def faults(self) -> None:
        """As many broker restarts as there are sixths of the stream, and the supervisor's end in the middle."""
        restarts = [len(self.payloads) * part // 6 for part in range(1, 6)]
        supervisor = len(self.payloads) * 5 // 12
        while not self.over:
            await asyncio.sleep(0.5)
            if restarts and len(self.published) >= restarts[0]:
                del restarts[0]
                self.restarts += 1
                await asyncio.to_thread(self.broker.restart)
            elif supervisor and len(self.published) >= supervisor:
                supervisor = 0
                self.pool.process.kill()
                await asyncio.to_thread(self.pool.process.wait)
                self.start()
            elif pids := sorted(set(self.pool.children()) & self.connected()):
                # One that has not come so far has nothing to lose, and would never come so far.
                self.kills += 1
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(pids), signal.SIGKILL)

    def connected(self) -> set[int]:
        """The workers that have subscribed, and may have ended since."""
        return set(map(int, re.findall(r"(\d+)\] mqttapi\.link: connected to", self.pool.output)))

    # -- what came of it --------------------------------------------------------------------------------------------

    def noted(self, word: str) -> Counter[str]:
        path = self.directory / "notes"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return Counter(line.partition(" ")[2] for line in lines if line.startswith(word))

    def state(self) -> str:
        return f"published {len(self.published)}, handled {len(self.noted('handled'))}; {self.pool.output[-3000:]}"

    def report(self, database: Path, code: int, seconds: float) -> bool:
        handled, dead = self.noted("handled"), self.noted("dead")
        lost = self.published - set(handled)
        twice = sum(runs - 1 for runs in handled.values())
        print(f"published {len(self.published)} in {seconds:.0f} s ({self.again} sent again)")
        print(f"workers killed {self.kills}, broker restarted {self.restarts}, supervisor killed 1, exit code {code}")
        print(
            f"handled {len(handled)}, lost {len(lost)}, runs beyond the first {twice}, dead letters {sum(dead.values())}"
        )
        well = not lost and not dead and code == 0 and self.restarts == 5
        if self.inbox:
            with sqlite3.connect(database) as connection:
                rows, distinct = connection.execute("SELECT count(*), count(DISTINCT payload) FROM effects").fetchone()
            print(f"effects {rows}, of different messages {distinct}")
            well = well and rows == distinct == len(self.published)
        return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inbox", action="store_true", help="each message has its effect exactly once")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"evidence in {directory}", flush=True)
    chaos = Chaos(directory, messages=options.messages, rate=options.rate, seed=options.seed, inbox=options.inbox)
    sys.exit(0 if asyncio.run(chaos.run()) else 1)


if __name__ == "__main__":
    main()
