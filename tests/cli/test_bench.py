"""`mqttapi bench`: what is sent, what is counted, and what is refused. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from mqttapi import App
from mqttapi.cli.bench import made_up
from mqttapi.cli.fake_broker import Plan

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, InProcess

APP = """\
from contextlib import asynccontextmanager
from pathlib import Path
from pydantic import BaseModel
from mqttapi import App, Publisher, Reject

@asynccontextmanager
async def lifespan(app):
    app.state.handled = []
    yield
    Path("handled").write_text("\\n".join(app.state.handled))

app = App("plant", lifespan=lifespan)

class Reading(BaseModel):
    temperature: float
    unit: str = "C"

@app.topic("sensors/<device_id>/data", qos=1)
async def ingest(device_id: str, reading: Reading) -> None:
    if device_id == "3":
        raise Reject("not this one")
    app.state.handled.append(device_id)
"""
PAYLOAD = '{"temperature": 21.5}'


def measured(mqttapi: CommandLine, *arguments: str) -> dict[str, Any]:
    done = mqttapi("bench", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_message_is_counted_by_how_it_ended(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    result = measured(mqttapi, "--payload", PAYLOAD, "--messages", "40", "--topics", "5")
    figures = {name: result.pop(name) for name in ("cpu_us", "wall_us", "per_second")}
    assert all(value > 0 for value in figures.values())
    assert result == {
        "topics": 5,
        "payload": len(PAYLOAD),
        "qos": 1,
        "messages": 40,
        "done": 32,
        "dropped": 0,
        "rejected": 8,
        "failed": 0,
        "retried": 0,
    }


def test_each_topic_comes_once_before_what_is_measured_and_the_first_before_all(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    measured(mqttapi, "--payload", PAYLOAD, "--messages", "7", "--topics", "3", "--qos", "0")
    assert (mqttapi.directory / "handled").read_text().split() == list("0" + "012" + "0120120")


def test_the_payload_may_be_a_file_and_the_topics_another_s(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    mqttapi.write("reading.json", PAYLOAD)
    options = ("--payload", "reading.json", "--topic", "sensors/dev-{n}/data", "--window", "1")
    result = measured(mqttapi, *options, "--messages", "10", "--topics", "2")
    assert (result["done"], result["topics"], result["payload"]) == (10, 2, len(PAYLOAD))
    assert (mqttapi.directory / "handled").read_text().split()[-1] == "dev-1"


def test_for_people(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("bench", "--payload", PAYLOAD, "--messages", "40", "--topics", "5")
    assert done.returncode == 0, done.stderr
    messages, handled, cpu, wall = done.stdout.splitlines()
    assert messages == "messages  40 of QoS 1, 21 bytes, on 5 topics"
    assert handled == "handled   done 32, rejected 8"
    assert cpu.startswith("CPU ")
    assert wall.startswith("wall ")


def test_a_benchmark_of_errors_is_none(mqttapi: CommandLine) -> None:
    mqttapi.write("main.py", APP)
    done = mqttapi("bench", "--payload", '{"temperature": "hot"}', "--messages", "40")
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.splitlines()[-1] == (
        "mqttapi: main.ingest rejected the first message, on sensors/0/data: temperature: "
        "Input should be a valid number, unable to parse string as a number. Nothing was measured"
    )


PUBLISHES = """\
from mqttapi import App, Publisher

app = App("plant")

@app.topic("in/<n:int>", qos=0)
async def again(n: int, publisher: Publisher) -> None:
    for qos in (0, 1, 2):
        await publisher.publish(f"out/{n}", b"x", qos=qos)

@app.topic("in/#", qos=1)
async def also() -> None: ...
"""


def test_publishes_are_taken_overlapping_routes_get_each_message_once_and_nothing_is_left_on_the_disk(
    mqttapi: CommandLine,
) -> None:
    """The client id, its lock and its state belong to the app in service."""
    mqttapi.write("main.py", PUBLISHES)
    mqttapi.environment["MQTTAPI_STATE_DIR"] = str(mqttapi.directory / "state")
    result = measured(mqttapi, "--messages", "20", "--topics", "4")
    assert (result["done"], result["failed"]) == (40, 0)
    assert [path.name for path in mqttapi.directory.iterdir()] == ["main.py"]


GUESSES = """\
from mqttapi import App

app = App("plant")

@app.topic("{template}"{options}, qos=0)
async def take() -> None: ...
"""


@pytest.mark.parametrize(
    ("template", "topics"),
    [
        ("a/b", ["a/b"]),
        ("a/<p:path?>", ["a/0", "a/1", "a/2"]),
        ("<up:bool>/<x>", ["0/0", "1/1", "false/2"]),
        ("<n:int>/x-<s:slug>", ["0/x-0", "1/x-1", "2/x-2"]),
        ("<u:uuid>", [str(UUID(int=number)) for number in range(3)]),
    ],
)
def test_topics_are_made_from_the_first_route(template: str, topics: list[str]) -> None:
    app = App()

    @app.topic(template)
    async def take() -> None: ...

    assert list(made_up(app, 3)) == topics


@pytest.mark.parametrize(
    ("template", "options", "arguments", "said"),
    [
        (
            "a/<kind>",
            ', where={"kind": ["x", "y"]}',
            (),
            "cannot make up topics for 'a/<kind>' of main.take: say which, such as --topic 'a/{n}'",
        ),
        ("a/+", "", (), "cannot make up topics for 'a/+' of main.take: say which, such as --topic 'a/{n}'"),
        ("a/<x>", "", ("--topic", "b/{n}"), "--topic: no route is for 'b/0'; mqttapi routes shows what there is"),
    ],
)
def test_topics_that_cannot_be_known(
    in_process: InProcess, template: str, options: str, arguments: tuple[str, ...], said: str
) -> None:
    in_process.write("main.py", GUESSES.format(template=template, options=options))
    assert in_process("bench", *arguments) == (2, "", [f"mqttapi: {said}"])


def test_a_handler_that_needs_a_payload_is_not_called_without(in_process: InProcess) -> None:
    in_process.write("main.py", APP)
    ways = """--payload FILE or --payload '{"temperature": …}'"""
    assert in_process("bench") == (
        2,
        "",
        [f"mqttapi: main.ingest takes a payload (Reading): give one with {ways}"],
    )


def test_the_process_that_sends_ends_with_the_one_that_asked() -> None:
    broker = subprocess.Popen(
        [sys.executable, "-m", "mqttapi.cli.fake_broker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with broker:
        assert broker.stdin is not None
        assert broker.stdout is not None
        broker.stdin.write(f"{Plan(topics=['a'], payload=b'').to_json()}\n".encode())
        broker.stdin.flush()
        assert int(broker.stdout.readline())
        broker.stdin.close()
        assert broker.wait(20) == 0
