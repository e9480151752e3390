"""`mqttapi rescue`: what a lost process has left at the broker is handled, and its session ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults.support import publish_all, texts
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, Running

APP = """\
import asyncio, contextlib, os
from mqttapi import App, Drop, Reject

@contextlib.asynccontextmanager
async def lifespan(app):
    print("open", flush=True)
    yield
    print("closed", flush=True)

app = App("plant", lifespan=lifespan)

@app.middleware
async def through(context, call_next):
    print("through", flush=True)
    return await call_next(context)

@app.topic("run/<id>", ordered_by=None, shared=True, dead_letter="dead/<topic>")
async def handle(id: str, payload: str) -> None:
    if "HANG" in os.environ:
        print("began", payload, flush=True)
        await asyncio.Event().wait()
    if id == "reject":
        raise Reject("not wanted")
    if id == "fail":
        raise ValueError("broken")
    print("handled", payload, flush=True)
    if id == "drop":
        raise Drop
"""
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
NAME = "plant-lost-0"


def lose(mqttapi: CommandLine, broker: Mosquitto, source: str = APP, **environment: str) -> Running:
    """A process that accepts messages and is killed: it can be killed from then on."""
    mqttapi.write("main.py", source)
    mqttapi.environment |= {"MQTT_INSTANCE": "lost"}
    lost = mqttapi.start("run", "--broker", broker.url, HANG="1", **environment)
    lost.wait_for("subscribed")
    return lost


def kill(lost: Running) -> None:
    """As when a machine is lost: the supervisor and its worker, without a word."""
    lost.send(signal.SIGKILL)
    os.kill(lost.worker(), signal.SIGKILL)
    lost.wait()


def publish(broker: Mosquitto, topics: str | list[str], payloads: list[str], qos: int = 1) -> None:
    asyncio.run(publish_all(broker.url, topics, payloads, qos=qos))


def handled(output: str) -> Counter[str]:
    return Counter(re.findall(r"^handled (.+)$", output, re.MULTILINE))


def has_session(broker: Mosquitto, client_id: str, version: str = "5") -> bool:
    async def look() -> bool:
        async with client(broker.url, client_id=client_id, clean=False, version=5 if version == "5" else 4) as probe:
            return probe.session_present

    return asyncio.run(look())


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_killed_process_has_left_is_handled_and_its_session_ended(
    mqttapi: CommandLine, version: str, qos: int
) -> None:
    """What it had begun with, what the broker had not sent it, and what came when it was gone."""
    with Mosquitto() as broker:
        lost = lose(mqttapi, broker, APP.replace('"run/<id>",', f'"run/<id>", qos={qos},'), MQTT_PROTOCOL=version)
        publish(broker, "run/1", texts(40), qos)
        lost.wait_for("began", times=20)
        kill(lost)
        publish(broker, "run/1", texts(40, 40), qos)
        done = mqttapi("rescue", "main:app", NAME, "--broker", broker.url, MQTT_PROTOCOL=version)
        assert done.returncode == 0, done.stderr
        assert handled(done.stdout) == dict.fromkeys(texts(80), 1)
        assert done.stdout.splitlines()[-2:] == [
            f"{NAME}: 80 handled, 0 rejected, 0 failed, 0 for no route",
            f"{NAME}: the session has ended",
        ]
        assert done.stdout.count("through") == 80
        assert [line for line in done.stdout.splitlines() if line in {"open", "closed"}] == ["open", "closed"]
        assert not has_session(broker, NAME, version)
        assert not has_session(broker, f"{NAME}-pub", version)


def test_it_subscribes_to_nothing_and_leaves_nothing_subscribed(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        kill(lose(mqttapi, broker, APP + "app.former_filters = ['former/+']\n"))
        assert list(mqttapi.directory.rglob("*.filters.json"))
        assert mqttapi("rescue", "main:app", NAME, "--broker", broker.url).returncode == 0

        async def answers() -> list[int]:
            async with client(broker.url) as publisher:
                return [await publisher.publish(topic) for topic in ("run/1", "former/1")]

        assert asyncio.run(answers()) == [0x10, 0x10]
        assert broker.log().count(f"{NAME} 1 $share/plant/run/+") == 1, "by the process that was lost"
    assert not list(mqttapi.directory.rglob("*.filters.json"))


def test_it_tells_what_became_of_the_messages(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        kill(lose(mqttapi, broker))
        publish(broker, ["run/1", "run/reject", "run/fail", "run/drop"], texts(8))
        watching = mqttapi.start("sub", "dead/#", "--count", "4", "--broker", broker.url)
        watching.wait_for("subscribed")
        done = mqttapi("rescue", "main:app", NAME, "--broker", broker.url)
        assert f"{NAME}: 4 handled, 2 rejected, 2 failed, 0 for no route" in done.stdout
        assert done.returncode == 0
        assert watching.wait() == 0
    assert watching.output.count("dead/run/reject") == 2
    assert watching.output.count("dead/run/fail") == 2


def test_where_there_is_no_session_it_says_so_and_leaves_none(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("rescue", "main:app", "plant-never-0", "--broker", shared_mosquitto.url)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == (
        "plant-never-0: the broker has no session of it, so there is nothing to rescue"
    )
    assert not has_session(shared_mosquitto, "plant-never-0")


def test_a_process_that_lives_is_not_robbed(mqttapi: CommandLine) -> None:
    """Nor of the sessions of its other links, which have no lock of their own."""
    with Mosquitto() as broker:
        lost = lose(mqttapi, broker)
        for name in (NAME, f"{NAME}-l1"):
            done = mqttapi("rescue", "main:app", name, "--broker", broker.url)
            assert done.returncode == 3
            assert f"client id '{NAME}' is in use by process {lost.process.pid} (its worker" in done.stderr
        assert "connection lost" not in lost.output


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_sessions_of_other_links_are_told_and_rescued_by_their_names(mqttapi: CommandLine, version: str) -> None:
    """An isolated route; and, on MQTT 3.1.1, filters that overlap."""
    source = APP.replace("shared=True, ", "") + (
        "app.topic('run/alone/<id>', isolate=True)(handle)\n"
        "app.topic('<id>/over', name='over', ordered_by=None)(handle)\n"
    )
    with Mosquitto() as broker:
        lost = lose(mqttapi, broker, source, MQTT_PROTOCOL=version)
        lost.wait_for("subscribed", times=2 if version == "5" else 3)
        names = sorted(set(re.findall(r"as (plant-lost-0\S*), subscribed", lost.output)))
        kill(lost)
        publish(broker, ["run/alone/1", "run/1", "x/over"], texts(30))
        total: Counter[str] = Counter()
        for name in names:
            done = mqttapi("rescue", "main:app", name, "--broker", broker.url, MQTT_PROTOCOL=version)
            assert done.returncode == 0, done.stderr
            others = names[names.index(name) + 1 :]
            assert re.findall(r"another session, .*: (mqttapi .+)", done.stderr) == [
                f"mqttapi rescue main:app {other}" for other in others
            ]
            total += handled(done.stdout)
            assert not has_session(broker, name, version)
    assert total == dict.fromkeys(texts(30), 1)


def test_a_signal_keeps_the_session_and_what_is_left_in_it(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        kill(lose(mqttapi, broker))
        publish(broker, "run/1", texts(3))
        rescuer = mqttapi.start("rescue", "main:app", NAME, "--broker", broker.url, HANG="1", MQTTAPI_GRACE="0.3")
        rescuer.wait_for("began", times=3)
        assert rescuer.stop(signal.SIGINT) == 1
        assert f"the session of {NAME} is kept, as something may wait in it (" in rescuer.output
        done = mqttapi("rescue", "main:app", NAME, "--broker", broker.url)
        assert done.returncode == 0
        assert handled(done.stdout) == dict.fromkeys(texts(3), 1)


def test_a_handler_that_does_not_end_in_time_keeps_the_session(mqttapi: CommandLine) -> None:
    with Mosquitto() as broker:
        kill(lose(mqttapi, broker))
        publish(broker, "run/1", texts(3))
        done = mqttapi(
            *("rescue", "main:app", NAME, "--broker", broker.url, "--timeout", "4"), HANG="1", MQTTAPI_GRACE="0.3"
        )
        assert done.returncode == 1
        assert "is kept, as something may wait in it (4 messages are not acknowledged): try again" in done.stderr
        assert has_session(broker, NAME)


def test_a_broker_that_is_away_is_waited_for_no_longer_than_told(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("rescue", "main:app", NAME, "--broker", Mosquitto().url, "--timeout", "3")
    assert done.returncode == 1
    assert "is kept, as something may wait in it (there is no connection)" in done.stderr


def test_a_broker_that_refuses_is_told_of(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    with Mosquitto(users={"somebody": "secret"}) as broker:
        done = mqttapi("rescue", "main:app", NAME, "--broker", broker.url)
    assert done.returncode == 1
    assert "refuses the connection: Not authorized (0x87)" in done.stderr


def test_the_app_may_be_left_out(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("rescue", "plant-default-0", "--broker", shared_mosquitto.url)
    assert done.returncode == 0, done.stderr
    many = mqttapi("rescue", "main:app", "plant-1", "plant-2")
    assert (many.returncode, many.stderr) == (
        2,
        "mqttapi: give the app and one client id, got main:app plant-1 plant-2\n",
    )


@pytest.mark.parametrize("name", ["", "a b", "plant/+", "#"])
def test_what_can_be_no_client_id_is_refused(mqttapi: CommandLine, name: str) -> None:
    done = mqttapi("rescue", "main:app", name)
    assert done.returncode == 2
    assert done.stderr == (
        "mqttapi: CLIENT_ID must be that of one of the app's connections, such as plant-host-3 (without '/', '+', '#' "
        f"and spaces), got {name!r}\n"
    )


def test_the_options_of_run_are_there(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi.write("elsewhere/made.py", APP + "def make(): return app\n")
    mqttapi.write("its.env", f"MQTT_URL={shared_mosquitto.url}\n")
    done = mqttapi(
        *("rescue", "made:make", "plant-options-0", "--factory", "--app-dir", "elsewhere", "--env-file", "its.env"),
        *("--log-level", "warning"),
    )
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr + done.stdout
    missing = mqttapi("rescue")
    assert missing.returncode == 2
    assert "CLIENT_ID" in missing.stderr
