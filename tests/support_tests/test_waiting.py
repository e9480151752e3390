from __future__ import annotations

import pytest

from tests.support.waiting import eventually, eventually_sync


async def test_it_gives_the_first_true_value() -> None:
    values = iter([0, "", 7])
    assert await eventually(lambda: next(values)) == 7


async def test_a_coroutine_function_is_a_condition_too() -> None:
    async def condition() -> str:
        return "yes"

    assert await eventually(condition) == "yes"


async def test_the_failure_says_what_was_waited_for() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not within 0 s: the third row \(last value: 0\)"):
        await eventually(lambda: 0, within=0, what=lambda: "the third row")


def test_the_failure_points_to_the_condition() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"the condition at .*test_waiting.py:\d+ \(last value: None\)"):
        eventually_sync(lambda: None, within=0)
