"""The whole way, as a user goes it: `mosquitto_pub` to a real broker, `mqttapi run`, rows in a database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.packets import PacketType
from tests.support.process import executable
from tests.support.proxy import Direction, Proxy
from tests.support.threads import threaded
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.mosquitto import Mosquitto

ROOT = Path(__file__).parents[1]
GOOD = 900
BAD = {
    b'{"temperature": "\xff\xfe"}': "invalid unicode code point",
    b"temperature=20": "Invalid JSON: expected",
    b'{"temp": 20}': "temperature: Field required; battery: Field required",
    b"[" * 100_000: "recursion limit exceeded",
    b'{"temperature": 20, "battery": 1, "note": "' + b"x" * 2**21 + b'"}': "over max_payload (1,048,576)",
}
"""Twenty of each are sent, and must be rejected for that reason."""


def rows(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(database) as connection:
        return int(connection.execute("SELECT count(*) FROM storedreading").fetchone()[0])


def publish(broker: Mosquitto, topic: str, *options: str, data: bytes = b"") -> None:
    command = [executable("mosquitto_pub"), "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-t", topic, *options]
    subprocess.run(command, input=data, check=True, timeout=30)


def test_a_thousand_readings_a_hundred_of_them_bad(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Every good one is a row, every bad one is rejected with route and reason, and the connection stands."""
    database, log = tmp_path / "plant.db", tmp_path / "app.log"
    with threaded(Proxy(mosquitto.port)) as (proxy, _):
        environment = {
            **os.environ,
            "MQTT_URL": proxy.url,
            "MQTT_INSTANCE": "acceptance",
            "DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        }
        with log.open("wb") as output:
            app = subprocess.Popen(
                [sys.executable, "-m", "mqttapi", "run", "examples.plant.app:app"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            eventually_sync(lambda: "subscribed to" in log.read_text(), within=20, what=log.read_text)
            share = GOOD // 20
            for turn in range(20):
                lines = b"".join(b'{"temperature": %d, "battery": 0.5}\n' % (turn % 80) for _ in range(share))
                publish(mosquitto, f"devices/{turn}/readings", "-l", data=lines)
                for payload in BAD:
                    publish(mosquitto, f"devices/{turn}/readings", "-s", data=payload)
            eventually_sync(
                lambda: rows(database) >= GOOD, within=60, what=lambda: f"{GOOD} rows, not {rows(database)}"
            )
            eventually_sync(
                lambda: len(proxy.packets(Direction.TO_BROKER, PacketType.PUBACK)) >= 1000,
                within=60,
                what="1,000 PUBACKs",
            )
            assert rows(database) == GOOD
            connections = [connection for connection in proxy.connections if connection.packets[Direction.TO_CLIENT]]
            assert len(connections) == 2, "one connection to receive by, one to publish by, and none of them twice"
        finally:
            app.send_signal(signal.SIGTERM)
            assert app.wait(20) == 0
    said = log.read_text()
    assert "Traceback" not in said
    for reason in BAD.values():
        line = next((line for line in said.splitlines() if reason in line), "")
        assert "examples.plant.app.keep rejected a message on devices/" in line, said
