"""From publish to handler through a real mosquitto at its defaults, at half of what the pair of them can carry.

First the load is found: messages are published as fast as mosquitto acknowledges them, and the rate at which the
consumer gets them is its capacity (the broker's, when that is slower). Then half of it is published, and every
message's age is taken in the handler. mosquitto and the publisher share the second core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cases import CONSUME
from benchmarks.harness import BROKER_CORE, ROOT, Absent, command_of, measured, pin

PEERS = ("mqttapi", "gmqtt", "aiomqtt", "faststream")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: pin(BROKER_CORE)
    ) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def mosquitto() -> Iterator[int]:
    """mosquitto on a free loopback port, with every other setting at its default; gives the port."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Absent("needs mosquitto")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        configuration = Path(folder, "mosquitto.conf")
        configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        with running([program, "-c", str(configuration)]):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except OSError:
                    time.sleep(0.02)
                else:
                    break
            else:
                raise Absent("mosquitto does not answer")
            yield port


def one(name: str, qos: int, seconds: float) -> dict[str, Any]:
    case = next(case for case in CONSUME if case.name == name)
    command = command_of(case)

    def run(rate: float, messages: int, mode: str) -> dict[str, float]:
        # A broker for each run: what a persistent session kept from the last one would count as very late.
        with mosquitto() as port:
            feed = [
                sys.executable,
                "-m",
                "benchmarks.feed",
                "--port",
                str(port),
                "--qos",
                str(qos),
                "--rate",
                str(rate),
            ]
            with running(feed):
                job = {"port": port, "qos": qos, "messages": messages, "mode": mode, "variant": case.variant}
                return measured(command, timeout=60, **job)

    probe = run(0, 5_000, "count")
    full = run(0, max(int(1e6 / probe["wall_us"] * seconds), 2_000), "count")
    capacity = 1e6 / full["wall_us"]
    half = run(capacity / 2, max(int(capacity / 2 * seconds), 2_000), "latency")
    return {
        "name": name,
        "title": case.title,
        "qos": qos,
        "capacity": round(capacity),
        "full_cpu_us": round(full["cpu_us"], 2),
        "half_cpu_us": round(half["cpu_us"], 2),
        "p50_us": half["p50_us"],
        "p99_us": half["p99_us"],
        "max_us": half["max_us"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PEERS), metavar="NAME")
    parser.add_argument("--qos", type=int, choices=(0, 1), default=1)
    parser.add_argument("--quick", action="store_true", help="2 seconds for each instead of 8")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        try:
            rows.append(one(name, options.qos, 2 if options.quick else 8))
        except Absent as reason:
            rows.append({"name": name, "title": name, "absent": str(reason)})
        if not options.json:
            print(rows[-1], flush=True)
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
