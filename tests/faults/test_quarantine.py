"""Messages that kill their process, under the supervisor of `mqttapi run`."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.support import AppProcess, Row, publish_all, texts
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]

_MEMORY = 250 * 2**20
"""Bytes at which the kernel of these tests runs out of memory."""


class Death(NamedTuple):
    """The end of a worker, as the supervisor has logged it."""

    how: str
    charged: str
    """The message that was alone in flight; empty where none was."""


def deaths(app: AppProcess) -> list[Death]:
    found = re.findall(
        r"worker 0 \(pid \d+\) (.*): starting it again (?:at once|in \S+ s)(?:; alone in flight was a message on (.*))?$",
        app.log,
        re.MULTILINE,
    )
    return [Death(*each) for each in found]


def charged(topic: str, route: str = "r") -> list[str]:
    """What is logged of three deaths by one message."""
    return [f"{topic} for {route} ({count})" for count in ("1 of 3", "2 of 3", "3 of 3: it is not run any more")]


async def over(app: AppProcess, *, within: float = 60.0) -> None:
    """Wait until a process has dealt with all that came again."""
    await eventually(lambda: "the quarantine is over" in app.log, within=within, what=lambda: app.log)


def worker(app: AppProcess) -> int:
    """The process id of the last one that has logged something."""
    return int(re.findall(r" \[0 (\d+)\] ", app.log)[-1])


@asynccontextmanager
async def out_of_memory_killer(app: AppProcess) -> AsyncIterator[None]:
    """Kills the worker where it has more than there is."""

    def resident() -> int:
        try:
            return int(Path(f"/proc/{worker(app)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it has not logged anything, or has ended
            return 0

    async def watch() -> None:
        while True:
            if resident() > _MEMORY:
                os.kill(worker(app), signal.SIGKILL)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


KILLS = {
    "SIGKILL": ("async def", "await opened", "os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    "a crash in C, in a thread": (
        "def",
        "opened_for_threads",
        "import ctypes; ctypes.string_at(0)",
        "was killed by SIGSEGV",
    ),
    "too much memory": (
        "async def",
        "await opened",
        "hog = [await asyncio.sleep(0) or bytearray(b'x' * 2**20) for _ in range(10**6)]",
        "was killed by SIGKILL",
    ),
    "a thread that nothing can stop": ("def", "opened_for_threads", "time.sleep(10**6)", "was ended by a handler"),
    "sys.exit()": ("async def", "await opened", "sys.exit()", "was ended by a handler"),
}


@pytest.mark.parametrize("kill", KILLS)
async def test_a_message_that_kills_its_process_ends_in_the_dead_letters_and_all_others_are_handled(
    mosquitto: Mosquitto, supervise: Launch, fault: Row, kill: str
) -> None:
    fault(f"row 8; a message kills its process, by {kill}", "4 deaths, then a dead letter; nothing else is charged")
    kind, waits, kills, how = KILLS[kill]
    drains = how == "was ended by a handler"
    app = supervise(
        mosquitto.url,
        f"""
        @app.topic("s/<id>", name="r", dead_letter="dead/<id>", timeout={3 if drains else 60})
        {kind} handle(payload: str):
            note("started", payload)
            if payload == "poison":
                {waits}("kill")
                {kills}
            {waits}("go")
            note("handled", payload)
        """,
    )
    others = texts(8)
    await app.start()
    async with client(mosquitto.url) as reader, out_of_memory_killer(app):
        await reader.subscribe("dead/#", qos=1)
        await publish_all(mosquitto.url, [f"s/{n}" for n in range(9)], [*others[:4], "poison", *others[4:]])
        await app.notes_of("started", 9)
        app.open("kill")
        if not drains:
            await eventually(lambda: deaths(app), within=20, what=lambda: app.log)
        app.open("go")
        letter = await reader.message(within=60)
        handled = await app.notes_of("handled", 8)
        await over(app)
    assert deaths(app) == [Death(how, each) for each in ("", *charged("s/4"))]
    assert app.noted("started")["poison"] == 4
    assert await app.stop() == 0
    about = dict(letter.publish.user_properties)
    assert (letter.topic, letter.payload, about["mqttapi-error"]) == ("dead/4", b"poison", "PoisonMessage")
    assert len(reader.messages) == 1
    # Where the process drains, those behind the poison have ended, but their acknowledgements wait for its.
    twice = others[4:] if drains else ()
    fault.settle(others, handled, twice=twice, seen=f"4 deaths (each {how}), 8 handled, 1 dead letter")


async def test_two_that_kill_on_links_of_their_own_are_told_apart(
    mosquitto: Mosquitto, supervise: Launch, fault: Row
) -> None:
    """More deaths before the worker is ready than make a crash loop, but each of them is known."""
    fault("row 8; two messages kill, one on an isolated route", "both in the dead letters, after 7 deaths")
    app = supervise(
        mosquitto.url,
        """
        async def handle(payload: str):
            note("started", payload)
            await opened("go")
            if payload.startswith("poison"):
                os.kill(os.getpid(), signal.SIGKILL)
            note("handled", payload)

        app.topic("s/<id>", name="r", dead_letter="dead/<id>")(handle)
        app.topic("lonely/<id>", name="lonely", isolate=True, dead_letter="dead/<id>")(handle)
        """,
    )
    others = texts(8)
    await app.start()
    await app.said("as faults-0-0-i")
    async with client(mosquitto.url) as reader:
        await reader.subscribe("dead/#", qos=1)
        topics = ["s/0", "lonely/0", "s/1", "lonely/1", "s/2"]
        await publish_all(mosquitto.url, topics, [*others[:2], "poison 1", "poison 2", *others[2:]])
        await app.notes_of("started", 5)  # of each topic the first
        app.open("go")
        await reader.wait_for(2, within=60)
        handled = await app.notes_of("handled", 8)
        await over(app)
    first, *rest = [death.charged for death in deaths(app)]
    assert first == ""
    assert sorted(rest) == sorted(charged("s/1") + charged("lonely/1", "lonely"))
    assert await app.stop() == 0
    assert {letter.payload for letter in reader.messages} == {b"poison 1", b"poison 2"}
    fault.settle(others, handled, twice=others, seen="7 deaths, 8 handled, 2 dead letters")


async def test_a_retained_message_that_kills_does_so_no_more_once_it_is_condemned(
    mosquitto: Mosquitto, supervise: Launch, fault: Row
) -> None:
    """It comes with every subscription, so it is new, and never flagged. New code gets another chance."""
    fault("row 8; a retained message kills", "4 deaths, none when it comes again; the new code after a reload gets it")
    app = supervise(
        mosquitto.url,
        """
        @app.topic("s/<id>", name="r", dead_letter="dead/<id>")
        async def handle(payload: str):
            if payload == "poison" and not is_open("mended"):
                os.kill(os.getpid(), signal.SIGKILL)
            note("handled", payload)
        """,
    )
    await app.start()
    async with client(mosquitto.url) as publisher:
        await publisher.publish("s/1", "poison", retain=True)
    await over(app)
    assert [death.charged for death in deaths(app)] == ["", *charged("s/1")]
    letters = app.log.count("was not run: it has killed its process 3 times")
    mosquitto.restart()
    await eventually(lambda: app.log.count("was not run: it has killed") > letters, within=20, what=lambda: app.log)
    await publish_all(mosquitto.url, "s/1", ["after"])
    await app.notes_of("handled")
    assert len(deaths(app)) == 4
    app.open("mended")
    app.send(signal.SIGHUP)
    handled = await app.notes_of("handled", 2)
    assert await app.stop() == 0
    assert set(handled) == {"after", "poison"}
    fault.saw("4 deaths; not run after a restart of the broker, handled after a reload")


async def test_kills_from_outside_put_nothing_aside(
    forgetful_mosquitto: Mosquitto, supervise: Launch, fault: Row
) -> None:
    fault("row 1; SIGKILL of a worker at 5 random moments of a stream", "nothing lost, nothing in the dead letters")
    app = supervise(
        forgetful_mosquitto.url,
        """
        @app.topic("s/<id>", dead_letter="dead/<id>")
        async def handle(payload: str):
            await asyncio.sleep(0.001)
            note("handled", payload)
        """,
    )
    when = random.Random(5)
    topics = [f"s/{number}" for number in range(7)]
    await app.start()
    async with client(forgetful_mosquitto.url) as reader:
        await reader.subscribe("dead/#", qos=1)
        for count in range(5):
            await publish_all(forgetful_mosquitto.url, topics, texts(100, 100 * count))
            await app.notes_of("handled", 100 * count + when.randrange(1, 90))
            os.kill(worker(app), signal.SIGKILL)
            await eventually(lambda count=count: len(deaths(app)) == count + 1)  # type: ignore[misc]  # it is an int
        handled = await app.notes_of("handled", 500)
        await reader.ping()
    assert await app.stop() == 0
    assert reader.messages == []
    fault.settle(texts(500), handled, twice=texts(500), seen="5 deaths, 500 of 500 handled")
