"""Dead letters on disk: all of them, or none of one, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.errors import ConfigurationError
from mqttapi.runtime.spool import Letter, Spool, SpoolFull
from tests.support.waiting import eventually_sync

ROOT = Path(__file__).parents[2]


def letter(payload: bytes = b"x", **fields: Any) -> Letter:
    known: dict[str, Any] = {
        "time": "2026-01-31T12:00:00.000Z",
        "to": "dead/t",
        "why": "nobody has subscribed to it",
        "topic": "t",
        "qos": 1,
        "route": "r",
        "error": "ValueError",
        "reason": "no",
        "attempts": 3,
    }
    return Letter(payload=payload, **known | fields)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state" / "app")


def payloads(spool: Spool) -> list[bytes]:
    return [each.payload for each in spool.letters()]


@given(
    st.builds(
        letter,
        st.binary(),
        topic=st.text(),
        reason=st.text(),
        correlation_data=st.none() | st.binary(),
        content_type=st.none() | st.text(),
        user_properties=st.lists(st.tuples(st.text(), st.text())).map(tuple),
    )
)
def test_a_letter_is_read_as_it_was_written_and_is_one_line(given: Letter) -> None:
    line = given.encoded()
    assert Letter.decoded(line) == given
    assert line.count(b"\n") == 1


@given(st.binary(max_size=40), st.integers(0, 10_000), st.integers(1, 255))
def test_a_line_with_any_byte_changed_or_cut_off_is_no_letter(payload: bytes, at: int, change: int) -> None:
    line = letter(payload).encoded()
    at %= len(line)
    assert Letter.decoded(line[:at]) is None
    changed = bytearray(line)
    changed[at] ^= change
    assert Letter.decoded(bytes(changed)) is None


def test_letters_stay_in_the_order_they_came_in(spool: Spool) -> None:
    assert spool.letters() == []
    for number in range(5):
        spool.append(letter(b"%d" % number))
    assert payloads(spool) == [b"0", b"1", b"2", b"3", b"4"]
    assert spool.damaged() == 0


def test_nobody_else_may_read_them(spool: Spool) -> None:
    spool.append(letter())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (spool.directory, *spool.directory.iterdir())}
    assert modes == {"app": 0o700, "letters": 0o600, "lock": 0o600}


def test_letters_are_taken_out_by_id(spool: Spool) -> None:
    for number in range(4):
        spool.append(letter(b"%d" % number))
    first, _, third, _ = spool.letters()
    spool.remove([first.id, third.id, "unknown"])
    assert payloads(spool) == [b"1", b"3"]
    spool.append(letter(b"4"))
    assert payloads(spool) == [b"1", b"3", b"4"]


@pytest.mark.parametrize("left", [1, 8, 9, 100])
def test_a_line_that_was_cut_off_costs_no_other_letter(spool: Spool, left: int) -> None:
    """So a disk looks after a process died, or the power went, in the middle of a write."""
    spool.append(letter(b"before"))
    path = spool.directory / "letters"
    path.write_bytes(path.read_bytes() + letter(b"torn").encoded()[:left])
    assert payloads(spool) == [b"before"]
    assert spool.damaged() == 1
    spool.append(letter(b"after"))
    assert payloads(spool) == [b"before", b"after"]
    spool.remove([])
    assert (payloads(spool), spool.damaged()) == ([b"before", b"after"], 0)


def test_there_is_a_bound(tmp_path: Path) -> None:
    size = len(letter(b"x" * 100).encoded())
    spool = Spool(tmp_path, max_bytes=3 * size)
    for _ in range(3):
        spool.append(letter(b"x" * 100))
    with pytest.raises(SpoolFull) as caught:
        spool.append(letter())
    assert str(caught.value) == (
        f"{tmp_path / 'letters'} has {3 * size:,} bytes, and with a letter of {len(letter().encoded()):,} it would have "
        f"more than the {3 * size:,} of MQTTAPI_SPOOL_MAX_BYTES"
    )
    spool.remove([spool.letters()[0].id])
    spool.append(letter())
    assert len(spool.letters()) == 3


def test_a_disk_that_is_full_leaves_what_was_there_and_no_half_of_a_letter(spool: Spool) -> None:
    """The kernel's bound on the size of a file stands for that of the disk."""
    spool.append(letter(b"before"))
    assert with_small_disk(f"Spool(Path({str(spool.directory)!r})).append(letter(b'x' * 3000))") == "File too large\n"
    assert (payloads(spool), spool.damaged()) == ([b"before"], 0)


def test_a_disk_that_is_too_full_to_take_a_letter_out_keeps_all_and_has_no_less_room(spool: Spool) -> None:
    for payload in (b"one", b"two" * 1000):
        spool.append(letter(payload))
    before = {path.name for path in spool.directory.iterdir()}
    first = spool.letters()[0].id
    assert with_small_disk(f"Spool(Path({str(spool.directory)!r})).remove([{first!r}])") == "File too large\n"
    assert payloads(spool) == [b"one", b"two" * 1000]
    assert {path.name for path in spool.directory.iterdir()} == before


def with_small_disk(action: str) -> str:
    """What the system says to an action, where no file may have more than 1,000 bytes."""
    code = f"""
import resource, signal
from pathlib import Path
from tests.runtime.test_spool import letter
from mqttapi.runtime.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {action}
except OSError as error:
    print(error.strerror)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_what_append_has_returned_for_survives_a_kill(spool: Spool) -> None:
    code = f"""
from pathlib import Path
from tests.runtime.test_spool import letter
from mqttapi.runtime.spool import Spool
spool = Spool(Path({str(spool.directory)!r}))
for number in range(1_000_000):
    spool.append(letter(b"%d" % number))
    print(number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    kept = payloads(spool)
    assert kept == [b"%d" % number for number in range(len(kept))]
    assert len(kept) >= len(said)
    spool.append(letter(b"after"))
    assert payloads(spool) == [*kept, b"after"]


def test_several_writers_do_not_lose_each_others_letters(spool: Spool) -> None:
    def write(name: str) -> None:
        for number in range(25):
            Spool(spool.directory).append(letter(f"{name}{number}".encode()))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    eventually_sync(lambda: len(spool.letters()) > 10)
    taken = spool.letters()[0]
    spool.remove([taken.id])  # replaces the file while others append to it
    for thread in threads:
        thread.join()
    expected = {f"{name}{number}".encode() for name in "abcd" for number in range(25)} - {taken.payload}
    assert sorted(payloads(spool)) == sorted(expected)


def test_a_letter_of_another_version_is_told_of_and_not_lost(spool: Spool) -> None:
    spool.append(letter())
    text = b'{"id": "1", "colour": "red"}'
    with (spool.directory / "letters").open("ab") as file:
        file.write(b"%08x %b\n" % (zlib.crc32(text), text))
    for attempt in (spool.letters, spool.damaged, lambda: spool.remove(["1"])):
        with pytest.raises(ConfigurationError, match="written by another version of mqttapi"):
            attempt()
    assert text in (spool.directory / "letters").read_bytes()
