"""What a pool of workers costs at rest: memory, the time until it is ready, and the time until a killed worker is back.

    python -m benchmarks.pool [module:app] [--workers 3]

PSS is what a process has of its own, and its part of what it shares with others. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.latency import mosquitto


def pss(pid: int) -> float:
    """MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) / 1024


def peak(pid: int) -> float:
    """The resident size at most, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)[0]) / 1024


class Pool:
    def __init__(self, target: str, workers: int, port: int, folder: Path) -> None:
        self._log = folder / "log"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "MQTT_INSTANCE": "bench",
            "MQTTAPI_RUNTIME_DIR": str(folder / "runtime"),
            "MQTTAPI_STATE_DIR": str(folder / "state"),
            "WORKER_COUNT": str(workers),
            "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/bench.db",
        }
        self.began = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mqttapi", "run", target, "--broker", f"mqtt://127.0.0.1:{port}"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, holds: Callable[[], bool]) -> float:
        """Seconds that it took from the call on."""
        began = time.monotonic()
        while not holds():
            if self.process.poll() is not None:
                sys.exit(f"the pool has ended:\n{self.log}")
            time.sleep(0.005)
        return time.monotonic() - began

    def connected(self) -> dict[int, int]:
        """The process id of the last worker in each slot that has subscribed."""
        found = re.findall(r"\[(\d+) (\d+)\] mqttapi\.link: connected to", self.log)
        return {int(slot): int(pid) for slot, pid in found}


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and start of a pool at rest.")
    parser.add_argument("target", nargs="?", default="examples.quickstart:app")
    parser.add_argument("--workers", type=int, default=3, help="for shared routes that do not say")
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    with mosquitto() as port, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        pool = Pool(options.target, options.workers, port, Path(folder))
        first = pool.until(lambda: 0 in pool.connected())
        pool.until(lambda: "workers are ready" in pool.log or options.workers == 1)
        ready = time.monotonic() - pool.began
        workers = pool.connected()
        print(f"start to the first worker that is ready: {first:.2f} s; to all {len(workers)}: {ready:.2f} s")
        print(f"supervisor: PSS {pss(pool.process.pid):.1f} MiB, at most {peak(pool.process.pid):.1f} MiB resident")
        for slot, pid in sorted(workers.items()):
            print(f"worker {slot}: PSS {pss(pid):.1f} MiB, at most {peak(pid):.1f} MiB resident")
        times = []
        for number in range(options.kills):
            slot = number % len(workers)
            pid = pool.connected()[slot]
            os.kill(pid, signal.SIGKILL)
            times.append(pool.until(lambda slot=slot, pid=pid: pool.connected()[slot] != pid))  # type: ignore[misc]
        print(f"from a kill until its slot is ready again: {', '.join(f'{each:.2f}' for each in times)} s")
        pool.process.terminate()
        print(f"exit code {pool.process.wait(60)}")


if __name__ == "__main__":
    main()
