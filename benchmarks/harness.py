"""Makes the environments, runs every program in a process of its own, and collects what it reports."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import CONSUME, COSTS, OURS, PLOT, PUBLISH, Case, Environment
from benchmarks.workload import PAYLOAD

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENTS = HERE / ".envs"
TIMEOUT = 180
BROKER_CORE, CONSUMER_CORE = 1, 0

Figures = dict[str, float]


class Absent(Exception):
    """Something cannot be measured here; the text says why."""


# ------------------------------------------------------------------------------------------------------ environments


def find_python(least: tuple[int, int]) -> str:
    """The oldest Python that will do: this one, one on the PATH, or one of pyenv's."""
    if sys.version_info[:2] >= least:
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(least[1], least[1] + 4):
        candidates = [
            shutil.which(f"python3.{minor}"),
            *sorted(versions.glob(f"3.{minor}.*/bin/python3"), reverse=True),
        ]
        for candidate in candidates:
            # A shim on the PATH may stand for a version that is not switched on.
            if candidate and not subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode:
                return str(candidate)
    raise Absent(f"needs Python {least[0]}.{least[1]}")


def python_of(environment: Environment) -> str:
    """The interpreter of an environment, which is made (again) when its requirements are not what it was made with."""
    if not environment.requirements:
        return sys.executable
    folder = ENVIRONMENTS / environment.name
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(environment.requirements) + "\n"
    if not (made.exists() and made.read_text() == wanted and python.exists()):
        print(f"making {folder.relative_to(ROOT)}: {' '.join(environment.requirements)}", file=sys.stderr)
        base = find_python(environment.python)
        _checked([base, "-m", "venv", "--clear", str(folder)])
        _checked([str(python), "-m", "pip", "install", "-q", *environment.requirements])
        made.write_text(wanted)
    return str(python)


def compiled(source: Path) -> str:
    """The program made from a C source with libmosquitto."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Absent("needs a C compiler")
    ENVIRONMENTS.mkdir(exist_ok=True)
    program = ENVIRONMENTS / source.stem
    _checked([compiler, "-O2", "-o", str(program), str(source), "-lmosquitto"], "needs the headers of libmosquitto")
    return str(program)


def command_of(case: Case) -> list[str]:
    program = HERE / case.program
    if program.suffix == ".c":
        return [compiled(program)]
    return [python_of(case.environment), str(program)]


def _checked(command: Sequence[str], reason: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Absent(reason or f"{command[-1]}: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


# --------------------------------------------------------------------------------------------------------- processes


def pin(core: int) -> None:
    """Keep this process on one core, where there are two and the system can."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


def environment_of(**values: object) -> dict[str, str]:
    """The variables that `benchmarks.meter.Job` reads, on top of our own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **{f"BENCH_{name.upper()}": str(it) for name, it in values.items()}}


@contextmanager
def fake_broker(*options: str) -> Iterator[int]:
    """A fake broker on the second core; gives its port."""
    command = [sys.executable, "-m", "benchmarks.fake_broker", "--once", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pin(BROKER_CORE)
    ) as broker:
        assert broker.stdout is not None
        try:
            yield int(broker.stdout.readline())
        finally:
            broker.kill()


def measured(command: Sequence[str], timeout: float = TIMEOUT, **values: object) -> Figures:
    """Run a program on the first core until it reports."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result, log = Path(folder, "result"), Path(folder, "log")
        with log.open("w") as stderr:
            try:
                subprocess.run(
                    command,
                    cwd=folder,
                    env=environment_of(result=result, **values),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=timeout,
                    check=False,
                    preexec_fn=lambda: pin(CONSUMER_CORE),
                )
            except subprocess.TimeoutExpired:
                raise Absent(f"no result in {timeout:.0f} s") from None
        if not result.exists():
            raise Absent(f"failed: {_last_line(log.read_text(errors='replace'))}")
        figures: Figures = json.loads(result.read_text())
        return figures


def measure(case: Case, qos: int, messages: int, broker: Sequence[str]) -> Figures:
    count = max(int(messages * case.share), 2_000)
    command = command_of(case)
    options = ["--qos", str(qos), "--messages", str(count), *broker, *case.broker]
    with fake_broker(*options) as port:
        return measured(command, port=port, qos=qos, messages=count, variant=case.variant)


# ------------------------------------------------------------------------------------------------------------ suites


@dataclass(slots=True)
class Cell:
    """The rounds of one case at one QoS, or why there are none."""

    rounds: list[Figures]
    absent: str = ""

    def median(self, name: str) -> float:
        return median(it[name] for it in self.rounds)

    def summary(self) -> dict[str, Any]:
        if self.absent:
            return {"absent": self.absent}
        names = ("cpu_us", "user_us", "system_us", "wall_us")
        spread = [min(it["cpu_us"] for it in self.rounds), max(it["cpu_us"] for it in self.rounds)]
        return {name: round(self.median(name), 3) for name in names} | {"spread": spread, "rounds": len(self.rounds)}


def compare(suite: str, cases: Sequence[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every case, round after round, so that a noisy minute falls on all of them.

    A ratio is the median over the rounds of a case's CPU time divided by the reference's of the same round.
    """
    wanted = [case for case in cases if not options.only or case.name in options.only]
    cells = {(case.name, qos): Cell([]) for case in wanted for qos in case.qos if qos in options.qos}
    for number in range(options.repeat):
        for case in wanted:
            for qos in case.qos:
                cell = cells.get((case.name, qos))
                if cell is None or cell.absent:
                    continue
                try:
                    figures = measure(case, qos, options.messages, options.broker)
                except Absent as reason:
                    cell.absent, cell.rounds = str(reason), []
                    print(f"{suite} {case.name} QoS {qos}: {reason}", file=sys.stderr)
                else:
                    cell.rounds.append(figures)
                    print(
                        f"{suite} {case.name} QoS {qos}, round {number + 1}: {figures['cpu_us']:.2f} µs CPU, "
                        f"{figures['wall_us']:.2f} µs wall",
                        file=sys.stderr,
                    )
    return [_row(case, cells, _reference(wanted, cells)) for case in wanted]


def _reference(cases: Sequence[Case], cells: Mapping[tuple[str, int], Cell]) -> str:
    """Ours; where ours was not measured, gmqtt."""
    measured_names = {name for (name, _), cell in cells.items() if cell.rounds}
    return next((case.name for case in cases if case.environment is OURS and case.name in measured_names), "gmqtt")


def _row(case: Case, cells: Mapping[tuple[str, int], Cell], reference: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": case.name, "title": case.title, "work": case.work, "reference": reference}
    for qos in case.qos:
        cell, other = cells.get((case.name, qos)), cells.get((reference, qos))
        if cell is None:
            continue
        row[f"qos{qos}"] = cell.summary()
        if cell.rounds and other is not None and len(other.rounds) == len(cell.rounds):
            ratios = [mine["cpu_us"] / its["cpu_us"] for mine, its in zip(cell.rounds, other.rounds, strict=True)]
            row[f"qos{qos}"]["ratio"] = round(median(ratios), 3)
    return row


def part(module: str, options: argparse.Namespace) -> dict[str, Any]:
    """A benchmark with a program of its own: `python -m benchmarks.<module> --json -`."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json"]
    if options.quick:
        command.append("--quick")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{module}: {_last_line(done.stderr)}", file=sys.stderr)
        return {"absent": _last_line(done.stderr)}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


SUITES = ("consume", "publish", "costs", "matcher", "latency", "memory")


def collect(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {
        "setup": {
            "python": ".".join(map(str, sys.version_info[:3])),
            "messages": options.messages,
            "repeat": options.repeat,
            "broker": list(options.broker),
            "payload": len(PAYLOAD),
        }
    }
    for suite, cases in (("consume", CONSUME), ("publish", PUBLISH), ("costs", COSTS)):
        if suite in options.suite:
            results[suite] = compare(suite, cases, options)
    for suite in ("matcher", "latency", "memory"):
        if suite in options.suite:
            results[suite] = part(suite, options)
    return results


def _plot(source: Path, target: Path) -> None:
    try:
        _checked([python_of(PLOT), str(HERE / "plot.py"), str(source), str(target)])
    except Absent as reason:
        print(f"no plot: {reason}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time per message of MQTTAPI and its peers, in one run.")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these cases, such as: mqttapi gmqtt")
    parser.add_argument("--qos", nargs="+", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--messages", type=int, default=300_000, help="for the fastest; slow peers get a share of it")
    parser.add_argument("--repeat", type=int, default=5, help="rounds; the median counts")
    parser.add_argument(
        "--quick", action="store_true", help="60,000 messages, 2 rounds: figures to look at, not to keep"
    )
    parser.add_argument("--broker", nargs=argparse.REMAINDER, default=[], help="what follows goes to the fake broker")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, its plot and results.json")
    options = parser.parse_args()
    if options.quick:
        options.messages, options.repeat = min(options.messages, 60_000), min(options.repeat, 2)

    from benchmarks import report

    results = collect(options)
    print(report.markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.write:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        report.write(results, ROOT / "docs" / "benchmarks.md")
        _plot(HERE / "results.json", ROOT / "docs" / "benchmarks.svg")
