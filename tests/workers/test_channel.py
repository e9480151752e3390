"""What the supervisor and a worker say to each other."""

from __future__ import annotations

import socket
import threading
from typing import Any

from mqttapi.workers.channel import GONE, Commands, decode, encode
from tests.support.waiting import eventually_sync


def test_commands_wait_until_somebody_is_there_and_keep_their_order() -> None:
    ours, theirs = socket.socketpair()
    commands = Commands(theirs)
    commands.start()
    ours.sendall(encode({"do": "load"}) + encode({"do": "serve"}) + encode({"do": "drain"}))
    assert commands.next() == {"do": "load"}
    got: list[dict[str, Any]] = []
    commands.hand_to(got.append)
    ours.sendall(encode({"do": "cancel"}))
    eventually_sync(lambda: len(got) == 3)
    assert [each["do"] for each in got] == ["serve", "drain", "cancel"]
    ours.close()
    eventually_sync(lambda: got[-1] == {"do": GONE})
    theirs.close()


def test_the_end_of_the_supervisor_is_told_whatever_comes_before_it() -> None:
    ours, theirs = socket.socketpair()
    gone = threading.Event()
    commands = Commands(theirs, on_gone=gone.set)
    ours.sendall(encode({"do": "load"}))
    ours.close()
    commands.start()
    assert commands.next() == {"do": "load"}
    assert commands.next() == {"do": GONE}
    assert gone.wait(5)
    theirs.close()


def test_a_supervisor_that_does_not_read_holds_up_no_worker_and_gets_the_latest_in_the_end() -> None:
    ours, theirs = socket.socketpair()
    commands = Commands(theirs)
    commands.start()
    for number in range(200):
        commands.tell("state", number=number, filler="x" * 100_000)
    told = []
    with ours.makefile("rb") as lines:
        for line in lines:
            told.append(decode(line)["number"])
            if told[-1] == 199:
                break
    assert len(told) < 10
    ours.close()
    theirs.close()


def test_what_is_more_than_a_socket_holds_is_told_whole() -> None:
    """The introduction of an app with 10,000 routes; there is nothing more to tell before it has been read."""
    ours, theirs = socket.socketpair()
    commands = Commands(theirs)
    commands.start()
    commands.tell("loaded", wanted="x" * 2**20)
    with ours.makefile("rb") as lines:
        ours.settimeout(10)
        assert len(decode(lines.readline())["wanted"]) == 2**20
    ours.close()
    theirs.close()
