"""What workers write becomes one stream of whole lines."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import threading
from collections.abc import Iterator

import pytest

from mqttapi.workers.relay import Relay
from tests.support.waiting import eventually_sync


class Stream:
    """Where the relay writes to."""

    def __init__(self) -> None:
        self.source, self.sink = os.pipe()
        self.data = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self.source, 65536):
            self.data += data

    def close(self) -> None:
        os.close(self.sink)
        self._thread.join()
        os.close(self.source)


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


def test_lines_of_several_writers_are_never_mixed(stream: Stream) -> None:
    """Each line is far longer than what a pipe takes in one piece."""
    relay = Relay()
    pipes = [os.pipe() for _ in range(4)]
    for source, _ in pipes:
        relay.add(source, stream.sink)

    def write(number: int, sink: int) -> None:
        for count in range(20):
            line = f"{number} {count} ".encode() + str(number).encode() * 100_000 + b"\n"
            while line:
                line = line[os.write(sink, line[:5000]) :]
        os.close(sink)

    writers = [threading.Thread(target=write, args=(number, sink)) for number, (_, sink) in enumerate(pipes)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    eventually_sync(lambda: stream.data.count(b"\n") == 80, what=lambda: str(len(stream.data)))
    relay.close()
    for line in stream.data.decode().splitlines():
        number, _, text = line.split(" ")
        assert text == number * 100_000


def test_the_last_words_of_a_process_are_passed_on_though_others_hold_its_pipe(stream: Stream) -> None:
    relay = Relay()
    source, sink = os.pipe()
    relay.add(source, stream.sink)
    os.write(sink, b"whole\nhalf a line")
    relay.finish(source)
    relay.close()
    os.close(sink)
    eventually_sync(lambda: stream.data == b"whole\nhalf a line\n", what=lambda: repr(stream.data))


def test_whoever_does_not_read_any_more_stops_nobody(stream: Stream) -> None:
    relay = Relay()
    gone, target = os.pipe()
    os.close(gone)
    (first, write_first), (second, write_second) = os.pipe(), os.pipe()
    relay.add(first, target)
    relay.add(second, stream.sink)
    os.write(write_first, b"to nobody\n")
    os.write(write_second, b"to somebody\n")
    eventually_sync(lambda: stream.data == b"to somebody\n", what=lambda: repr(stream.data))
    relay.close()
    for descriptor in (target, write_first, write_second):
        os.close(descriptor)


@pytest.fixture
def full() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes nothing more, and does not wait."""
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    try:
        while True:
            os.write(sink, b"." * 4096)
    except BlockingIOError:
        yield source, sink
    os.close(source)
    os.close(sink)


def test_what_takes_nothing_at_the_moment_gets_all_of_it_in_the_end(full: tuple[int, int]) -> None:
    """Standard output may have been set not to wait by another process that has it."""
    source, sink = full
    relay = Relay()
    pipe, write = os.pipe()
    relay.add(pipe, sink)
    os.write(write, b"the line\n")
    data = b""
    while not data.endswith(b"the line\n"):
        data += os.read(source, 4096)
    relay.close()
    os.close(write)
    assert data.rstrip(b"the line\n").strip(b".") == b""


def test_log_records_are_lines_among_the_others_and_come_after_the_last_words_of_a_process(stream: Stream) -> None:
    handler = logging.StreamHandler()
    handler.set_name("mqttapi")
    logging.getLogger().addHandler(handler)
    relay = Relay()
    try:
        with relay.logging_to(stream.sink):
            for number in range(50):
                source, sink = os.pipe()
                relay.add(source, stream.sink)
                os.write(sink, b"last words %d\n" % number)
                os.close(sink)
                relay.finish(source)
                logging.getLogger("tests").error("it has ended %d", number)
        relay.close()
    finally:
        logging.getLogger().removeHandler(handler)
    eventually_sync(lambda: stream.data.count(b"\n") == 100, what=lambda: repr(stream.data))
    lines = stream.data.decode().splitlines()
    for number in range(50):
        assert lines.index(f"last words {number}") < lines.index(f"it has ended {number}")


def test_it_ends_well_whatever_has_ended_while_it_stood_still(stream: Stream, full: tuple[int, int]) -> None:
    """Behind a reader that does not read: the log is done with first, then a process ends."""
    source, sink = full
    handler = logging.StreamHandler()
    handler.set_name("mqttapi")
    logging.getLogger().addHandler(handler)
    relay = Relay()
    (stuck, write_stuck), (pipe, write) = os.pipe(), os.pipe()
    relay.add(stuck, sink)
    relay.add(pipe, stream.sink)
    os.write(write_stuck, b"waits\n")
    eventually_sync(lambda: not select.select((stuck,), (), (), 0)[0])  # read, and now to be written
    try:
        with relay.logging_to(stream.sink):
            logging.getLogger("tests").error("the last record")
        os.write(write, b"last words\n")
        relay.finish(pipe)
        while not os.read(source, 65536).endswith(b"waits\n"):
            pass
        eventually_sync(lambda: stream.data.count(b"\n") == 2, what=lambda: repr(stream.data))
        relay.close()
    finally:
        logging.getLogger().removeHandler(handler)
    os.close(write_stuck)
    os.close(write)
    assert set(stream.data.splitlines()) == {b"last words", b"the last record"}


def test_one_that_writes_without_end_silences_no_other_and_is_no_more_read_after_its_end() -> None:
    """What takes the stream is slower: the endless writer has filled its pipe again before the relay comes back to it."""
    out, target = os.pipe()
    fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, 4096)
    (endless, write_endless), (quiet, write_quiet) = os.pipe(), os.pipe()
    os.set_blocking(write_endless, False)

    def refilled() -> bool:
        try:
            while True:
                os.write(write_endless, b"." * 4095 + b"\n")
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False

    relay = Relay()
    refilled()
    relay.add(endless, target)
    relay.add(quiet, target)
    os.write(write_quiet, b"a word\n")
    said = b""
    while b"a word\n" not in said:
        assert len(said) < 2**20
        assert refilled()
        said += os.read(out, 4096)
    relay.finish(endless)
    left = 0
    while refilled():  # where the relay ends between this and the next line, nothing comes any more
        if select.select((out,), (), (), 0.01)[0]:
            left += len(os.read(out, 4096))
        assert left < 2**20
    os.close(out)
    relay.close()
    for descriptor in (target, write_endless, write_quiet):
        os.close(descriptor)


def test_log_records_wait_for_nobody(full: tuple[int, int]) -> None:
    source, sink = full
    os.set_blocking(sink, True)
    handler = logging.StreamHandler()
    handler.set_name("mqttapi")
    logging.getLogger().addHandler(handler)
    relay = Relay()
    try:
        with relay.logging_to(sink):
            for _ in range(2000):
                logging.getLogger("tests").error("x" * 100)
    finally:
        logging.getLogger().removeHandler(handler)
    while not os.read(source, 65536).endswith(b"x\n"):
        pass
    relay.close()
