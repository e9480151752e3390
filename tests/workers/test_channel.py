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


def test_a_supervisor_that_does_not_read_holds_up_no_worker_and_fills_no_memory() -> None:
    ours, theirs = socket.socketpair()
    commands = Commands(theirs)
    for number in range(200):
        commands.tell("state", number=number, filler="x" * 100_000)
    assert len(commands._unsent) < 8 * 2**20
    read = b""
    while b"\n" not in read:
        read += ours.recv(2**20)
    first = read.split(b"\n")[0]
    assert decode(first)["number"] == 0
    ours.close()
    theirs.close()
