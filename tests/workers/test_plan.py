"""Which process serves which routes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi import App
from mqttapi.workers.plan import MOST_WORKERS, Plan, Wanted, wanted

PLAIN = [f"plain/{number}" for number in range(6)]
SHARED = [f"$share/g/shared/{number}" for number in range(6)]


def wanted_by() -> st.SearchStrategy[list[Wanted]]:
    shared = st.builds(Wanted, st.sampled_from(SHARED), st.integers(1, 8))
    plain = st.builds(Wanted, st.sampled_from(PLAIN), st.just(1))
    return st.lists(shared | plain, max_size=12)


plans = st.builds(
    Plan,
    wanted_by(),
    placement=st.sampled_from(["first", "spread"]),
    size=st.none() | st.integers(1, 12),
)


@given(plans)
def test_every_subscription_has_a_slot_of_the_pool(plan: Plan) -> None:
    for filter in plan._workers:
        assert plan.slots(filter)
        assert set(plan.slots(filter)) <= set(range(plan.size))


@given(plans)
def test_what_is_not_shared_has_one_slot_and_what_is_shared_begins_with_the_first(plan: Plan) -> None:
    for filter in plan._workers:
        slots = list(plan.slots(filter))
        if filter in PLAIN:
            assert len(slots) == 1
        else:
            assert slots == list(range(len(slots)))


@given(wanted_by())
def test_without_scaling_each_gets_what_it_asks_for(parts: list[Wanted]) -> None:
    plan = Plan(parts)
    for filter in {each.filter for each in parts if each.shared}:
        assert len(plan.slots(filter)) == max(each.workers for each in parts if each.filter == filter)


@given(wanted_by(), st.integers(1, 12), st.integers(1, 12))
def test_scaling_gives_every_shared_route_as_many_more_as_the_pool(
    parts: list[Wanted], before: int, after: int
) -> None:
    first, second = Plan(parts, size=before), Plan(parts, size=after)
    for filter in {each.filter for each in parts if each.shared}:
        grown = len(second.slots(filter)) - len(first.slots(filter))
        if min(len(second.slots(filter)), len(first.slots(filter))) > 1:
            assert grown == after - before
        else:
            assert grown * (after - before) >= 0


@given(st.integers(1, 20))
def test_a_slot_more_moves_only_what_it_takes(size: int) -> None:
    parts = [Wanted(f"plain/{number}", 1) for number in range(200)]
    smaller, larger = Plan(parts, placement="spread", size=size), Plan(parts, placement="spread", size=size + 1)
    for each in parts:
        assert larger.slots(each.filter) in (smaller.slots(each.filter), (size,))


def test_spread_routes_are_spread() -> None:
    parts = [Wanted(f"plain/{number}", 1) for number in range(400)]
    plan = Plan(parts, placement="spread", size=4)
    counts = [len(plan.served(slot)) for slot in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 50


@pytest.mark.parametrize(
    ("default", "cap", "expected"), [(None, None, 7), (3, None, 7), (3, 2, 2), (None, 1, 1), (9, None, 9)]
)
def test_the_routes_of_an_app_ask_for_their_workers(default: int | None, cap: int | None, expected: int) -> None:
    app = App("plant")

    async def handle() -> None: ...

    app.on("seven/<x>", handle, shared=True, workers=7)
    app.on("default/<x>", handle, shared="own")
    app.on("plain/<x>", handle)
    parts = wanted(app.routes, "plant", default=default, cap=cap)
    assert {each.filter for each in parts} == {"$share/plant/seven/+", "$share/own/default/+", "plain/+"}
    plan = Plan(parts)
    assert plan.asked == expected
    assert len(plan.slots("$share/own/default/+")) == min(default or 1, cap or MOST_WORKERS)
    assert plan.can_scale


def test_an_app_without_shared_routes_cannot_be_scaled() -> None:
    assert not Plan([Wanted("a/+", 1)]).can_scale
