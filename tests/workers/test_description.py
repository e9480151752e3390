"""What a state says to people."""

from __future__ import annotations

from typing import Any

import pytest

from mqttapi.workers.description import COLUMNS, cells, describe, duration, memory, problems, unready
from tests.support.supervised import route, state, worker

BUSY = worker(
    1,
    in_flight=2,
    oldest=0.25,
    restarts=3,
    routes={
        "ingest": route(done=1200, dropped=30, rejected=4, failed=5),
        "commands": route(done=4, failed=1),
    },
)


def test_the_lines_for_the_log_say_all_of_it() -> None:
    said = state(
        worker(0, quarantine=True), BUSY, worker(2, state="not ready", problems=["not connected"]), pid=4711, size=3
    )
    assert describe(said) == [
        "plant-host (pid 4711) serving main:app: 2 of 3 workers ready, up 100 s",
        line("0: pid 5000, plant-host-0, ready, quarantine", "restarts 0, in flight 0, lag -, handled 0", 0, 0),
        line("1: pid 5001, plant-host-1, ready", "restarts 3, in flight 2, lag 0.2 s, handled 1,234", 4, 6),
        line("2: pid 5002, plant-host-2, not ready", "restarts 0, in flight 0, lag -, handled 0", 0, 0),
        "slot 2: not connected",
    ]


def line(who: str, what: str, rejected: int, failed: int) -> str:
    return f"slot {who}, up 100 s, {what}, rejected {rejected}, failed {failed}, memory 58 MiB, CPU 1.5 s"


def test_before_the_app_is_imported_nobody_knows_its_name() -> None:
    young = worker(state="starting", problems=["the app is being imported"], stats={})
    assert describe(state(young, app="", instance="", target="", phase="starting", pid=7))[::2] == [
        "pid 7 starting: 0 of 1 workers ready, up 100 s",
        "slot 0: the app is being imported",
    ]


def test_workers_are_shown_by_slot() -> None:
    assert [line[:6] for line in describe(state(worker(2), worker(0), worker(1)))[1:]] == ["slot 0", "slot 1", "slot 2"]


def test_a_worker_that_has_told_nothing_yet_has_cells_nevertheless() -> None:
    young = {"slot": 0, "state": "starting", "pid": None, "stats": None}
    assert set(cells(young)) == set(COLUMNS)
    assert cells(young)["pid"] == cells(young)["memory"] == cells(young)["lag"] == "-"


def test_nothing_in_a_state_can_break_a_line() -> None:
    evil = worker(0, client_id="a\nb", state="not ready", problems=["x\x1b[31m\ny"])
    assert all(line.isprintable() for line in describe(state(evil, app="p\nq", target="m\n:app")))


class TestReadiness:
    def test_a_whole_pool_that_is_ready_lacks_nothing(self) -> None:
        assert unready(state(worker(0), worker(1))) == {}

    @pytest.mark.parametrize(
        ("lacking", "said"),
        [
            (worker(1, state="starting"), "starting"),
            (worker(1, state="connecting", problems=["cannot reach h:1883"]), "cannot reach h:1883"),
            (worker(1, state="not ready", problems=["redis"]), "redis"),
            (worker(1, state="not ready"), "not ready"),
            (worker(1, state="dead", heard=9.0), "dead"),
            (
                worker(1, problems=["a handler of r has stood still for 61 s"]),
                "a handler of r has stood still for 61 s",
            ),
            (worker(1, heard=5.1), "has not reported for 5.1 s"),
        ],
    )
    def test_each_worker_must_be_ready(self, lacking: dict[str, Any], said: str) -> None:
        assert unready(state(worker(0), lacking)) == {said: [1]}

    def test_a_worker_may_be_silent_for_five_seconds_the_age_of_the_state_included(self) -> None:
        assert unready(state(worker(heard=2.0)), age=2.9) == {}
        assert unready(state(worker(heard=2.0)), age=3.1) == {"has not reported for 5.1 s": [0]}

    def test_the_pool_must_have_its_size(self) -> None:
        assert unready(state(worker(1), size=3)) == {"no process": [0, 2]}

    def test_who_leaves_is_not_missed(self) -> None:
        assert unready(state(worker(0), worker(1, state="leaving"), size=1)) == {}

    def test_a_slot_is_ready_while_one_of_its_processes_is(self) -> None:
        assert unready(state(worker(0, pid=1), worker(0, pid=2, state="starting"), size=1)) == {}

    def test_a_supervisor_that_stops_is_not_ready(self) -> None:
        assert problems(state(worker(0), phase="stopping")) == ["stopping"]

    def test_what_several_slots_say_is_said_once(self) -> None:
        away = {"state": "not ready", "problems": ["not connected"]}
        said = state(worker(0, **away), worker(1), worker(2, **away))
        assert problems(said) == ["slots 0, 2: not connected"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((None, "-"), (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (120, "2 min")),
        *((7199, "119 min"), (7200, "2 h 00 min"), (172_799, "47 h 59 min"), (172_800, "2 d 0 h")),
    ],
)
def test_durations_have_two_figures_or_three(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_memory_is_in_mebibytes() -> None:
    assert (memory(None), memory(61_000_000), memory(3 * 2**30)) == ("-", "58 MiB", "3,072 MiB")
