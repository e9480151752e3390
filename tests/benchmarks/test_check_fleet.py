"""What is made of the notes of the workers. The runs themselves take minutes: `python -m benchmarks.check_fleet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.check_fleet import Note, Notes, peaks, samples_of
from benchmarks.simulate_fleet import recovery

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000


def test_notes_of_all_processes_are_read_once_and_only_in_whole_lines(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    (tmp_path / "11").write_bytes(b"5 connected\n7 began 3 1\n8 end")
    assert notes.all() == [Note(5, 11, "connected"), Note(7, 11, "began", 3, dup=True)]
    (tmp_path / "11").write_bytes(b"5 connected\n7 began 3 1\n8 ended 3\n")
    (tmp_path / "12").write_bytes(b"6 ended 3\n")
    assert [note.pid for note in notes.all()] == [11, 11, 11, 12]
    assert notes.ended() == {3: 6}  # the first time
    assert notes.connected() == {11}


def test_the_backlog_is_what_was_made_and_not_handled() -> None:
    made = [10 * SECOND, 10 * SECOND + 1, 11 * SECOND]
    ended = [11 * SECOND, 12 * SECOND, 20 * SECOND]
    samples = samples_of(made, ended, began=10 * SECOND, seconds=3.0)
    assert dict(samples) | {0.0: 1, 0.5: 2, 1.0: 2, 2.0: 1, 3.0: 1} == dict(samples)
    assert len(samples) == 31


def test_each_stretch_has_its_peak_and_its_recovery() -> None:
    samples = [(0.0, 0), (1.0, 5), (2.0, 0), (3.0, 0), (4.0, 9), (5.0, 1), (6.0, 0)]
    assert peaks(samples, [0.5, 3.5]) == [5, 9]
    assert [recovery(samples, edge) for edge in (0.5, 3.5)] == [1.5, 2.5]
