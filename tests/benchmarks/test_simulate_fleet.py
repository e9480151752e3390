"""The simulation against what can be computed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate_fleet import (
    BrokerRestart,
    Burst,
    Failure,
    Fleet,
    Kill,
    Load,
    Loss,
    Service,
    Strategy,
    recovery,
    simulate,
)

ROOT = Path(__file__).parents[2]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def erlang_c(servers: int, load: float) -> float:
    """The probability that a message waits in an M/M/c queue; `load` is rate × service time."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


# ------------------------------------------------------------------------------------------------------ without failures


@every_strategy
def test_below_capacity_all_is_handled(strategy: Strategy) -> None:
    outcome = simulate(Fleet(members=4, strategy=strategy), Load(300, 20, drain=1))
    assert (outcome.published, outcome.handled, outcome.backlog) == (6000, 6000, 0)


@every_strategy
def test_the_utilisation_is_rate_times_service_time_over_members(strategy: Strategy) -> None:
    fleet = Fleet(members=5, strategy=strategy, service=Service("exponential", 0.01))
    assert simulate(fleet, Load(300, 60, poisson=True)).utilisation == pytest.approx(300 * 0.01 / 5, rel=0.05)


@every_strategy
def test_above_capacity_the_backlog_grows_by_the_difference(strategy: Strategy) -> None:
    outcome = simulate(Fleet(members=3, strategy=strategy), Load(400, 30))
    assert outcome.backlog == pytest.approx((400 - 300) * 30, abs=6)


def test_one_member_with_a_constant_service_time_is_an_md1_queue() -> None:
    busy = 0.8
    outcome = simulate(Fleet(members=1), Load(busy / 0.01, 800, poisson=True))
    assert outcome.mean_backlog == pytest.approx(busy + busy**2 / (2 * (1 - busy)), rel=0.1)  # Pollaczek and Khinchine


def test_one_queue_for_the_group_is_an_mmc_queue() -> None:
    servers, load = 5, 4.0
    fleet = Fleet(members=servers, service=Service("exponential", 0.01), window=1, strategy="queue")
    outcome = simulate(fleet, Load(load / 0.01, 250, poisson=True))
    assert outcome.mean_backlog == pytest.approx(load + erlang_c(servers, load) * load / (servers - load), rel=0.1)


def test_the_window_bounds_what_a_member_does_at_once() -> None:
    narrow = Fleet(members=1, service=Service(mean=0.1), lanes=100, window=20)
    assert simulate(narrow, Load(300, 30)).backlog == pytest.approx((300 - 20 / 0.1) * 30, abs=40)


def test_acknowledgements_in_order_cost_throughput_when_the_window_is_narrow() -> None:
    load = Load(600, 60)
    uneven = Service("lognormal", 0.1, 1.5)
    narrow = simulate(Fleet(members=1, service=uneven, lanes=100, window=100), load)
    wide = simulate(Fleet(members=1, service=uneven, lanes=100, window=10_000), load)
    assert narrow.backlog > 10 * wide.backlog


@pytest.mark.parametrize("service", [Service("exponential", 0.02), Service("lognormal", 0.02, 1.0)])
def test_the_mean_service_time_is_what_was_asked_for(service: Service) -> None:
    outcome = simulate(Fleet(members=1, service=service), Load(25, 1000, poisson=True))
    assert outcome.utilisation == pytest.approx(0.5, rel=0.05)


def test_a_burst_takes_its_size_over_what_is_left_of_the_capacity() -> None:
    outcome = simulate(Fleet(members=4), Load(300, 30, bursts=(Burst(10, 500),)))
    assert recovery(outcome.samples, 10) == pytest.approx(500 / (400 - 300), abs=0.2)


def test_a_full_queue_drops_the_rest() -> None:
    outcome = simulate(Fleet(members=1, window=10, queue_limit=100), Load(0, 10, bursts=(Burst(0, 500),)))
    assert (outcome.dropped, outcome.handled) == (390, 110)


# --------------------------------------------------------------------------------------------------------- with failures


def test_a_dead_member_keeps_its_share_with_sessions() -> None:
    rate, members, away = 200, 4, 10
    outcome = simulate(Fleet(members=members, restart=away), Load(rate, 60), [Kill(20, 0)])
    peak_at, peak = outcome.peak
    assert peak == pytest.approx(rate / members * away, abs=6)
    assert peak_at == pytest.approx(20 + away, abs=0.2)


def test_the_share_of_a_dead_member_is_handled_with_the_rest_of_its_capacity() -> None:
    rate, members, away, capacity = 200, 4, 10, 100
    outcome = simulate(Fleet(members=members, restart=away), Load(rate, 60), [Kill(20, 0)])
    assert recovery(outcome.samples, 20, slack=1) == pytest.approx(
        away * capacity / (capacity - rate / members), abs=0.3
    )


@pytest.mark.parametrize("strategy", ["online", "queue"])
def test_the_others_take_the_share_of_a_dead_member(strategy: Strategy) -> None:
    outcome = simulate(Fleet(members=4, restart=30, strategy=strategy), Load(200, 60), [Kill(20, 0)])
    assert outcome.peak[1] < 10


def test_what_a_dead_member_had_waits_for_it_where_members_online_are_dealt_to() -> None:
    burst = Load(0, 20, bursts=(Burst(0, 400),))
    outcome = simulate(Fleet(members=4, restart=15, strategy="online"), burst, [Kill(0.505, 0)])
    assert dict(outcome.samples)[10.0] == 100 - 50


def test_what_a_dead_member_had_goes_to_the_others_from_one_queue() -> None:
    burst = Load(0, 20, bursts=(Burst(0, 400),))
    outcome = simulate(Fleet(members=4, restart=15, strategy="queue"), burst, [Kill(0.505, 0)])
    assert dict(outcome.samples)[10.0] == 0


@pytest.mark.parametrize(("window", "again"), [(20, 20), (1000, 350)])
def test_a_killed_member_gets_its_window_again(window: int, again: int) -> None:
    burst = Load(0, 10, bursts=(Burst(0, 400),))
    outcome = simulate(Fleet(members=1, window=window), burst, [Kill(0.505, 0)])
    assert outcome.redelivered == again
    assert outcome.repeated == 1  # the one that was running
    assert outcome.handled == 400


def test_what_had_ended_behind_a_slow_handler_runs_again_after_a_death() -> None:
    burst = Load(0, 10, bursts=(Burst(0, 50),))
    fleet = Fleet(members=1, lanes=50, service=Service("lognormal", 0.1, 1.5))
    outcome = simulate(fleet, burst, [Kill(0.05, 0)])
    assert outcome.repeated == outcome.redelivered > 40
    assert outcome.handled == 50


def test_what_comes_again_after_a_death_runs_one_at_a_time() -> None:
    burst = Load(0, 20, bursts=(Burst(0, 50),))
    outcome = simulate(Fleet(members=1, lanes=50, service=Service(mean=0.1)), burst, [Kill(0.05, 0)])
    assert recovery(outcome.samples, 0.05) == pytest.approx(2 + 50 * 0.1, abs=0.2)


def test_a_lost_machine_is_fed_until_it_is_missed() -> None:
    fleet = Fleet(members=4, machines=2, strategy="queue", noticed=10)
    outcome = simulate(fleet, Load(100, 60), [Loss(20, 0)])
    assert outcome.peak[1] == pytest.approx(100 / 2 * 10, abs=10)
    assert outcome.backlog <= 4


def test_a_machine_that_never_comes_back_keeps_its_share_with_sessions() -> None:
    outcome = simulate(Fleet(members=4, machines=2), Load(100, 60), [Loss(20, 0)])
    assert outcome.backlog == pytest.approx(100 / 2 * 40, abs=6)


def test_a_restarted_broker_costs_no_second_run() -> None:
    outcome = simulate(Fleet(members=4, reconnect=0), Load(300, 60), [BrokerRestart(20, 3)])
    assert outcome.repeated == 0
    assert outcome.peak[1] == pytest.approx(300 * 3, rel=0.15)
    assert outcome.backlog <= 8


def test_the_first_member_back_after_a_restart_gets_what_publishers_kept() -> None:
    outcome = simulate(Fleet(members=4, reconnect=1), Load(300, 60, drain=0), [BrokerRestart(20, 3)])
    assert recovery(outcome.samples, 20) is None  # one member has all of it, and 25 messages a second to spare
    evenly = simulate(Fleet(members=4, reconnect=1, forgets=False), Load(300, 60), [BrokerRestart(20, 3)])
    assert recovery(evenly.samples, 20) is not None


def test_publishers_that_come_back_last_find_all_members() -> None:
    load = Load(300, 60, reconnect=1)
    outcome = simulate(Fleet(members=4, reconnect=(0.1, 0.2, 0.3, 0.4)), load, [BrokerRestart(20, 3)])
    assert outcome.peak[1] == pytest.approx(300 * 4, abs=4)
    assert recovery(outcome.samples, 20) == pytest.approx(4 + 300 * 4 / 100, abs=0.5)


def test_publishers_wait_until_someone_has_subscribed_again() -> None:
    fleet = Fleet(members=1, restart=10)
    outcome = simulate(fleet, Load(50, 40), [Kill(19, 0), BrokerRestart(20, 1)])
    assert outcome.peak[1] == pytest.approx(50 * 10, abs=5)
    assert outcome.dropped == 0


# ------------------------------------------------------------------------------------------------------------ in general


@st.composite
def failures(draw: st.DrawFn) -> list[Failure]:
    at = st.floats(0, 8)
    kill = st.builds(Kill, at, st.integers(0, 3))
    loss = st.builds(Loss, at, st.integers(0, 1), st.none() | st.floats(0.1, 5))
    broker = st.builds(BrokerRestart, at, st.floats(0.1, 2))
    return draw(st.lists(kill | loss | broker, max_size=5))


@given(
    failures=failures(),
    strategy=st.sampled_from(STRATEGIES),
    window=st.sampled_from([1, 3, 100]),
    lanes=st.integers(1, 3),
    kind=st.sampled_from(["constant", "exponential"]),
    forgets=st.booleans(),
    seed=st.integers(0, 3),
)
def test_no_message_is_lost_whatever_fails(
    failures: list[Failure],
    strategy: Strategy,
    window: int,
    lanes: int,
    kind: Literal["constant", "exponential"],
    forgets: bool,
    seed: int,
) -> None:
    """All machines come back in the end, and every message has been handled once, or more often."""
    fleet = Fleet(
        members=4,
        machines=2,
        service=Service(kind, 0.02),
        lanes=lanes,
        window=window,
        strategy=strategy,
        restart=0.5,
        noticed=1,
        forgets=forgets,
    )
    at_last: list[Failure] = [Loss(20, machine, 0.5) for machine in (0, 1)]
    load = Load(60, 10, drain=60, poisson=True, bursts=(Burst(2, 40),))
    outcome = simulate(fleet, load, [*failures, *at_last], seed=seed)
    assert outcome.backlog == outcome.dropped == 0
    assert outcome.repeated <= outcome.redelivered


def test_equal_arguments_give_an_equal_outcome() -> None:
    arguments = Fleet(service=Service("exponential")), Load(300, 10, poisson=True), [Kill(5, 1)]
    assert simulate(*arguments, seed=7) == simulate(*arguments, seed=7)
    assert simulate(*arguments, seed=7) != simulate(*arguments, seed=8)


def test_another_strategy_meets_the_same_arrivals() -> None:
    loads = {simulate(Fleet(strategy=it), Load(300, 10, poisson=True), seed=7).published for it in STRATEGIES}
    assert len(loads) == 1


def test_a_recovery_is_counted_from_the_failure_to_the_usual_backlog() -> None:
    samples = [(0.0, 3), (1.0, 4), (2.0, 9), (3.0, 20), (4.0, 4), (5.0, 4)]
    assert recovery(samples, 1.5) == 2.5
    assert recovery(samples, 1.5, slack=5) == 2.5
    assert recovery(samples, 1.5, slack=16) == 0.0
    assert recovery(samples[:4], 1.5) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--kill 1@5 --burst 3:100", {"published": 1600, "handled": 1600, "recovery": True}),
        ("--lose 0@5+2 --broker-restart 8+1 --strategy queue", {"published": 1500, "handled": 1500}),
    ],
)
def test_the_program_prints_json(options: str, expected: dict[str, object]) -> None:
    command = ["benchmarks.simulate_fleet", "--rate", "100", "--duration", "15", "--drain", "30", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *options.split()], cwd=ROOT, check=True, capture_output=True, text=True
    )
    shown = json.loads(done.stdout)
    assert (shown["published"], shown["handled"]) == (expected["published"], expected["handled"])
    assert all(seconds is not None for seconds in shown["recovery"])
