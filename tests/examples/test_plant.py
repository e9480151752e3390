"""The plant: its app without a broker, and all of it once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.plant.__main__ import rows, summary
from examples.plant.app import Counts, app
from mqttapi.testing import TestClient
from tests.support.process import executable, free_port
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "plant.db"
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def client(database: Path) -> AsyncIterator[TestClient]:
    async with TestClient(app, raise_exceptions=False) as client:
        yield client


async def test_a_reading_becomes_a_row(client: TestClient, database: Path) -> None:
    delivery = await client.publish("devices/7/readings", {"temperature": 20, "battery": 1})
    assert delivery.outcome == "done"
    assert rows(database) == 1
    assert client.published == []


async def test_a_hot_one_raises_an_alert(client: TestClient) -> None:
    await client.publish("devices/7/readings", {"temperature": 80.5, "battery": 1})
    [alert] = client.published
    assert (alert.topic, alert.payload) == ("alerts/7", b'{"device_id":"7","temperature":80.5}')


@pytest.mark.parametrize("payload", [b"\xff\xfe", b"x=1", {"temp": 20}, {"temperature": 4000, "battery": 1}, b""])
async def test_nonsense_is_rejected_and_not_kept(client: TestClient, database: Path, payload: Any) -> None:
    delivery = await client.publish("devices/7/readings", payload)
    assert delivery.outcome == "rejected"
    assert (app.state.counts.rejected, rows(database)) == (1, 0)


async def test_when_the_alert_cannot_be_published_nothing_is_kept(client: TestClient, database: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError

    client.submit = refuse  # type: ignore[method-assign, assignment]  # a transport that fails
    delivery = await client.publish("devices/7/readings", {"temperature": 90, "battery": 1})
    assert delivery.outcome == "failed"
    assert (app.state.counts.failed, rows(database)) == (1, 0)


@pytest.mark.parametrize(
    ("published", "handled", "rejected", "stored", "fine"),
    [(10, 8, 2, 8, True), (10, 8, 1, 8, False), (10, 9, 2, 9, False), (10, 8, 2, 7, False)],
)
def test_the_summary_tells_what_was_lost(
    published: int, handled: int, rejected: int, stored: int, *, fine: bool
) -> None:
    assert summary(published, Counts(handled=handled, rejected=rejected), stored) is fine


@pytest.fixture
def command() -> list[str]:
    executable("mosquitto")
    return [sys.executable, "-m", "examples.plant", "--port", str(free_port())]


def test_all_that_was_published_is_accounted_for(command: list[str]) -> None:
    done = subprocess.run([*command, "--seconds", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"^(\w+) +([\d,]+)", done.stdout, re.MULTILINE)
    }
    assert said["published"] == said["handled"] + said["rejected"] > 0
    assert said["handled"] == said["stored"]
    assert said["rejected"] > 0
    assert done.stderr == ""


def test_ctrl_c_in_a_terminal_drains_and_prints_the_summary(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        eventually_sync(
            lambda: re.search(r"alerts +\S*[1-9]", output.read_text()) or process.poll() is not None,
            within=30,
            what=output.read_text,
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output.read_text()
    finally:
        process.kill()
    text = output.read_text()
    assert "messages per second" in text
    assert "handled = stored: yes" in text
