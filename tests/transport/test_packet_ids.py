from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqttapi.transport.packet_ids import PacketIds


@given(st.lists(st.one_of(st.none(), st.integers(0, 200)), max_size=200))
def test_an_id_in_use_is_never_given_out_again(actions: list[int | None]) -> None:
    """None takes an id, a number gives one back; the oracle is a set."""
    ids, used = PacketIds(), list[int]()
    for action in actions:
        if action is None:
            taken = ids.take()
            assert 1 <= taken <= 65_535
            assert taken not in used
            used.append(taken)
        elif used:
            ids.release(used.pop(action % len(used)))


def test_all_ids_are_given_out_and_then_none_is() -> None:
    ids = PacketIds()
    assert {ids.take() for _ in range(65_535)} == set(range(1, 65_536))
    assert ids.take() == 0
    ids.release(7)
    assert ids.take() == 7
    assert ids.take() == 0


def test_an_id_comes_back_as_late_as_possible() -> None:
    ids = PacketIds()
    first = ids.take()
    ids.release(first)
    assert [ids.take() for _ in range(65_534)] == list(range(2, 65_536))
    assert ids.take() == first
