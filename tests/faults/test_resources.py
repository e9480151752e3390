"""What happens to Redis and to the database while messages come, and what inbox and outbox make of it."""

from __future__ import annotations

import sqlite3
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.support import AppProcess, Row, publish_all, texts
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.packets import PacketType
from tests.support.process import free_port
from tests.support.proxy import Direction, Proxy
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]

STORING = """
from redis.asyncio import Redis

@app.topic("s/<id>", retry=Retry(attempts=100, delay=0.05, max_delay=0.5), dead_letter="dead/<topic>")
async def handle(payload: str, redis: Redis):
    note("attempt", payload)
    await redis.rpush("stored", payload)
    note("handled", payload)
"""

ROWS = """
from sqlalchemy import text
from mqttapi.resources.inbox import Inbox
from mqttapi.resources.outbox import Outbox
from mqttapi.resources.sql import AsyncEngine, Session

class Ready: ...

@app.resource
async def table(engine: AsyncEngine) -> Ready:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS handled (payload TEXT)"))
    return Ready()
"""


def rows(app: AppProcess) -> Counter[str]:
    """What the handlers have committed."""
    with closing(sqlite3.connect(app.directory / "app.db")) as connection:
        return Counter(payload for (payload,) in connection.execute("SELECT payload FROM handled"))


# -- Redis ----------------------------------------------------------------------------------------------------------


async def test_redis_down_at_start(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 18; Redis down at start", "ends with code 1 and host:port, without the password")
    port = free_port()
    app = launch(mosquitto.url, STORING, REDIS_URL=f"redis://:s3cret@127.0.0.1:{port}/0")
    app.launch()
    assert await app.ended() == 1
    assert f"Redis at 127.0.0.1:{port} (REDIS_URL) is not available" in app.log
    assert "s3cret" not in app.log
    fault.saw("exit code 1, one line")


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_redis_goes_away_while_messages_come(
    mosquitto: Mosquitto, redis_server: RedisServer, launch: Launch, fault: Row, how: str
) -> None:
    fault(f"row 19; Redis {how} while running", "handlers retry, messages stay unacknowledged, all handled afterwards")
    app = launch(mosquitto.url, STORING, REDIS_URL=redis_server.url, MQTTAPI_REDIS_TIMEOUT="0.3")
    await app.start()
    topics = [f"s/{number}" for number in range(20)]
    await publish_all(mosquitto.url, topics, texts(20))
    await app.notes_of("handled", 20)
    redis_server.pause() if how == "frozen" else redis_server.kill()
    await publish_all(mosquitto.url, topics, texts(40, 20))
    await eventually(lambda: max(app.noted("attempt").values()) >= 3, within=20)
    busiest = max(app.noted("attempt").values())
    redis_server.resume() if how == "frozen" else redis_server.start()
    handled = await app.notes_of("handled", 60)
    assert await app.stop() == 0
    assert busiest < 100  # no busy loop
    # A command that got no answer may have been done: so a frozen Redis runs handlers again.
    fault.settle(texts(60), handled, seen=f"60 handled, up to {max(app.noted('attempt').values())} attempts")


async def test_redis_out_of_memory(mosquitto: Mosquitto, redis_server: RedisServer, launch: Launch, fault: Row) -> None:
    fault("row 20; Redis out of memory", "retried, not dead-lettered; handled once there is room")
    app = launch(mosquitto.url, STORING, REDIS_URL=redis_server.url)
    await app.start()

    def tell(*words: str) -> None:
        subprocess.run(["redis-cli", "-p", str(redis_server.port), *words], check=True, capture_output=True)

    tell("config", "set", "maxmemory", "1")
    await publish_all(mosquitto.url, "s/1", texts(5))
    await eventually(lambda: app.noted("attempt")["0"] >= 2)
    tell("config", "set", "maxmemory", "0")
    handled = await app.notes_of("handled", 5)
    assert await app.stop() == 0
    fault.settle(texts(5), handled)


# -- the database ---------------------------------------------------------------------------------------------------

KEEPING = f"""{ROWS}
@app.topic("s/<id>", retry=Retry(attempts=100, delay=0.05, max_delay=0.3), dead_letter="dead/<topic>")
async def handle(payload: str, session: Session):
    note("attempt", payload)
    await session.execute(text("INSERT INTO handled VALUES (:payload)"), {{"payload": payload}})
"""


async def test_the_database_is_locked_and_its_pool_exhausted(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 21; database locked, its pool exhausted", "retried, not acknowledged, each row once afterwards")
    app = launch(mosquitto.url, KEEPING, MQTTAPI_DATABASE_POOL="1", MQTTAPI_DATABASE_TIMEOUT="0.3")
    await app.start()
    with closing(sqlite3.connect(app.directory / "app.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        await publish_all(mosquitto.url, [f"s/{number}" for number in range(10)], texts(30))
        await eventually(lambda: max(app.noted("attempt").values(), default=0) >= 3, within=20)
    await eventually(lambda: len(rows(app)) == 30, within=30)
    assert await app.stop() == 0
    fault.settle(texts(30), rows(app), seen=f"30 rows, up to {max(app.noted('attempt').values())} attempts")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", directory], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


async def test_the_disk_is_full(mosquitto: Mosquitto, launch: Launch, fault: Row, small_disk: Path) -> None:
    fault("row 23; disk of the database full", "as row 21: retried, each row once when there is room again")
    app = launch(mosquitto.url, KEEPING, DATABASE_URL=f"sqlite:///{small_disk}/app.db")
    await app.start()
    with (small_disk / "ballast").open("ab", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(b"x" * 4096)
    big = [f"{number}-{'x' * 5000}" for number in range(5)]
    await publish_all(mosquitto.url, "s/1", big)
    await eventually(lambda: max(app.noted("attempt").values(), default=0) >= 2, within=20)
    (small_disk / "ballast").unlink()

    def stored() -> Counter[str]:
        with closing(sqlite3.connect(small_disk / "app.db")) as connection:
            return Counter(payload for (payload,) in connection.execute("SELECT payload FROM handled"))

    await eventually(lambda: len(stored()) == 5, within=30)
    assert await app.stop() == 0
    fault.settle(big, stored())


# -- the inbox ------------------------------------------------------------------------------------------------------

INBOX = f"""{ROWS}
@app.middleware
async def crash(context: Context, call_next):
    result = await call_next(context)
    if not is_open("go") and context.message.payload == b"crash":
        note("crashed", "1")
        os._exit(9)
    return result

@app.topic("s/<id>", inbox=Inbox(key="id"), name="handle")
async def handle(payload: str, session: Session):
    note("handled", payload)
    await session.execute(text("INSERT INTO handled VALUES (:payload)"), {{"payload": payload}})
"""


async def test_a_crash_between_commit_and_acknowledgement(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 22; the process ends between commit and acknowledgement", "delivered again, not handled again")
    app = launch(mosquitto.url, INBOX)
    await app.start()
    async with client(mosquitto.url) as publisher:
        await publisher.publish("s/1", "crash", user_properties=[("id", "1")])
        assert await app.ended() == 9
        assert rows(app) == {"crash": 1}
        app.open("go")
        await app.start()
        await publisher.publish("s/1", "after", user_properties=[("id", "2")])
        await eventually(lambda: rows(app)["after"] == 1)
    assert await app.stop() == 0
    fault.settle(["crash", "after"], rows(app))
    assert app.noted("handled")["crash"] == 1


@pytest.mark.timeout(180)  # it reconnects slower and slower
async def test_1000_messages_with_lost_acknowledgements_and_20_resets_7_of_them_crashes(
    launch: Launch, proxy: Callable[..., Awaitable[Proxy]], fault: Row
) -> None:
    fault("inbox; acknowledgements lost, connection reset 20 times, 7 of them by `kill -9`", "1,000 rows, none twice")
    with Mosquitto(max_inflight=100) as broker:
        between, lost = await proxy(broker.port), (Direction.TO_BROKER, PacketType.PUBACK)
        app = launch(between.url, INBOX)
        await app.start()
        async with client(broker.url) as publisher:
            for number in range(1000):
                if number % 50 == 5:
                    between.drop(*lost, times=30)
                elif number % 50 == 25:
                    await eventually(lambda: between.drops[lost] <= 25, within=20)
                    if number % 150 == 25:
                        await app.kill()
                        between.reset()
                        await app.start()
                    else:
                        between.reset()
                await publisher.publish(f"s/{number % 10}", str(number), user_properties=[("id", str(number))])
            between.drop(*lost, times=0)
            between.reset()
            await eventually(lambda: len(rows(app)) == 1000, within=40)
        assert await app.stop() == 0
        delivered = len(between.packets(Direction.TO_CLIENT, PacketType.PUBLISH))
        fault.settle(texts(1000), rows(app), seen=f"1,000 rows of {delivered:,} deliveries")
    assert delivered > 1000


# -- the outbox -----------------------------------------------------------------------------------------------------

OUTBOX = f"""{ROWS}
@app.topic("s/<id>", inbox=Inbox(key="id"), name="handle")
async def handle(payload: str, session: Session, outbox: Outbox):
    await session.execute(text("INSERT INTO handled VALUES (:payload)"), {{"payload": payload}})
    await outbox.publish("out", payload)
    note("handled", payload)
    if payload.endswith("bad"):
        raise ValueError("rolled back")
"""


async def test_kill_9_around_the_commit_in_a_loop(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault(
        "outbox; `kill -9` around the commit, 8 times", "every committed message published, none of a rolled-back one"
    )
    app = launch(mosquitto.url, OUTBOX)
    good = [str(number) for number in range(400)]
    bad = [f"{number}-bad" for number in range(40)]
    async with client(mosquitto.url, client_id="reader", clean=False, expiry=300) as reader:
        await reader.subscribe("out", qos=1)
        await app.start()
        async with client(mosquitto.url) as publisher:
            for number in range(8):
                for payload in (*good[number * 50 : number * 50 + 50], *bad[number * 5 : number * 5 + 5]):
                    await publisher.publish(f"s/{number}", payload, user_properties=[("id", payload)])
                # In the middle of the work: each time at another moment.
                await app.notes_of("handled", (number * 55) + 5 * number + 5)
                await app.kill()
                await app.start()
        await eventually(lambda: len(rows(app)) == 400, within=30)
        await eventually(lambda: {packet.payload.decode() for packet in reader.messages} >= set(good), within=30)
    assert await app.stop() == 0
    published = Counter(packet.payload.decode() for packet in reader.messages)
    assert set(rows(app).values()) == {1}
    assert not set(bad) & set(published)
    again = sum(count > 1 for count in published.values())
    fault.settle(good, published, twice=good, seen=f"400 committed, 400 published, {again} of them more than once")
