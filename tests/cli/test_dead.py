"""`mqttapi dead`: letters that the broker did not take, from the app that wrote them to the one that gets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync as in_thread

from mqttapi.config import state_dir
from mqttapi.runtime.spool import Letter, Spool
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.cli.conftest import CommandLine, InProcess

APP = """\
from mqttapi import App

app = App("plant", dead_letter="dead/<topic>")

@app.topic("s/<id>", name="r")
async def handle(payload: bytes) -> None:
    raise ValueError("no good")
"""


def letter(id: str, payload: bytes = b"{}", to: str = "dead/s/1") -> Letter:
    return Letter(
        id=id,
        time="2026-01-31T12:00:00.000Z",
        to=to,
        why="nobody has subscribed to it",
        topic="s/1",
        payload=payload,
        qos=1,
        route="r",
        error="ValueError",
        reason="no good",
        attempts=2,
        user_properties=(("tenant", "a"),),
    )


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    (tmp_path / "main.py").write_text(APP)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    spool = Spool(state_dir("plant"))
    for id, payload in (("a1", b"{}"), ("b2", b"\xff")):
        spool.append(letter(id, payload))
    return spool


def ids(spool: Spool) -> list[str]:
    return [each.id for each in spool.letters()]


@pytest.mark.parametrize("where", ["main:app", None, "--dir"])
def test_list_finds_the_letters_of_an_app_or_in_a_directory(
    spool: Spool, in_process: InProcess, where: str | None
) -> None:
    arguments = ["--dir", str(spool.directory)] if where == "--dir" else [where] if where else []
    code, out, _ = in_process("dead", "list", *arguments)
    assert code == 0
    header, first, second = out.splitlines()
    assert header.split() == ["id", "time", "route", "topic", "error", "attempts", "bytes", "to", "why"]
    assert first.split()[:8] == ["a1", "2026-01-31T12:00:00.000Z", "r", "s/1", "ValueError", "2", "2", "dead/s/1"]
    assert second.startswith("b2")


def test_list_is_json_for_programs(spool: Spool, in_process: InProcess) -> None:
    _, out, _ = in_process("dead", "list", "--json")
    first, second = json.loads(out)
    assert (first["payload"], second["payload_base64"]) == ("{}", "/w==")
    assert first["user_properties"] == [["tenant", "a"]]


def test_list_says_when_there_is_nothing_and_when_something_is_damaged(in_process: InProcess, tmp_path: Path) -> None:
    assert in_process("dead", "list", "--dir", str(tmp_path)) == (0, "", ["mqttapi: there are no dead letters in DIR"])
    (tmp_path / "letters").write_bytes(letter("a1").encoded()[:20])
    assert in_process("dead", "list", "--dir", str(tmp_path))[2] == [
        "mqttapi: there are no dead letters in DIR",
        "mqttapi: 1 more are damaged: they were being written when a process died",
    ]


def test_show_tells_all(spool: Spool, in_process: InProcess) -> None:
    _, out, _ = in_process("dead", "show", "main:app", "b2")
    assert dict(line.split(maxsplit=1) for line in out.splitlines()) == {
        "id": "b2",
        "time": "2026-01-31T12:00:00.000Z",
        "to": "dead/s/1",
        "why": "nobody has subscribed to it",
        "topic": "s/1",
        "qos": "1",
        "route": "r",
        "error": "ValueError",
        "reason": "no good",
        "attempts": "2",
        "user_properties": "(('tenant', 'a'),)",
        "payload_base64": "/w==",
    }


def test_discard_deletes(spool: Spool, in_process: InProcess) -> None:
    assert in_process("dead", "discard", "b2", "b2") == (0, "", ["mqttapi: discarded 1"])
    assert ids(spool) == ["a1"]
    assert in_process("dead", "discard", "--all") == (0, "", ["mqttapi: discarded 1"])
    assert ids(spool) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "c3"], "there is no letter 'c3' in DIR/mqttapi/plant: 'mqttapi dead list' shows all"),
        (["discard"], "which letters? Give their ids: 'mqttapi dead list' shows them"),
        (["discard", "--all", "a1"], "give ids or --all, not both"),
        (["list", "main:app", "--dir", "."], "give --dir or an app, not both"),
        (["list", "--dir", "nowhere"], "--dir: 'nowhere' is not a directory"),
    ],
)
def test_wrong_use_is_one_line_and_changes_nothing(
    spool: Spool, in_process: InProcess, arguments: list[str], said: str
) -> None:
    assert in_process("dead", *arguments) == (2, "", [f"mqttapi: {said}"])
    assert ids(spool) == ["a1", "b2"]


def test_letters_that_cannot_be_read_or_taken_out_are_an_error_of_one_line(spool: Spool, in_process: InProcess) -> None:
    """A directory in the place of a file stands for a full disk, or for letters of another user."""
    (spool.directory / "letters.new").mkdir()
    where = "DIR/mqttapi/plant"
    code, _, err = in_process("dead", "discard", "a1")
    assert (code, ids(spool)) == (1, ["a1", "b2"])
    assert err == [f"mqttapi: cannot change the dead letters in {where}, and all are still there: Is a directory"]
    (spool.directory / "letters").unlink()
    (spool.directory / "letters").mkdir()
    for arguments in (["list"], ["show", "a1"]):
        code, _, err = in_process("dead", *arguments)
        assert (code, err) == (1, [f"mqttapi: cannot read {where}: Is a directory"])


async def test_resend_sends_what_the_app_could_not(mqttapi: CommandLine, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """First nobody listens, so the letter stays; then somebody does; `--original` goes to where it came from."""
    mqttapi.write("main.py", APP)
    mqttapi.environment |= {"MQTTAPI_STATE_DIR": str(tmp_path / "state"), "MQTT_URL": mosquitto.url}
    app = mqttapi.start("run")
    await in_thread(lambda: app.wait_for("subscribed"))
    async with client(mosquitto.url) as publisher:
        await publisher.publish("s/1", b"one", qos=1)
        await publisher.publish("s/2", b"two", qos=1)
    spool = Spool(state_dir("plant", tmp_path / "state"))
    await eventually(lambda: len(spool.letters()) == 2)
    assert await in_thread(app.stop) == 0
    assert "dead letters of r cannot be sent to dead/s/1 (nobody has subscribed to it): they are in " in app.output
    first, second = spool.letters()

    refused = await in_thread(lambda: mqttapi("dead", "resend", "--all"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"mqttapi: letter {first.id}: nobody has subscribed to 'dead/s/1'",
        f"mqttapi: letter {second.id}: nobody has subscribed to 'dead/s/2'",
        "mqttapi: sent 0 of 2",
    ]
    assert spool.letters() == [first, second]

    async with client(mosquitto.url) as reader:
        await reader.subscribe("#", qos=1)
        sent = await in_thread(lambda: mqttapi("dead", "resend", first.id))
        assert sent.stderr == "mqttapi: sent 1 of 1\n"
        (again,) = await eventually(lambda: reader.messages)
        assert (again.topic, again.payload) == ("dead/s/1", b"one")
        assert ("mqttapi-reason", "no good") in again.publish.user_properties
        await in_thread(lambda: mqttapi("dead", "resend", "--all", "--original"))
        await eventually(lambda: len(reader.messages) == 2)
        assert (reader.messages[1].topic, reader.messages[1].payload) == ("s/2", b"two")
        assert reader.messages[1].publish.user_properties in (None, [])
    assert spool.letters() == []
