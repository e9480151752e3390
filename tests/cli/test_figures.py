"""The rows of `mqttapi top`, from two states."""

from __future__ import annotations

from typing import Any

import pytest

from mqttapi.cli.figures import ROUTE_COLUMNS, WORKER_COLUMNS, Sample, route_rows, worker_rows
from tests.support.supervised import route, state, worker


def busy(slot: int = 0, *, received: int = 0, done: int = 0, **values: Any) -> dict[str, Any]:
    return worker(slot, received=received, routes={"ingest": route(done=done)}, **values)


def rates(before: Sample, after: Sample) -> list[tuple[str, str]]:
    return [(row["received/s"], row["handled/s"]) for row in worker_rows(before, after)]


class TestRates:
    def test_are_the_growth_of_counters_over_the_time_between(self) -> None:
        before = Sample(10.0, state(busy(received=100, done=90)))
        after = Sample(12.0, state(busy(received=300, done=120)))
        assert rates(before, after) == [("100", "15")]

    def test_the_time_is_that_between_two_reports(self) -> None:
        """Two looks with a second between them, one just after a report and one just before one."""
        before = Sample(10.0, state(busy(received=100, heard=0.9)))
        after = Sample(11.0, state(busy(received=300, heard=0.1)))
        assert rates(before, after)[0][0] == "111"  # 200 in 1.8 s

    def test_are_not_known_before_the_second_report(self) -> None:
        only = Sample(10.0, state(busy(received=100)))
        assert rates(only, only) == [("-", "-")]
        assert rates(only, Sample(11.0, state(busy(received=100, heard=1.5)))) == [("-", "-")]

    def test_of_a_new_process_begin_with_it(self) -> None:
        before = Sample(10.0, state(busy(received=1_000_000)))
        after = Sample(15.0, state(busy(received=30, pid=9999, uptime=2.5, heard=0.5)))
        assert rates(before, after)[0][0] == "15"

    def test_dropped_messages_are_handled_ones_and_rejected_ones_are_not(self) -> None:
        before = Sample(0.0, state(worker(routes={"r": route()})))
        after = Sample(1.0, state(worker(routes={"r": route(done=1, dropped=2, rejected=10, failed=10)})))
        assert rates(before, after) == [("0", "3.0")]

    def test_cpu_is_a_share_of_one_core(self) -> None:
        before, after = Sample(10.0, state(worker(cpu=5.0))), Sample(12.0, state(worker(cpu=5.5)))
        assert worker_rows(before, after)[0]["CPU"] == "25%"


class TestWorkers:
    def test_every_column_has_a_cell(self) -> None:
        for workers in ((), (worker(),), (worker(), worker(1))):
            sample = Sample(0.0, state(*workers))
            assert all(set(WORKER_COLUMNS) <= row.keys() for row in worker_rows(sample, sample))

    def test_the_last_row_is_the_sum_with_the_greatest_lag(self) -> None:
        workers = (
            worker(0, in_flight=1, oldest=0.5, restarts=1, routes={"r": route(rejected=1, failed=2)}),
            worker(1, in_flight=2, oldest=2.5, restarts=2, routes={"r": route(rejected=3)}),
        )
        rows = worker_rows(Sample(0.0, state(*workers)), Sample(1.0, state(*workers)))
        assert rows[-1] == {
            "slot": "all",
            "state": "",
            "received/s": "0",
            "handled/s": "0",
            "in flight": "3",
            "lag": "2.5 s",
            "restarts": "3",
            "rejected": "4",
            "failed": "2",
            "memory": "116 MiB",
            "CPU": "0%",
        }

    def test_one_worker_needs_no_sum(self) -> None:
        sample = Sample(0.0, state(worker()))
        assert [row["slot"] for row in worker_rows(sample, sample)] == ["0"]

    @pytest.mark.parametrize("stats", [None, {}])
    def test_one_that_has_told_nothing_yet(self, stats: Any) -> None:
        young = {"slot": 0, "pid": None, "state": "starting", "stats": stats}
        sample = Sample(0.0, state(young))
        (row,) = worker_rows(sample, sample)
        assert [row[column] for column in WORKER_COLUMNS] == "0 starting - - 0 - 0 0 0 - -".split()  # noqa: SIM905
        assert route_rows(sample, sample) == []


class TestRoutes:
    def test_every_column_has_a_cell(self) -> None:
        sample = Sample(0.0, state(busy()))
        assert all(set(ROUTE_COLUMNS) == row.keys() for row in route_rows(sample, sample))

    def test_are_summed_over_the_workers(self) -> None:
        def both(done: int, failed: int) -> tuple[dict[str, Any], ...]:
            routes = {
                "a": route(done=done, failed=failed, retried=3, dead_lettered=2, overflowed=1),
                "b\n": route(rejected=1),
            }
            return worker(0, routes=routes), worker(1, routes={"a": route(done=done)})

        rows = route_rows(Sample(0.0, state(*both(10, 0))), Sample(2.0, state(*both(30, 7))))
        assert [[row[column] for column in ROUTE_COLUMNS] for row in rows] == [
            ["a", "20", "0", "0", "7", "3", "2", "1"],
            [r"b\n", "0", "0", "1", "0", "0", "0", "0"],
        ]
