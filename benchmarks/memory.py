"""How much memory a flood takes: QoS 1 from a broker that ignores Receive Maximum, into a handler that sleeps 1 ms.

The growth is the highest resident size seen while the messages came, less the size before the first of them. Programs
with bounds handle all of them; the others are stopped after a while, or when they have grown by a gibibyte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import CONSUME, Case
from benchmarks.harness import BROKER_CORE, CONSUMER_CORE, ROOT, Absent, command_of, environment_of, pin

PEERS = ("mqttapi", "gmqtt", "aiomqtt", "faststream")
SLEEP = 0.001
ENOUGH_MIB = 1024
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident(process: int) -> float:
    """MiB; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_MIB
    except (OSError, IndexError):
        return 0.0


def flood(case: Case, payload: int, messages: int, limit: float) -> dict[str, Any]:
    broker_command = [sys.executable, "-m", "benchmarks.fake_broker", "--once", "--flood", "--qos", "1", "--pause", "1"]
    broker_command += ["--messages", str(messages), "--payload", str(payload)]
    command = command_of(case)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        subprocess.Popen(
            broker_command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pin(BROKER_CORE)
        ) as broker,
    ):
        assert broker.stdout is not None
        result = Path(folder, "result")
        variables = environment_of(
            port=int(broker.stdout.readline()),
            qos=1,
            messages=messages,
            sleep=SLEEP,
            result=result,
            variant=case.variant,
        )
        consumer = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: pin(CONSUMER_CORE),
        )
        try:
            if not broker.stdout.readline():  # the warm-up is over
                raise Absent("the consumer did not subscribe")
            before = highest = resident(consumer.pid)
            began = time.monotonic()
            while consumer.poll() is None and time.monotonic() - began < limit and highest - before < ENOUGH_MIB:
                highest = max(highest, resident(consumer.pid))
                time.sleep(0.01)
            return {
                "name": case.name,
                "title": case.title,
                "payload": payload,
                "messages": messages,
                "growth_mib": round(highest - before, 1),
                "seconds": round(time.monotonic() - began, 1),
                "handled_all": result.exists(),
            }
        finally:
            consumer.kill()
            consumer.wait()
            broker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PEERS), metavar="NAME")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for MQTTAPI; the peers get a sixth of it")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        case = next(case for case in CONSUME if case.name == name)
        for payload, messages in ((78, 1_000_000), (65_536, 50_000)):
            limit = options.limit if name == "mqttapi" else options.limit / 6
            try:
                rows.append(flood(case, payload, messages // 10 if options.quick else messages, limit))
            except Absent as reason:
                rows.append({"name": name, "title": case.title, "payload": payload, "absent": str(reason)})
            if not options.json:
                print(rows[-1], flush=True)
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
