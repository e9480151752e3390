"""Apps in processes of their own, which can be killed and paused, and what it takes to see what became of messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App
from mqttapi.config import Settings
from tests.support.command_line import children
from tests.support.mqtt import Client, client
from tests.support.packets import PacketType, publish
from tests.support.proxy import Direction, Proxy, ProxyConnection
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["AppProcess", "Row", "SupervisedApp", "app_called", "consumers", "counting", "publish_all", "texts"]

_ROOT = Path(__file__).parent.parent.parent

_PREAMBLE = '''\
from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from mqttapi import App, Context, Drop, Publisher, Reject, Retry, RetryLater

_notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_gates = os.environ["GATES"]


def note(*words):
    """Whatever happens to this process next, the line is written."""
    os.write(_notes, (" ".join(map(str, words)) + "\\n").encode())


def is_open(gate):
    return os.path.exists(os.path.join(_gates, gate))


async def opened(gate):
    while not is_open(gate):
        await asyncio.sleep(0.005)


def opened_for_threads(gate):
    while not is_open(gate):
        time.sleep(0.005)


app = App("faults")
'''

_MAIN = """\
import sys

from mqttapi import logs
from mqttapi.config import Settings
from mqttapi.errors import MQTTAPIError

settings = Settings()
logs.configure(settings.log_level, settings.log_format)
try:
    from module import app

    app.run()
except MQTTAPIError as error:
    sys.exit(f"mqttapi: {error}")
"""
"""What a test kills must be the process that has the connections: `App.run` in an interpreter of its own, without the
processes that a command may put around it. It logs to stderr, and fails with one line, as a command does."""


class AppProcess:
    """One process with an app of its own, in a directory that outlives its restarts.

    The app's source begins with what `_PREAMBLE` gives it: `app`; `note("handled", payload)`, which writes a line that
    `notes()` gives, also after a SIGKILL; `await opened("gate")`, which ends once the test has called `open("gate")`.
    """

    command: tuple[str, ...] = (sys.executable, "-c", _MAIN)

    def __init__(self, directory: Path, broker: str, source: str, *, instance: str = "0", **environment: str) -> None:
        self.directory = directory / f"app-{instance}"
        self.directory.mkdir()
        self.gates = self.directory / "gates"
        self.gates.mkdir()
        self._notes = self.directory / "notes"
        self._log = self.directory / "log"
        self._read = 0
        self._lines: list[str] = []
        self._noted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._starts = 0
        self.write(source)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MQTT")}
        self.environment = inherited | {
            "PYTHONPATH": str(_ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NOTES": str(self._notes),
            "GATES": str(self.gates),
            "MQTT_URL": broker,
            "MQTT_INSTANCE": instance,
            "MQTTAPI_RUNTIME_DIR": str(self.directory / "runtime"),
            "MQTTAPI_STATE_DIR": str(self.directory / "state"),
            "MQTTAPI_GRACE": "10",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, source: str) -> None:
        """The app's source, from the next start on."""
        (self.directory / "module.py").write_text(_PREAMBLE + source)

    # What is done to it

    def launch(self) -> None:
        """Start it, without waiting for anything."""
        self._starts += 1
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def start(self) -> None:
        """Start it, and wait until it has subscribed."""
        self.launch()
        await self.said("connected to", times=self._starts)

    def open(self, gate: str) -> None:
        """Let handlers go on that wait for `gate`, now and later."""
        (self.gates / gate).touch()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, within: float = 20.0) -> int:
        """Wait for its end, and give the exit code."""
        process = self.process
        assert process is not None
        await eventually(
            lambda: process.poll() is not None, within=within, what=lambda: f"its end; its log:\n{self.log}"
        )
        assert process.returncode is not None
        return process.returncode

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM, and wait for the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()

    def dispose(self) -> None:
        """The end, whatever the state."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
            self.process.wait()

    # What is seen of it

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def notes(self) -> list[str]:
        """Every line that the app has noted, over all its starts."""
        if self._notes.exists():
            with self._notes.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]  # a line that is being written may be seen in part
            self._read += len(new)
            for line in new.decode().splitlines():
                word, _, rest = line.partition(" ")
                self._noted[word][rest] += 1
                self._lines.append(line)
        return self._lines

    def noted(self, word: str) -> Counter[str]:
        """What was noted behind `word`, and how often."""
        self.notes()
        return self._noted[word].copy()

    def distinct(self, word: str) -> int:
        """How many different things were noted behind `word`."""
        self.notes()
        return len(self._noted[word])

    async def notes_of(self, word: str, count: int = 1, *, within: float = 15.0) -> Counter[str]:
        """Wait until so many different things were noted behind `word`."""
        await eventually(lambda: self.distinct(word) >= count, within=within, what=lambda: self._state(word))
        return self.noted(word)

    async def said(self, text: str, *, times: int = 1, within: float = 20.0) -> None:
        """Wait until its log has `text`, so many times."""

        def seen() -> bool:
            if self.log.count(text) >= times:
                return True
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode} before it said {text!r}:\n{self.log}")
            return False

        await eventually(seen, within=within, what=lambda: f"{text!r} in its log:\n{self.log}")

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of memory: `VmRSS` now, `VmHWM` at most."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        raise LookupError(field)

    def _state(self, word: str) -> str:
        return f"{word!r} {dict(self.noted(word))}; notes: {self.notes()[-30:]}; its log:\n{self.log[-4000:]}"


class SupervisedApp(AppProcess):
    """The same under `mqttapi run`: the process is the supervisor, which starts a worker that dies again."""

    command = (sys.executable, "-m", "mqttapi", "run", "module:app")

    def dispose(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for pid in children(self.process.pid):
                os.kill(pid, signal.SIGKILL)
        super().dispose()


class Row:
    """A line of the fault table, written by the test it belongs to."""

    def __init__(self, test: str, *, part: str) -> None:
        self.part = part
        """What the tests of its file are about."""
        self.fault = test
        self.expected = ""
        self.seen = ""
        self.lost: int | None = None
        self.twice: int | None = None

    def __call__(self, fault: str, expected: str) -> None:
        """What is done, and what must become of it."""
        self.fault, self.expected = fault, expected

    def saw(self, text: str) -> None:
        """What happened, where it is not told in counts."""
        self.seen = text

    def settle(
        self,
        published: Iterable[str],
        handled: Counter[str],
        *,
        twice: Iterable[str] = (),
        seen: str = "",
    ) -> None:
        """Check that all that was published was handled, once, but those that may be handled `twice`."""
        wanted = set(published)
        again = {payload for payload, runs in handled.items() if runs > 1}
        missing = wanted - set(handled)
        self.lost, self.twice = len(missing), len(again)
        self.seen = seen or f"{len(wanted)} published, {len(wanted & set(handled))} handled"
        assert not missing, f"lost: {sorted(missing)[:20]} of {len(wanted)}"
        assert again <= set(twice), f"handled again: { {each: handled[each] for each in again - set(twice)} }"
        assert set(handled) <= wanted, f"never published: {set(handled) - wanted}"


def app_called(name: str, **values: Any) -> App:
    """An app in the test's own process."""
    return App(name, settings=Settings(**{"instance": "faults", "grace": 5.0, **values}))


def counting(
    name: str, template: str = "s/<id>", *, settings: dict[str, Any] | None = None, **options: Any
) -> tuple[App, Counter[str]]:
    """An app that counts the payloads it has handled."""
    app = app_called(name, **settings or {})
    handled: Counter[str] = Counter()

    @app.topic(template, **options)
    async def count(payload: str) -> None:
        handled[payload] += 1

    return app, handled


def consumers(proxy: Proxy) -> list[ProxyConnection]:
    """The connections that have subscribed."""
    return [
        each
        for each in proxy.connections
        if any(packet.kind is PacketType.SUBSCRIBE for packet in each.packets[Direction.TO_BROKER])
    ]


def texts(count: int, start: int = 0) -> list[str]:
    """So many different payloads."""
    return [str(number) for number in range(start, start + count)]


async def publish_all(
    url: str, topics: str | Sequence[str], payloads: Sequence[str | bytes], *, qos: int = 1, within: float = 30.0
) -> None:
    """Publish without waiting in between, and return once the broker has acknowledged all, each with success.

    `topics` are taken in turn.
    """
    turns = [topics] if isinstance(topics, str) else topics
    packets = [
        publish(
            turns[index % len(turns)],
            payload.encode() if isinstance(payload, str) else payload,
            qos=qos,
            packet_id=index + 1 if qos else 0,
        )
        for index, payload in enumerate(payloads)
    ]
    kind = (None, PacketType.PUBACK, PacketType.PUBCOMP)[qos]
    async with client(url) as publisher:
        # A QoS 2 message takes part of the broker's Receive Maximum until PUBCOMP; QoS 1 is answered as it is read.
        step = publisher.connack.connack.receive_max if qos == 2 else len(packets)
        for start in range(0, len(packets), step):
            publisher.send(b"".join(packets[start : start + step]))
            await publisher._writer.drain()
            if kind is not None:
                due = min(start + step, len(packets))
                await eventually(partial(_came, publisher, kind, due), within=within, what=f"{due} {kind.name}")
        if kind is None:
            await publisher.ping()
        refused = [packet for packet in publisher.received if packet.kind in _ANSWERS and packet.reason_code]
        assert not refused, f"the broker answered {refused[:3]}"


def _came(publisher: Client, kind: PacketType, count: int) -> bool:
    return sum(packet.kind is kind for packet in publisher.received) >= count


_ANSWERS = (PacketType.PUBACK, PacketType.PUBREC)
