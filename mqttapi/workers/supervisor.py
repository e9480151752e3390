"""The supervisor: starts the workers of a pool, watches them, replaces them, and ends when they have ended.

It has no connection to the broker and imports nothing of the user's. What it knows of the app, the first worker has
told it; what it wants from a worker, it says over that one's socket. Signals are for the supervisor alone (`signals`).

A slot's process is `starting` (it imports), then waits to be told to serve: so a successor can be made ready while its
predecessor still works. It takes over the client id, and with it the broker's session, when that one has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from mqttapi._version import __version__
from mqttapi.config import client_id
from mqttapi.errors import ConfigurationError
from mqttapi.workers.plan import MOST_WORKERS, Plan, Wanted
from mqttapi.workers.process import Launch, Process
from mqttapi.workers.relay import Relay
from mqttapi.workers.signals import obeying_signals
from mqttapi.workers.slot import CRASH_LOOP, Slot, how_it_ended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

__all__ = ["Supervisor"]

log = logging.getLogger("mqttapi.workers")

FAILED: Final = 1
WRONG: Final = 2
TAKEN_OVER: Final = 3

HEARTBEAT: Final = 60
"""Seconds without a word from a worker that has been ready, after which it is replaced."""
_BEYOND_GRACE: Final = 15.0
"""Seconds that a worker which drains has beyond its `grace` for connections and resources."""
_MANY_PER_CORE: Final = 4
_AT_ONCE: Final = 5.0
"""Seconds that a worker has to end which was told to do so at once."""


class Supervisor:
    """A pool of worker processes, from its start to its end.

    Args:
        launch: What the workers are started with.
        keep_going: Whether a worker that dies again and again before it is ready is started for ever.
        on_state: Called with the state, about once a second and when something has changed.
        on_loaded: Called once, when it is known which app it is.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        keep_going: bool = False,
        on_state: Callable[[dict[str, Any]], None] = lambda _: None,
        on_loaded: Callable[[Supervisor], None] = lambda _: None,
    ) -> None:
        self.phase = "starting"
        self.about: dict[str, Any] = {}
        """What the first worker has told of the app: its name, instance, grace, and what its routes want."""
        self._launch = launch
        self._keep_going = keep_going
        self._on_state = on_state
        self._on_loaded = on_loaded
        self._began = time.monotonic()
        self._plan = Plan(())
        self._wished: int | None = None  # processes, where that is not what the routes ask for
        self._slots: dict[int, Slot] = {}
        self._relay = Relay()
        self._outputs = (os.dup(1), os.dup(2))
        self._code = 0
        self._served = False  # whether any worker has ever been ready
        self.cut_short = False
        """Whether the workers were told to stop at once."""
        self._over = asyncio.Event()
        self._turn: asyncio.Future[None] | None = None
        self._changing = asyncio.Lock()  # held while the pool is scaled or reloaded
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Keep the pool until it is told to stop, or cannot go on; gives the exit code."""
        with obeying_signals(self):
            watching = asyncio.create_task(self._watch(), name="mqttapi[supervisor].watch")
            try:
                with self._relay.logging_to(self._outputs[1]):
                    self._open(0)
                    await self._over.wait()
            finally:
                watching.cancel()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(watching, *self._tasks, return_exceptions=True)
                self._relay.close()
                for output in self._outputs:
                    os.close(output)
        return self._code

    @property
    def size(self) -> int:
        """Processes that are wanted."""
        return self._plan.size

    @property
    def stopping(self) -> bool:
        return self.phase == "stopping"

    @property
    def ready(self) -> bool:
        """Whether all that are wanted are there, and ready."""
        return all(self._is_ready(number) for number in range(self.size))

    def _open(self, number: int) -> Slot:
        slot = self._slots[number] = Slot(number)
        slot.task = asyncio.create_task(self._keep(slot), name=f"mqttapi[supervisor].slot-{number}")
        slot.task.add_done_callback(lambda task: self._closed(slot, task))
        return slot

    def _closed(self, slot: Slot, task: asyncio.Task[None]) -> None:
        slot.quarantine.close()
        if self._slots.get(slot.number) is slot:
            del self._slots[slot.number]
        if not task.cancelled() and task.exception() is not None:
            log.error("the supervisor failed: this is a bug in mqttapi", exc_info=task.exception())
            self._finish(FAILED)
        if not self._slots:
            self._over.set()
        self._changed()

    async def _keep(self, slot: Slot) -> None:
        """Have a process in the slot for as long as the slot is wanted."""
        while self._is_wanted(slot):
            successor, slot.successor = slot.successor, None
            if successor is not None:  # it has the code as it is now
                slot.quarantine.forgive()
            try:
                # While one starts there may come a successor, whose turn is after it.
                process = successor or await self._start(slot)
            except OSError as error:
                log.error("cannot start worker %d: %s", slot.number, error)
                slot.deaths += 1
            else:
                await self._have(slot, process)
            if slot.pause and slot.successor is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(slot.pause):
                        await self._until(lambda: not self._is_wanted(slot) or slot.successor is not None)
        if slot.successor is not None:
            await slot.successor.ended(self._relay)

    async def _have(self, slot: Slot, process: Process) -> None:
        """Let a process serve, and wait for its end."""
        slot.process = process
        loaded = await self._until_loaded(process)
        if loaded is not None and not process.told:
            if not self.about:
                self._learn(loaded)
            rescue = self._launch.rescue
            process.send("serve", size=self.size, quarantine=slot.quarantine.order(), rescue=rescue)
        code = await process.ended(self._relay)
        slot.process = None
        self._note_end(slot, process, code)

    def _is_wanted(self, slot: Slot) -> bool:
        return not (self.stopping or slot.leaving)

    async def _start(self, slot: Slot) -> Process:
        process = await Process.start(
            slot.number, self._launch, note=slot.quarantine.fd, outputs=self._outputs, relay=self._relay
        )
        process.on_change = self._changed
        if not self._is_wanted(slot):  # since a moment ago
            self._retire(process)
        return process

    async def _until_loaded(self, process: Process) -> dict[str, Any] | None:
        """What the process tells of the app; None: it has ended before."""
        ended = asyncio.ensure_future(process.exited())
        await asyncio.wait((process.loaded, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        return process.loaded.result() if process.loaded.done() else None

    def _learn(self, loaded: dict[str, Any]) -> None:
        """What the first worker tells of the app decides how many there are."""
        self.about = loaded
        self._replan(None)
        cores = os.cpu_count() or 1
        if self.size > _MANY_PER_CORE * cores:
            log.warning("%d workers on %d cores: more than %d per core seldom help", self.size, cores, _MANY_PER_CORE)
        self._on_loaded(self)
        for number in range(1, self.size):
            self._open(number)

    def _replan(self, size: int | None) -> None:
        """Have so many workers from now on; None: as many as the routes ask for."""
        wanted = [Wanted(*each) for each in self.about["wanted"]]
        self._plan = Plan(wanted, placement=self.about["placement"], size=size)
        for process in self._processes():
            if process.serves:
                process.send("resize", size=self.size)

    def _note_end(self, slot: Slot, process: Process, code: int) -> None:
        """Decide what the end of a process means for its slot, and for the pool."""
        charged = slot.quarantine.ended(died=code != 0)
        self._changed()
        if self.stopping or process.told:
            if code:
                log.warning("worker %d (pid %d) %s while it drained", slot.number, process.pid, how_it_ended(code))
                self._code = self._code or (FAILED if self.stopping else 0)
            return
        slot.ended(process, time.monotonic() - process.began, charged=bool(charged))
        if code == TAKEN_OVER:
            log.error("worker %d does not have its client id, as another process has it: all workers end", slot.number)
            self._finish(TAKEN_OVER)
        elif not self._served and code in {FAILED, WRONG} and not self._keep_going:
            self._finish(code)  # the worker has said why
        elif slot.deaths >= CRASH_LOOP and not (self._keep_going or slot.on_trial):
            log.error(
                "worker %d has died %d times in a row before it was ready, the last time it %s: giving up. "
                "--keep-going tries for ever",
                *(slot.number, slot.deaths, how_it_ended(code)),
            )
            self._finish(FAILED)
        else:
            again = f"in {slot.pause:g} s" if slot.pause else "at once"
            log.log(
                logging.ERROR if code else logging.INFO,
                "worker %d (pid %d) %s: starting it again %s%s",
                *(slot.number, process.pid, how_it_ended(code), again, charged and f"; {charged}"),
            )

    # -- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain all workers, and end."""
        if not self.stopping:
            self._finish(0)

    def _finish(self, code: int) -> None:
        self._code = self._code or code
        if self.stopping:
            return
        self.phase = "stopping"
        for process in self._processes():
            self._retire(process)
        if not self._slots:
            self._over.set()
        self._changed()

    def _retire(self, process: Process, do: str = "drain", **rest: Any) -> None:
        """Tell a process to end, and see to it that it does."""
        process.send(do, **rest)
        patience = _AT_ONCE if do == "cancel" else self._grace + rest.get("timeout", 0.0) + _BEYOND_GRACE
        self.in_background(self._outlive(process, patience))

    async def _outlive(self, process: Process, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await process.exited()
        except TimeoutError:
            if process.told == "cancel" and patience != _AT_ONCE:
                return  # told since to hurry, and watched for that
            log.error("worker %d (pid %d) has not ended within %g s: killed", process.slot, process.pid, patience)
            await process.kill_with_stack()

    def cancel(self) -> None:
        """End all workers at once: what they have not done comes again."""
        self.cut_short = True
        self._code = self._code or FAILED
        for process in self._processes():
            self._retire(process, "cancel")

    @property
    def _grace(self) -> float:
        return float(self.about.get("grace", 30.0))

    def _processes(self) -> list[Process]:
        return [process for slot in self._slots.values() for process in slot.processes]

    # -- changes ----------------------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """Replace one worker after the other by a new process, with the code as it is now.

        Raises:
            ConfigurationError: The new code cannot be loaded; the old one goes on. Or it is not the time for it.
        """
        async with self._change("reloading"):
            for number in sorted(self._slots):
                slot = self._slots.get(number)
                if slot is None or slot.leaving:
                    continue
                await self._replace(slot)
            before = self._plan
            self._replan(self._wished)
            await self._resize(before)
        return f"reloaded: {_workers(self.size)} {'runs' if self.size == 1 else 'run'} the new code"

    async def scale(self, size: int) -> str:
        """Have so many processes, 1 to 512, whatever the routes ask for.

        Raises:
            ConfigurationError: The number is out of bounds, or there is nothing that more processes could share; or those
                that were added do not become ready; or it is not the time for it.
        """
        if not 1 <= size <= MOST_WORKERS:
            raise ConfigurationError(f"a pool has 1 to {MOST_WORKERS} workers, got {size}")
        async with self._change("scaling"):
            before = self._plan
            if size > 1 and not before.can_scale:
                raise ConfigurationError(
                    f"no route of {self.about['app']} is shared: {size} workers would have nothing to share. "
                    "Add shared=True to a route"
                )
            self._wished = size
            self._replan(size)
            await self._resize(before)
        return _workers(self.size)

    @contextlib.asynccontextmanager
    async def _change(self, phase: str) -> AsyncIterator[None]:
        """One change of the pool at a time, while it serves."""
        async with self._changing:
            if self.phase != "serving":
                raise ConfigurationError(f"the pool is {self.phase}: try again when it serves")
            self.phase = phase
            try:
                yield
            finally:
                if not self.stopping:
                    self.phase = "serving"
                self._changed()

    async def _resize(self, before: Plan) -> None:
        """Open what is missing, replace those that are to serve something else, and let go what is too much."""
        new = [number for number in range(self.size) if number not in self._slots]
        for number in new:
            self._open(number).on_trial = True
        await self._until_ready(*new)
        for number in range(min(before.size, self.size)):
            if number in self._slots and before.served(number) != self._plan.served(number):
                await self._replace(self._slots[number])
        surplus = [slot for number, slot in self._slots.items() if number >= self.size]
        for slot in surplus:
            slot.leaving = True
            if not any(process.was_ready for process in slot.processes):
                about, rescue = self.about, self._launch.rescue
                name = client_id(about["app"], about["instance"], slot.number, stem=about["stem"])
                log.warning(
                    "worker %d goes away while it is not connected: if it has a session, that stays, with what waits in "
                    "it. To handle that: %s %s",
                    *(slot.number, rescue, name),
                )
            for process in slot.processes:
                self._retire(process, "leave", timeout=self._grace, rescue=self._launch.rescue)
        await self._until(lambda: not any(slot.number in self._slots for slot in surplus))
        self._must_serve()

    async def _replace(self, slot: Slot) -> None:
        """Let a new process take a slot over, once it has been loaded."""
        try:
            slot.successor = successor = await self._start(slot)
        except OSError as error:
            raise ConfigurationError(
                f"cannot start a new process for worker {slot.number}: {error}. The old one goes on"
            ) from None
        loaded = await self._until_loaded(successor)
        if loaded is None:
            code = await successor.ended(self._relay)
            waited, slot.successor = slot.successor is successor, None
            self._must_serve()
            raise ConfigurationError(
                f"the new process of worker {slot.number} {how_it_ended(code)} before it had loaded the app; its log "
                f"says why. {'The old one goes on' if waited else 'It is tried again, as the old one has died, too'}"
            )
        if slot.number == 0:  # how many it wants there will be when all have the new code: no route is without a worker
            self.about = loaded
            self._replan(self.size)
        self._changed()
        slot.on_trial, slot.deaths = True, 0
        await self._until(lambda: self.stopping or slot.process is not None)  # one may be about to be started
        if slot.process is not None and slot.process is not successor:
            self._retire(slot.process)
        await self._until(lambda: self.stopping or slot.successor is not successor)
        await self._until_ready(slot.number)

    async def _until_ready(self, *numbers: int) -> None:
        """Wait for what a change has brought.

        Raises:
            ConfigurationError: One of them dies again and again, or the pool is told to stop.
        """

        def failing() -> list[Slot]:
            return [slot for number in numbers if (slot := self._slots.get(number)) and slot.deaths >= CRASH_LOOP]

        await self._until(lambda: self.stopping or bool(failing()) or all(map(self._is_ready, numbers)))
        self._must_serve()
        for slot in failing():
            raise ConfigurationError(
                f"worker {slot.number} has died {slot.deaths} times in a row before it was ready; its log says why. It is "
                "tried again and again, and the others go on as they are: mend the code and reload"
            )

    def _must_serve(self) -> None:
        """A change has an end only in a pool that goes on."""
        if self.stopping:
            raise ConfigurationError("the pool was told to stop before the change was done")

    def _is_ready(self, number: int) -> bool:
        slot = self._slots.get(number)
        if slot is None or slot.process is None:
            return False
        return bool(slot.process.report.get("state") == "ready")

    # -- what it sees -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """How the pool and each of its workers are, in types that JSON has."""
        about = self.about
        return {
            "app": about.get("app", ""),
            "instance": about.get("instance", ""),
            "pid": os.getpid(),
            "target": self._launch.target or about.get("app", ""),
            "version": __version__,
            "uptime": time.monotonic() - self._began,
            "phase": self.phase,
            "size": self.size,
            "workers": [self._described(slot) for _, slot in sorted(self._slots.items())],
        }

    def _described(self, slot: Slot) -> dict[str, Any]:
        process, now = slot.process, time.monotonic()
        fixed = {"slot": slot.number, "restarts": slot.restarts}
        if process is None:
            return fixed | {"pid": None, "state": "dead", "problems": ["the process has ended"], "stats": {}}
        report = {"state": "starting", "problems": ["the app is being imported"], "stats": {}} | process.report
        if process.told and not report["state"].startswith("l"):
            report["state"] = "leaving" if slot.leaving else "draining"
        return {**report, **fixed, "pid": process.pid, "uptime": now - process.began, "heard": now - process.heard}

    def _changed(self) -> None:
        self._served = self._served or any(process.was_ready for process in self._processes())
        if self.phase == "starting" and self.ready:
            self.phase = "serving"
            if self.size > 1:
                log.info("all %d workers are ready", self.size)
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self._on_state(self.state())

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that changes."""
        while not holds():
            if self._turn is None or self._turn.done():
                self._turn = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._turn)

    async def _watch(self) -> None:
        """Once a second: look for workers that say nothing. Counted, not measured: a machine may have slept."""
        while True:
            await asyncio.sleep(1)
            for process in self._processes():
                process.silent += 1
                if process.silent == HEARTBEAT and not process.told:
                    self._told_nothing(process)
            self._changed()

    def _told_nothing(self, process: Process) -> None:
        if process.was_ready:
            log.error(
                "worker %d (pid %d) has said nothing for %d s: it writes its stack to its log, and is replaced",
                *(process.slot, process.pid, HEARTBEAT),
            )
            self.in_background(process.kill_with_stack())
        elif process.serves or not process.loaded.done():  # an import, or a lifespan, may need its time
            log.warning(
                "worker %d (pid %d) has said nothing for %d s, and has not been ready yet: it writes its stack to its log",
                *(process.slot, process.pid, HEARTBEAT),
            )
            process.write_stack()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside all else; what has not been done at the end is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
