"""The supervisor's side of the quarantine: charges, and what each process is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.runtime.quarantine import CHARGES, Note, write_note
from mqttapi.workers import quarantine
from mqttapi.workers.quarantine import Charges, SlotQuarantine, quarantine_of

KEYS = [bytes((number,)) * 16 for number in range(4)]


@pytest.fixture
def slot() -> Iterator[SlotQuarantine]:
    slot = SlotQuarantine()
    yield slot
    slot.close()


# -- charges --------------------------------------------------------------------------------------------------------


def test_three_charges_condemn() -> None:
    charges = Charges()
    assert [charges.died(KEYS[0]) for _ in range(CHARGES - 1)] == [1, 2]
    assert list(charges.condemned) == []
    assert charges.died(KEYS[0]) == 3
    assert list(charges.condemned) == [KEYS[0]]


def test_charges_are_forgotten_once_all_has_been_dealt_with_but_not_who_was_condemned() -> None:
    charges = Charges()
    for key in (*KEYS[:1] * 3, *KEYS[1:2] * 2):
        charges.died(key)
    charges.over()
    assert charges.died(KEYS[1]) == 1
    assert list(charges.condemned) == [KEYS[0]]


@given(st.lists(st.sampled_from([*KEYS, None]), max_size=40))
def test_charges_are_those_of_a_count(deaths: list[bytes | None]) -> None:
    """None: a process has dealt with all that came again."""
    charges, counts, condemned = Charges(), Counter[bytes](), set[bytes]()
    for key in deaths:
        if key is None:
            charges.over()
            counts.clear()
        elif key not in condemned:
            counts[key] += 1
            assert charges.died(key) == counts[key]
            if counts[key] == 3:
                condemned.add(key)
        assert set(charges.condemned) == condemned


def test_the_oldest_is_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST", 2)
    charges = Charges()
    for key in (KEYS[0], KEYS[1], KEYS[0], KEYS[2]):
        charges.died(key)
    assert charges.died(KEYS[0]) == 3
    assert charges.died(KEYS[1]) == 1


# -- one slot -------------------------------------------------------------------------------------------------------


def test_a_process_is_told_nothing_unless_one_has_died(slot: SlotQuarantine) -> None:
    assert slot.order() is None
    assert slot.ended(died=False) == ""
    assert slot.order() is None
    assert quarantine_of(None, slot.fd) is None


def test_the_process_after_a_death_begins_in_quarantine(slot: SlotQuarantine) -> None:
    assert slot.ended(died=True) == ""
    assert slot.active
    made = quarantine_of(slot.order(), slot.fd)
    assert made is not None
    assert made.active


def test_a_death_in_a_crowd_charges_nobody(slot: SlotQuarantine) -> None:
    slot.order()
    assert slot.ended(died=True) == ""
    slot.order()
    write_note(slot.fd, Note(KEYS[0], "a/b for r"))
    write_note(slot.fd, Note())
    assert slot.ended(died=True) == ""


def test_what_was_alone_is_charged_and_named_until_it_is_condemned(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    said = []
    for _ in range(CHARGES):
        assert quarantine_of(slot.order(), slot.fd)._condemned == frozenset()  # type: ignore[union-attr]  # it is in quarantine
        write_note(slot.fd, Note(KEYS[0], "a/b for r"))
        said.append(slot.ended(died=True))
    assert said == [
        "alone in flight was a message on a/b for r (1 of 3)",
        "alone in flight was a message on a/b for r (2 of 3)",
        "alone in flight was a message on a/b for r (3 of 3: it is not run any more)",
    ]
    assert quarantine_of(slot.order(), slot.fd)._condemned == frozenset(KEYS[:1])  # type: ignore[union-attr]


def test_once_it_is_over_the_next_process_is_in_none_and_charges_are_forgotten(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    slot.order()
    write_note(slot.fd, Note(KEYS[0]))
    slot.ended(died=True)
    slot.order()
    write_note(slot.fd, Note(over=True))
    slot.ended(died=False)
    assert not slot.active
    assert slot.order() is None
    slot.ended(died=True)
    slot.order()
    write_note(slot.fd, Note(KEYS[0], "a for r"))
    assert slot.ended(died=True) == "alone in flight was a message on a for r (1 of 3)"


def test_a_death_after_it_was_over_begins_another_one(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    slot.order()
    write_note(slot.fd, Note(over=True))
    assert slot.ended(died=True) == ""
    assert slot.active


def test_what_an_end_in_order_leaves_the_next_process_goes_on_with(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    slot.order()
    write_note(slot.fd, Note(KEYS[0]))
    slot.ended(died=False)
    assert slot.active
    slot.order()
    assert slot.ended(died=True) == ""


def test_new_code_is_forgiven(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    for _ in range(CHARGES):
        slot.order()
        write_note(slot.fd, Note(KEYS[0]))
        slot.ended(died=True)
    slot.forgive()
    assert slot.active
    assert quarantine_of(slot.order(), slot.fd)._condemned == frozenset()  # type: ignore[union-attr]


def test_a_note_outlives_the_process_that_wrote_it(slot: SlotQuarantine) -> None:
    slot.ended(died=True)
    code = f"""
import os, signal
from mqttapi.runtime.quarantine import Note, write_note
write_note({slot.fd}, Note(b"k" * 16, "a/b for r"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], pass_fds=(slot.fd,), check=False).returncode == -9
    assert slot.ended(died=True) == "alone in flight was a message on a/b for r (1 of 3)"


def test_the_file_is_given_back() -> None:
    slot = SlotQuarantine()
    slot.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(slot.fd)
