"""The supervisor's side of the quarantine: what each process has died of, and what the next one is told.

See `runtime.quarantine` for what happens within a process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Final, TypeVar

from mqttapi.runtime.quarantine import CHARGES, Note, Quarantine, read_note, write_note

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Charges", "SlotQuarantine", "quarantine_of"]

V = TypeVar("V")

MOST: Final = 1000
"""Messages that are remembered of a slot; the oldest is forgotten first."""


class Charges:
    """How often each message was alone in flight when its process died. Pure.

    A charge counts until a process has dealt with all that came again: what was charged has been handled by then. What
    was condemned stays so, as an equal message would kill again.
    """

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._condemned: dict[bytes, None] = {}

    @property
    def condemned(self) -> Collection[bytes]:
        """The keys of the messages that are not to run."""
        return self._condemned.keys()

    def died(self, key: bytes) -> int:
        """Charge the message that was alone in flight at a death; gives how often it was."""
        count = self._counts.pop(key, 0) + 1
        if count < CHARGES:
            _remember(self._counts, key, count)
        else:
            _remember(self._condemned, key, None)
        return count

    def over(self) -> None:
        """A process has dealt with everything that came again."""
        self._counts.clear()


class SlotQuarantine:
    """What the supervisor keeps for one slot, over all its processes.

        quarantine = SlotQuarantine()
        process = start(quarantine.order(), pass_fds=(quarantine.fd,))   # and in it: `quarantine_of(order, fd)`
        ...
        charged = quarantine.ended(died=process.returncode != 0)

    It holds a file without a name; `close` gives it back.
    """

    def __init__(self) -> None:
        self.fd = _file_without_name()
        """To be passed to each process."""
        self.active = False
        """Whether the next process has to begin in quarantine."""
        self._charges = Charges()

    def order(self) -> list[str] | None:
        """What the next process is to be told before it serves, in types that JSON has.

        Call it once for each process, when what was there before has ended.
        """
        write_note(self.fd, Note())
        return [key.hex() for key in self._charges.condemned] if self.active else None

    def ended(self, *, died: bool) -> str:
        """A process of the slot has ended. One that was still in quarantine leaves that to the next.

        Gives the message that was charged, for the log; empty where none was. Such a death brings the slot forward, so it
        is no sign of a crash loop, though most come before the process has subscribed.

        Args:
            died: Whether it should not have: it was killed, or its exit code says so.
        """
        note = read_note(self.fd)
        if note.over:
            self._charges.over()
            self.active = False
        if not died:
            return ""
        self.active = True
        if note.key is None:
            return ""
        count = self._charges.died(note.key)
        then = ": it is not run any more" if count == CHARGES else ""
        return f"alone in flight was a message on {note.what} ({count} of {CHARGES}{then})"

    def forgive(self) -> None:
        """The next process has new code: nothing is known of what that dies of."""
        self._charges = Charges()

    def close(self) -> None:
        """The slot is no more."""
        os.close(self.fd)


def quarantine_of(order: list[str] | None, fd: int) -> Quarantine | None:
    """In the process: the quarantine that it is to begin in, by `SlotQuarantine.order`; None: it is in none."""
    return None if order is None else Quarantine(fd, [bytes.fromhex(key) for key in order])


def _file_without_name() -> int:
    if sys.platform == "linux":
        fd = os.memfd_create("mqttapi-quarantine")  # needs no directory that can be written to
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    write_note(fd, Note())
    return fd


def _remember(known: dict[bytes, V], key: bytes, value: V) -> None:
    known[key] = value
    if len(known) > MOST:
        del known[next(iter(known))]
