"""How an app ends: real processes, real signals, a real broker."""

from __future__ import annotations

import re
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import publish_each as publish
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine, Running

APP = """\
import asyncio, contextlib, time
from mqttapi import App

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    await app.publish("end/lifespan", "over")
    app.publish_nowait("end/nowait", "over")

app = App("plant", lifespan=lifespan)

@app.topic("run/<id>", ordered_by=None, concurrency=4)
async def handle(id: str, payload: str) -> None:
    print("begin", payload, flush=True)
    await asyncio.sleep(float(id))
    print("end", payload, flush=True)

@app.topic("relay")
async def relay(payload: str) -> None:
    print("begin relay", flush=True)
    await app.publish("relayed", payload)

@app.topic("thread")
def block(payload: str) -> None:
    print("begin thread", flush=True)
    time.sleep(float(payload))

@app.topic("deaf", timeout=None)
async def deaf(payload: str) -> None:
    print("begin deaf", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            print("deaf", flush=True)

@app.on_disconnect
async def goodbye() -> None:
    print("disconnected", flush=True)
"""
NOISE = re.compile("Traceback|never retrieved|was destroyed|was never awaited|ResourceWarning|Exception ignored")


def start(mqttapi: CommandLine, broker: Mosquitto, **environment: str) -> Running:
    mqttapi.write("main.py", APP)
    return mqttapi.start("run", "--broker", broker.url, **{"PYTHONWARNINGS": "always", **environment})


def said(app: Running, what: str) -> Counter[str]:
    return Counter(re.findall(rf"^{what} (.+)$", app.output, re.MULTILINE))


def assert_quiet(*apps: Running) -> None:
    for app in apps:
        assert not NOISE.search(app.output), app.output


def test_what_was_accepted_is_done_and_what_was_not_comes_to_the_next(mqttapi: CommandLine) -> None:
    """Each message once: also those that the broker pushes while the acknowledgements of others leave."""
    numbers = [str(number) for number in range(60)]
    with Mosquitto() as broker:
        first = start(mqttapi, broker)
        first.wait_for("subscribed")
        first.stop()
        publish(broker, "run/0.05", *numbers[:40])
        second = start(mqttapi, broker)
        second.wait_for("end ", times=5)
        assert second.stop() == 0
        publish(broker, "run/0.05", *numbers[40:])
        third = start(mqttapi, broker)
        missing = Counter(numbers) - said(second, "end")
        eventually_sync(lambda: said(third, "end") >= missing, within=20, what=lambda: third.output)
        assert third.stop() == 0
    assert said(second, "end") + said(third, "end") == Counter(numbers)
    assert said(second, "begin") == said(second, "end")
    assert_quiet(first, second, third)


def test_the_end_of_the_lifespan_still_publishes(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        watching = mqttapi.start("sub", "end/#", "--broker", broker.url, "--count", "2")
        watching.wait_for("end/#")
        app = start(mqttapi, broker)
        app.wait_for("subscribed")
        assert app.stop() == 0
        assert watching.wait() == 0
    assert "end/lifespan" in watching.output
    assert "end/nowait" in watching.output
    assert_quiet(app)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_left_after_the_grace_is_cancelled_and_comes_again(
    mqttapi: CommandLine, number: signal.Signals
) -> None:
    with Mosquitto() as broker:
        app = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        app.wait_for("subscribed")
        publish(broker, "run/60", "slow")
        app.wait_for("begin slow")
        assert app.stop(number) == 0
        assert "the grace of 0.3 s is nearly over: messages not done: 1 (cancelled;" in app.output
        again = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        again.wait_for("begin slow")
        again.stop()
    assert_quiet(app, again)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(mqttapi: CommandLine, number: signal.Signals) -> None:
    with Mosquitto() as broker:
        app = start(mqttapi, broker)
        app.wait_for("subscribed")
        publish(broker, "run/60", "slow")
        app.wait_for("begin slow")
        app.send(number)
        app.wait_for("a second signal stops at once")
        assert app.stop(number) == 1
        again = start(mqttapi, broker, MQTTAPI_GRACE="0.1")
        again.wait_for("begin slow")
        again.stop()
    assert_quiet(app, again)


def test_a_signal_before_the_first_connection_ends_with_0(mqttapi: CommandLine) -> None:
    broker = Mosquitto()
    app = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
    app.wait_for("Connection refused")
    assert app.stop() == 0
    assert_quiet(app)


def test_a_signal_while_the_broker_says_nothing_ends_with_0(mqttapi: CommandLine) -> None:
    """The CONNACK is waited for in the meantime."""
    with Mosquitto() as broker:
        broker.pause()
        app = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        eventually_sync(lambda: len(list((mqttapi.directory / "runtime").glob("*.lock"))) == 1)
        assert app.stop() == 0
    assert_quiet(app)


def test_a_signal_during_the_start_ends_with_0(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write(
        "main.py",
        "import asyncio, contextlib\n"
        "from mqttapi import App\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    try:\n"
        "        print('opening', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "        yield\n"
        "    finally:\n"
        "        print('closed', flush=True)\n"
        "app = App('plant', lifespan=lifespan)\n",
    )
    app = mqttapi.start("run", "--broker", shared_mosquitto.url)
    app.wait_for("opening")
    assert app.stop() == 0
    assert "closed" in app.output
    assert_quiet(app)


def test_a_signal_while_the_broker_is_away_ends_with_0(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        app = start(mqttapi, broker, MQTTAPI_GRACE="1")
        app.wait_for("subscribed")
        broker.stop()
        app.wait_for("trying again")
        assert app.stop() == 0
    assert_quiet(app)


def test_a_handler_that_waits_for_the_broker_holds_the_end_up_for_the_grace_only(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        app = start(mqttapi, broker, MQTTAPI_GRACE="1")
        app.wait_for("subscribed")
        publish(broker, "run/1", "x")
        app.wait_for("begin x")
        publish(broker, "relay", "x")
        broker.pause()
        app.wait_for("begin relay", times=0)
        assert app.stop() == 0
    assert_quiet(app)


@pytest.mark.parametrize(("command", "signals"), [("mqttapi run", 1), ("app.run()", 1), ("app.run()", 2)])
def test_a_handler_that_catches_its_cancellation_is_left_behind(
    mqttapi: CommandLine, command: str, signals: int
) -> None:
    with Mosquitto() as broker:
        if command == "mqttapi run":
            app = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        else:
            mqttapi.write("main.py", APP)
            program = f"import mqttapi.logs, main; mqttapi.logs.configure(); main.app.run(broker={broker.url!r})"
            app = mqttapi.start_program(sys.executable, "-c", program, MQTTAPI_GRACE="0.3")
        app.wait_for("subscribed")
        publish(broker, "deaf", "x")
        app.wait_for("begin deaf")
        app.send(signal.SIGTERM)
        app.wait_for("is nearly over")
        if signals == 2:
            app.send(signal.SIGTERM)
        code = app.wait()
        again = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        again.wait_for("begin deaf")
        again.dispose()
    assert code == signals - 1
    assert "leaving them behind" in app.output
    if signals == 1:
        assert "main.deaf was cancelled on deaf and goes on all the same: it is left behind." in app.output
    assert_quiet(app)


def test_a_thread_that_does_not_end_is_left_behind(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        app = start(mqttapi, broker, MQTTAPI_GRACE="0.3")
        app.wait_for("subscribed")
        publish(broker, "thread", "30")
        app.wait_for("begin thread")
        assert app.stop() == 0
    assert "leaving them behind" in app.output
    assert_quiet(app)
