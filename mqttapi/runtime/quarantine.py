"""Quarantine: what a process may have died of runs alone in the next one, so that it is known what kills.

Theory of operation
===================

A process that is killed leaves no word, and a thousand messages may have been in flight. They come again, as they were
not acknowledged, and what killed one process kills the next. So the process after an abnormal death begins in
quarantine: a message that its predecessor may have had in flight, a *suspect*, begins when nothing else runs, and
nothing begins until it has ended. Its key stands meanwhile in a file that the supervisor holds open: the kernel keeps
what is written there whatever becomes of the process. After a death the supervisor reads the file. A message that was
alone is charged; one that ran in a crowd never is. With the third charge it is *condemned*: the next process does not
run it, and makes a dead letter of it.

**Where messages wait.** They are received as always, so that connections stay alive and bounds hold, and wait in one
queue for all links between the dispatcher and the lanes. A suspect is a barrier in that queue: it waits for everything
before it to end, and everything behind it waits for it. What is no suspect runs at once where there is no barrier, and
never beside a suspect: so QoS 0 waits too, which may kill as well as any other, though it cannot come again and is
never noted.

**Suspects.** Of one link, once it has resumed a session:

- A broker that sets the DUP flag sends first, flagged, all that was in flight. What is not flagged behind that is new.
- Some brokers never set it (of those we know: iotcore, aedes, NATS). As long as no flag was seen, any message may have
  been in flight, up to the size of the window: no process has more.
- Once the broker is silent for a moment, although nothing is held back, it has no more to send again.
- Without a session nothing comes again.

When no link expects a suspect and none waits, the quarantine is over. It never stalls: what runs has the same time-outs
as always, and if something does not end nevertheless (a dead letter that neither broker nor disk takes, say), the
quarantine is given up.

**Keys.** A message is known by its QoS, its topic, its payload and the routes it is for: where filters overlap, each
subscription has a copy of its own, and only one of them may kill.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from mqttapi.errors import PoisonMessage
from mqttapi.message import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from mqttapi.message import Message
    from mqttapi.runtime.intake import Intake
    from mqttapi.runtime.lanes import Workers
    from mqttapi.runtime.ledger import Entry
    from mqttapi.runtime.outcome import Outcome
    from mqttapi.runtime.runs import Run, Target

__all__ = ["CHARGES", "Arrival", "Backlog", "Note", "Quarantine", "key_of", "read_note", "write_note"]

log = logging.getLogger("mqttapi.quarantine")

CHARGES: Final = 3
"""Processes that a message has to kill, each time alone, before it is not run any more."""
SILENT_LOOKS: Final = 2
"""How often in a row, about once a second, nothing must have come from a broker for it to be silent."""

_KEY: Final = 16  # bytes
_RECORD: Final = 512  # bytes, always written as a whole
_ALONE: Final = b"\x01"
_OVER: Final = b"\x02"


class Note(NamedTuple):
    """What a process in quarantine tells the supervisor, also when it is killed in the middle of something."""

    key: bytes | None = None
    """Of the message that runs alone; None: none does."""
    what: str = ""
    """Its topic and routes, for people; may be cut."""
    over: bool = False
    """Whether everything that its predecessor may have had in flight has been dealt with."""


def write_note(fd: int, note: Note) -> None:
    """Write a note into a file, in one call. The file has its full size from the first note on.

    Raises:
        OSError: As `os.pwrite`.
    """
    record = b"" if note.key is None else _ALONE + note.key + note.what.encode()
    if note.over:
        record = _OVER
    os.pwrite(fd, record[:_RECORD].ljust(_RECORD, b"\0"), 0)


def read_note(fd: int) -> Note:
    """Read what `write_note` has written."""
    record = os.pread(fd, _RECORD, 0)
    state, key, what = record[:1], record[1 : 1 + _KEY], record[1 + _KEY :]
    if state == _ALONE:
        return Note(key, what.rstrip(b"\0").decode(errors="ignore"))
    return Note(over=state == _OVER)


def key_of(message: Message, targets: Sequence[Target]) -> bytes:
    """What a message is known by: 16 bytes."""
    names = [target.runner.route.name for target in targets]
    digest = blake2b(bytes((message.qos,)), digest_size=_KEY)
    for part in (message.topic.encode(), message.payload, *(name.encode(errors="replace") for name in names)):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that has come and has not been given to the lanes."""

    intake: Intake
    message: Message
    targets: Sequence[Target]
    entry: Entry | None
    """Of the ledger; None for QoS 0."""


class Backlog:
    """What the broker of one link may send again; made by `Quarantine.backlog`.

    Args:
        window: Messages that a process has in flight at most.
    """

    def __init__(self, quarantine: Quarantine, window: int) -> None:
        self.expected = True
        """Whether a suspect may still come."""
        self.waiting = 0
        """Suspects that have come and have not ended."""
        self._quarantine = quarantine
        self._window = self._left = window
        self._flagged = False
        self._silent = 0

    @property
    def idle(self) -> bool:
        """Whether messages of this link need not be taken here any more."""
        return self._quarantine.idle

    @property
    def holds(self) -> bool:
        """Whether messages of this link may be waiting for one another."""
        return self.waiting > 0 and self._quarantine.active

    def connected(self, session_present: bool) -> None:
        """A CONNACK said yes, for the first time or again; nothing has been read behind it."""
        self._left = self._window
        if not session_present:
            self.end()

    def take(self, arrival: Arrival) -> None:
        """Take a message, in place of giving it to the lanes."""
        suspect = arrival.entry is not None and self._may_have_been_in_flight(arrival.message.dup)
        self.waiting += suspect
        self._quarantine.take(arrival, self if suspect else None)

    def looked(self, *, silent: bool) -> None:
        """To be called about once a second.

        Args:
            silent: Whether nothing has come since the last time, though the link is subscribed and reads.
        """
        self._silent = self._silent + 1 if silent and not self.waiting else 0
        if self._silent == SILENT_LOOKS:
            self.end()

    def end(self) -> None:
        """Nothing comes again on this link any more."""
        self.expected = False
        self._quarantine.look()

    def _may_have_been_in_flight(self, dup: bool) -> bool:
        if not self.expected or self._quarantine.over:
            return False
        if self._flagged and not dup:
            self.expected = False
            return False
        self._flagged = dup
        self._left -= 1
        self.expected = self._left > 0
        return True


class Quarantine:
    """The worker's side: holds messages back, and notes the one that runs alone.

    Args:
        note_fd: A file that the supervisor reads after a death.
        condemned: Keys of messages that are not to run. They are looked for as long as the process lives: a retained
            message comes with every subscription, and a device may send the same again and again.
    """

    def __init__(self, note_fd: int, condemned: Collection[bytes] = ()) -> None:
        self.over = False
        """Whether messages run side by side again."""
        self._fd: int | None = note_fd
        self._condemned = frozenset(condemned)
        self._backlogs: list[Backlog] = []
        self._waiting: deque[tuple[Arrival, Backlog | None]] = deque()  # with a backlog: a suspect
        self._turns: asyncio.Task[None] | None = None  # gives those that wait to the lanes
        self._letters: set[asyncio.Task[None]] = set()
        self._alone = 0  # messages that have run alone
        self._aside = 0  # messages that were not run

    @property
    def active(self) -> bool:
        """Whether messages may be waiting for one that has to be alone."""
        return not self.over

    @property
    def idle(self) -> bool:
        """Whether there is nothing more to do for it, for as long as the process lives."""
        return self.over and not self._condemned

    @property
    def waiting(self) -> int:
        """Messages that have not been given to the lanes."""
        return len(self._waiting)

    def begin(
        self,
        workers: Workers,
        fail: Callable[[Run, BaseException], Awaitable[Outcome | None]],
        *,
        patience: float,
        name: str,
    ) -> None:
        """Say who runs messages, before the first one comes.

        Args:
            workers: They run nothing but what comes from the links.
            fail: Deals with a message that is not to run.
            patience: Seconds without any run that ends, after which the quarantine is given up.
            name: Of the tasks.
        """
        self._workers = workers
        self._fail = fail
        self._patience = patience
        self._name = name
        log.info("the process before this one died: what it may have died of runs alone")

    def backlog(self, window: int) -> Backlog:
        """One more link, of which nothing has been read; see `Backlog`."""
        backlog = Backlog(self, window)
        self._backlogs.append(backlog)
        return backlog

    def take(self, arrival: Arrival, suspect: Backlog | None) -> None:
        """Give a message to the lanes, now or in its turn; a condemned one to `fail`."""
        if (
            arrival.entry is not None
            and self._condemned
            and key_of(arrival.message, arrival.targets) in self._condemned
        ):
            self._aside += 1
            task = asyncio.create_task(self._put_aside(arrival, suspect), name=f"{self._name}.condemned")
            self._letters.add(task)
            task.add_done_callback(self._letters.discard)
        elif suspect is None and self._turns is None:
            arrival.intake.admit(arrival)
        else:
            self._waiting.append((arrival, suspect))
            if self._turns is None:
                self._turns = asyncio.create_task(self._take_turns(), name=f"{self._name}.quarantine")
        self.look()

    def look(self) -> None:
        """Find out whether it is over."""
        open_ = any(backlog.expected or backlog.waiting for backlog in self._backlogs)
        if self.over or open_ or self._turns is not None:
            return
        self.over = True
        self._note(Note(over=True))
        log.info(
            "the quarantine is over: of the messages that the process before this one may have died of, %d ran alone, "
            "%d did not run",
            self._alone,
            self._aside,
        )

    async def drain(self) -> None:
        """Return when nothing waits here any more, or what waits will not run because the process is about to end."""
        while tasks := [task for task in (self._turns, *self._letters) if task is not None and not task.done()]:
            await asyncio.wait(tasks)

    async def cancel(self) -> None:
        """End at once; what waits is not run, and comes again."""
        tasks = [task for task in (self._turns, *self._letters) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- taking turns -----------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        """Give what waits to the lanes, suspects one by one; what comes meanwhile waits behind them."""
        try:
            while self._waiting:
                arrival, suspect = self._waiting.popleft()
                if suspect is None:
                    arrival.intake.admit(arrival)
                elif not await self._run_alone(arrival, suspect):
                    return  # the process is about to end: what waits comes again
        except TimeoutError as error:
            self._give_up(logging.WARNING, str(error))
        except Exception:  # noqa: BLE001  logged, and nothing may be stuck here
            self._give_up(logging.ERROR, "this is a bug in mqttapi")
        self._turns = None
        self._workers.wake()
        self.look()

    async def _run_alone(self, arrival: Arrival, suspect: Backlog) -> bool:
        """Whether it has ended; else the process is about to end, of this message or another one."""
        try:
            if not await self._quiet():
                return False
        except TimeoutError:
            self._waiting.appendleft((arrival, suspect))
            raise
        routes = ", ".join(target.runner.route.name for target in arrival.targets)
        what = f"{printable(arrival.message.topic)} for {printable(routes)}"
        log.debug("alone: a message on %s", what)
        self._note(Note(key_of(arrival.message, arrival.targets), what))
        arrival.intake.admit(arrival)
        if not await self._quiet():
            return False
        self._note(Note())
        self._alone += 1
        suspect.waiting -= 1
        return True

    async def _quiet(self) -> bool:
        """Return when nothing runs. False: something is over without an outcome, so the process is about to end.

        Raises:
            TimeoutError: Something does not end.
        """
        workers = self._workers
        workers.wake()
        while True:
            before = workers.outstanding
            try:
                async with asyncio.timeout(self._patience):
                    await workers.drain()
            except TimeoutError:
                if workers.outstanding >= before:
                    text = f"{before} messages run, and none has ended for {self._patience:g} s"
                    raise TimeoutError(text) from None
            else:
                return not workers.held

    def _give_up(self, level: int, why: str) -> None:
        bug = level >= logging.ERROR
        log.log(level, "the quarantine is given up, and messages run side by side again: %s", why, exc_info=bug)
        self._note(Note())
        self.over = True
        for arrival, _ in self._waiting:
            arrival.intake.admit(arrival)
        self._waiting.clear()

    # -- the rest ---------------------------------------------------------------------------------------------------

    async def _put_aside(self, arrival: Arrival, suspect: Backlog | None) -> None:
        for run in arrival.intake.condemned(arrival):
            outcome = await self._fail(run, PoisonMessage(CHARGES))
            if outcome is None:
                raise RuntimeError(f"{run!r} was not run, and has no outcome: this is a bug in mqttapi")
            run.runner.counts[outcome.kind] += 1
            arrival.intake.ended(run, outcome)
        if suspect is not None:
            suspect.waiting -= 1
            self.look()

    def _note(self, note: Note) -> None:
        """A note that cannot be written costs a charge, no more: what runs alone runs alone nevertheless."""
        if self._fd is None:
            return
        try:
            write_note(self._fd, note)
        except OSError as error:
            self._fd = None
            log.error("cannot note which message runs alone, so none will be charged: %s", error)
