"""The fault table: one line per test, one table per file, written to `--fault-table PATH` as markdown."""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.support import AppProcess, Row, SupervisedApp
from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_rows: pytest.StashKey[list[Row]] = pytest.StashKey()
_row: pytest.StashKey[Row] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, metavar="PATH", help="write what became of each fault there")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("fault_table", default=None) and config.getoption("numprocesses", default=None):
        raise pytest.UsageError("--fault-table: its tests have to run in one process: leave --numprocesses out")
    config.stash[_rows] = []


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Row:
    """The line of this test in the fault table."""
    about = inspect.getdoc(request.module) or request.module.__name__
    row = request.node.stash[_row] = Row(request.node.name, part=about.splitlines()[0])
    request.config.stash.setdefault(_rows, []).append(row)
    return row


@pytest.fixture
def forgetful_mosquitto() -> Iterator[Mosquitto]:
    """A fresh broker without a disk, for loads: with one it writes all that waits at every change."""
    with Mosquitto(persistence=False) as broker:
        yield broker


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., AppProcess]]:
    """Makes apps in processes of their own: `app = launch(broker.url, SOURCE); await app.start()`."""
    yield from _launching(tmp_path, AppProcess)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., AppProcess]]:
    """The same, each with a supervisor."""
    yield from _launching(tmp_path, SupervisedApp)


def _launching(directory: Path, kind: type[AppProcess]) -> Iterator[Callable[..., AppProcess]]:
    made: list[AppProcess] = []

    def make(broker: str, source: str, **options: str) -> AppProcess:
        made.append(kind(directory, broker, inspect.cleandoc(source) + "\n", **options))
        return made[-1]

    yield make
    for app in made:
        app.dispose()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    row = item.stash.get(_row, None)
    if row is not None and call.when == "call" and call.excinfo is not None:
        kind = "skipped" if report.skipped and not hasattr(report, "wasxfail") else "FAILED"
        why = getattr(report, "wasxfail", "") or str(call.excinfo.value)
        row.seen = f"{kind}: {why.splitlines()[0] if why else call.excinfo.typename}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("fault_table", default=None)
    if path is not None:
        path.write_text(table(session.config.stash.get(_rows, [])))


def table(rows: list[Row]) -> str:
    """The fault table as markdown."""
    lines: list[str] = []
    for part, its_rows in groupby(rows, key=lambda row: row.part):
        lines += [f"### {part.rstrip('.')}", "", "| fault | expected | seen | lost | twice |", "|---|---|---|---|---|"]
        for row in its_rows:
            counts = ("–" if count is None else str(count) for count in (row.lost, row.twice))
            cells = (row.fault, row.expected, row.seen or "as expected", *counts)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)
