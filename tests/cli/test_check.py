"""`mqttapi check`: the command. What it looks for is in `test_checks`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync as in_thread

from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, InProcess

SOUND = """\
from mqttapi import App

app = App("plant", dead_letter="dead/<topic>")

@app.topic("s/<id>", name="reading")
async def ingest(id: str) -> None: ...
"""
WARNED = SOUND.replace("s/<id>", "#").replace("id: str", "").replace("dead/<topic>", "dead/it")
WRONG = SOUND.replace('name="reading"', 'name="reading", publish_to="s/out"')
NOTHING_ELSE = """\
# When a process leaves the pool: a pattern, + stands for its client id.
topic readwrite mqttapi/fence/+
# Not known: add the topics of
#   answers, to the Response Topic that a message names
"""


def test_a_sound_app_has_nothing_to_say_but_what_it_needs(in_process: InProcess) -> None:
    in_process.write("main.py", SOUND)
    code, out, err = in_process("check")
    assert (code, err) == (0, [])
    assert (
        out
        == f"""\
plant, 1 route: nothing to say

# The least that plant needs, for mosquitto's acl_file.
user <name>
# Subscribed to: these filters, exactly.
topic read s/+
# Published to: patterns, with wildcards for what the messages bring.
topic write dead/s/+
{NOTHING_ELSE}"""
    )


def test_an_error_is_told_with_its_route_and_the_way_out_and_ends_with_1(in_process: InProcess) -> None:
    in_process.write("main.py", WRONG)
    code, out, _ = in_process("check", "main:app")
    assert code == 1
    assert out.startswith("""\
error: reading (main.py:5) [publish-loop]
    what it publishes to 's/out' comes back: 'reading' → 'reading'
    What is published goes round for ever; republish() rejects the message instead.
    Publish to topics that none of these routes listens to.

plant, 1 route: 1 error
""")


def test_warnings_end_with_0_and_where_asked_with_1(in_process: InProcess) -> None:
    in_process.write("main.py", WARNED)
    code, out, _ = in_process("check")
    assert code == 0
    assert "plant, 1 route: 2 warnings\n" in out
    assert in_process("check", "--strict")[0] == 1


def test_a_check_that_is_left_out_does_not_count(in_process: InProcess) -> None:
    in_process.write("main.py", WARNED)
    code, out, _ = in_process("check", "--strict", "--ignore", "bare-wildcard", "--ignore", "dead-letter-comes-back")
    assert code == 0
    assert out.startswith("plant, 1 route: nothing to say\n")


def test_findings_that_are_about_the_app_and_about_many_routes(in_process: InProcess) -> None:
    routes = "".join(f"app.on('r/{n}', ingest, name='r{n}')\n" for n in range(7))
    in_process.write(
        "main.py",
        f"from mqttapi import App, Session\n\nasync def ingest(): ...\n\napp = App(session=Session(9))\n{routes}",
    )
    _, out, _ = in_process("check")
    assert "warning: the app [short-session]\n" in out
    assert (
        "note: r0 (main.py:3), r1 (main.py:3), r2 (main.py:3), r3 (main.py:3), r4 (main.py:3) and 2 more [no-dead"
        in out
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", "--acl", "json"], "give --json or --acl, not both: what --json prints holds the access, too"),
        (["--ignore", "bare-wildcards"], "--ignore: there is no check 'bare-wildcards': did you mean 'bare-wildcard'?"),
        (["nowhere:app"], "cannot load 'nowhere:app': there is no module 'nowhere' in DIR"),
    ],
)
def test_wrong_use_is_one_line_and_ends_with_2(in_process: InProcess, arguments: list[str], said: str) -> None:
    in_process.write("main.py", SOUND)
    assert in_process("check", *arguments) == (2, "", [f"mqttapi: {said}"])


def test_an_unknown_check_without_a_near_one_shows_all(in_process: InProcess) -> None:
    in_process.write("main.py", SOUND)
    (said,) = in_process("check", "--ignore", "xyz")[2]
    assert said.startswith("mqttapi: --ignore: there is no check 'xyz': known are refused-at-start, shadowed-route, ")


def test_it_is_json_for_programs(in_process: InProcess) -> None:
    in_process.write("main.py", WRONG)
    code, out, err = in_process("check", "--json")
    assert (code, err) == (1, [])
    told = json.loads(out)
    (finding,) = told["findings"]
    assert finding == {
        "level": "error",
        "check": "publish-loop",
        "routes": [{"name": "reading", "source": "main.py:5"}],
        "what": "what it publishes to 's/out' comes back: 'reading' → 'reading'",
        "why": "What is published goes round for ever; republish() rejects the message instead.",
        "way_out": "Publish to topics that none of these routes listens to.",
    }
    assert told["app"] == told["acl"]["app"] == "plant"


ACCESS = """\
from mqttapi import App, Context, Controller, Depends, Publish, Publisher

class Devices(Controller):
    async def state(self) -> None: ...

async def outer(context, call_next):
    return await call_next(context)

async def alarm(publisher: Publisher) -> None: ...

app = App("plant", middleware=[outer])

@app.topic("s/<id>", name="reading", shared=True, publish_to="out/<id>", dead_letter="dead")
async def ingest(id: str, context: Context) -> Publish | None: ...

@app.topic("s/<id>", name="alarm", dependencies=[Depends(alarm)], dead_letter="dead")
async def watch(id: str) -> None: ...

app.on("s/<id>/state", Devices.state, name="state")
app.republish("old/<id>", "new/<id>")

@app.exception_handler(ValueError)
async def wrong(context, error): ...

@app.on_connect
async def hello(): ...
"""


def test_the_access_for_programs_tells_what_is_exact_and_who_needs_it(in_process: InProcess) -> None:
    in_process.write("main.py", ACCESS)
    code, out, err = in_process("check", "--acl", "json")
    assert code == 0
    assert err[-1] == "plant, 4 routes: 1 note"
    assert json.loads(out) == {
        "app": "plant",
        "subscribe": [
            {"filter": "$share/plant/s/+", "topics": "s/+", "exact": True, "routes": ["reading"]},
            {"filter": "s/+", "topics": "s/+", "exact": True, "routes": ["alarm"]},
            {"filter": "s/+/state", "topics": "s/+/state", "exact": True, "routes": ["state"]},
            {"filter": "old/+", "topics": "old/+", "exact": True, "routes": ["mqttapi.routing.republish.republish"]},
            {"filter": "mqttapi/fence/+", "topics": "mqttapi/fence/+", "exact": False, "routes": []},
        ],
        "publish": [
            {"topic": "out/+", "exact": False, "for": ["publish_to of reading"]},
            {"topic": "dead", "exact": True, "for": ["dead_letter of reading", "dead_letter of alarm"]},
            {"topic": "new/+", "exact": False, "for": ["publish_to of mqttapi.routing.republish.republish"]},
            {"topic": "mqttapi/fence/+", "exact": False, "for": ["a process that leaves the pool"]},
        ],
        "unknown": [
            "answers, to the Response Topic that a message names",
            "reading (main.py:13), by Context and what it returns",
            "alarm (main.py:16), by Publisher",
            "state (main.py:4), by self.publish",
            "the middleware outer(), if it publishes",
            "the exception handler wrong(), if it publishes",
            "the hooks, if they publish",
        ],
    }


def test_the_access_alone_is_a_file_for_mosquitto(in_process: InProcess) -> None:
    in_process.write("main.py", ACCESS)
    _, out, _ = in_process("check", "--acl", "mosquitto")
    assert [line for line in out.splitlines() if not line.startswith("#")] == [
        "user <name>",
        "topic read s/+",
        "topic read s/+/state",
        "topic read old/+",
        "topic write dead",
        "topic write out/+",
        "topic write new/+",
        "topic readwrite mqttapi/fence/+",
    ]


def test_settings_count_from_the_environment_and_from_a_file(in_process: InProcess) -> None:
    in_process.write("main.py", SOUND)
    in_process.write("short.env", "MQTTAPI_SESSION_EXPIRY=30\n")
    _, out, _ = in_process("check", "--env-file", "short.env")
    assert "the session expires after 30 s, and a restart may take 60 s" in out


def test_a_cap_for_the_workers_counts(in_process: InProcess) -> None:
    in_process.write("main.py", SOUND.replace("name=", "shared=True, workers=3, name="))
    assert "of 3 workers" in in_process("check")[1]
    assert "of 2 workers" in in_process("check", "--workers", "2")[1]
    assert "workers" not in in_process("check", "--workers", "1")[1]


def test_the_settings_of_the_app_come_first(in_process: InProcess) -> None:
    settings = 'settings=Settings(group_name="mine")'
    in_process.write(
        "main.py",
        SOUND.replace("name=", "shared=True, name=")
        .replace("import App", "import App\nfrom mqttapi.config import Settings")
        .replace('"plant", ', f'"plant", {settings}, '),
    )
    _, out, _ = in_process("check", "--json")
    assert json.loads(out)["acl"]["subscribe"][0]["filter"] == "$share/mine/s/+"


RUNNING = """\
from mqttapi import App

app = App("plant", dead_letter="dead/<topic>")

@app.topic("s/<id>", shared=True, publish_to="out/<id>")
async def ingest(id: str, payload: str) -> str:
    if payload == "bad":
        raise ValueError("no good")
    return payload
"""


async def test_what_is_printed_is_enough_for_a_real_broker_and_not_too_much(
    mqttapi: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The app gets its messages as a member of a group, publishes and puts aside; anything else is refused."""
    mqttapi.write("main.py", RUNNING)
    mqttapi.environment |= {"MQTTAPI_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    checked = await in_thread(lambda: mqttapi("check", "--acl", "mosquitto"))
    acl = checked.stdout.replace("<name>", "plant") + "\nuser boss\ntopic readwrite #\n"
    with Mosquitto(users={"plant": "secret", "boss": "secret"}, acl=acl) as broker:
        as_plant = broker.url.replace("://", "://plant:secret@")
        app = mqttapi.start("run", MQTT_URL=as_plant)
        await in_thread(lambda: app.wait_for("subscribed"))
        async with client(broker.url.replace("://", "://boss:secret@")) as boss:
            await boss.subscribe("#", qos=1)
            await boss.publish("s/1", b"good", qos=1)
            await boss.publish("s/2", b"bad", qos=1)
            await eventually(lambda: {"out/1", "dead/s/2"} <= {message.topic for message in boss.messages})
            refused = await in_thread(lambda: mqttapi("pub", "out/1/more", "x", MQTT_URL=as_plant))
            assert "Not authorized" in refused.stderr
            await in_thread(lambda: mqttapi("pub", "out/9", "x", MQTT_URL=as_plant))
            await eventually(lambda: "out/9" in {message.topic for message in boss.messages})
            assert "out/1/more" not in {message.topic for message in boss.messages}
        assert await in_thread(app.stop) == 0
