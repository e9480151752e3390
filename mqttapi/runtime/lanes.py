"""Lanes: messages of one key run one after the other, different keys at the same time.

Theory of operation. A *lane* is an ordering key of a route that has work; it is nothing but an entry of `Runner.lanes`,
so the keys that are idle cost nothing, however many there are. The first run of a lane is *ready*; those that come
while there is one wait in the lane, and one of them becomes ready when the one before has ended: lanes take turns,
message by message.

Ready runs are taken by long-lived worker tasks, which all runners share. One worker at a time *searches*: it takes
ready runs and awaits their handlers. A handler that never waits gives no turn to the event loop, so a burst of such
messages costs one task, one wake-up and nothing per message. That the loop gets its turn while the searching worker is
in a handler means that the handler waits: then another worker takes over the search, and the first one waits along.

What a handler sets in its context (`contextvars`), no other message sees: a worker whose context is not what it was at
its start has run its last message.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING

from mqttapi.runtime.outcome import DONE, Outcome
from mqttapi.runtime.timeouts import attempt_error, uncancel_overdue

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Generator, Hashable

    from mqttapi.runtime.runs import Run, Runner

__all__ = ["Workers"]

LANE = ".lane-"
"""In the names of the tasks, between that of the app and a number."""
LOOP_TURN = 0.005
"""Seconds that handlers which never wait run in a row, before the event loop gets its turn."""
SWEEP = 0.25
"""Seconds between two looks at the deadlines of handlers that wait."""
PATIENCE = 2.0
"""Seconds that handlers have to clean up once they are cancelled at the end."""
_CLOCK_EVERY = 16
"""Runs between two looks at the clock."""


class Workers:
    """The tasks that run the lanes of an app.

    Args:
        finish: Called with a run and what its endpoint returned, when something has to be done about it.
        fail: Called with a run and what its endpoint raised; says how the run ended. None: not at all, so it stays
            unacknowledged, and what comes after it in its lane stays where it is.
        fatal: Called with a `SystemExit` or `KeyboardInterrupt` that a handler raised: the app should stop.
        context: Each run gets a copy of it.
        name: Of the tasks, for debuggers and logs.
    """

    def __init__(
        self,
        *,
        finish: Callable[[Run, object], Awaitable[Outcome]],
        fail: Callable[[Run, BaseException], Awaitable[Outcome | None]],
        fatal: Callable[[BaseException], None],
        context: contextvars.Context,
        name: str,
    ) -> None:
        self.outstanding = 0
        """Runs that have not ended."""
        self._finish = finish
        self._fail = fail
        self._fatal = fatal
        self._context = context
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Run] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = 0
        self._idle: list[asyncio.Future[None]] = []
        self._searching = False
        self._searcher: asyncio.Task[None]
        self._current: Run | None = None  # what the searching task runs
        self._waiting: dict[asyncio.Task[None], Run] = {}
        self._held: list[Run] = []  # without an outcome
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0
        self._stopping = False
        self._drained: list[asyncio.Future[None]] = []

    def submit(self, run: Run) -> None:
        """Take a run; it begins when its lane and its route have room. Call `wake` after a batch."""
        self.outstanding += 1
        runner = run.runner
        if runner.order is not None:
            lanes, key = runner.lanes, run.key
            if key in lanes:
                waiting = lanes[key]
                if waiting is None:
                    waiting = lanes[key] = deque()
                waiting.append(run)
                return
            lanes[key] = None
        if runner.limit is None:
            self._ready.append(run)
        else:
            self._admit(run)

    def withdraw(self, run: Run) -> bool:
        """Take a run back that waits for its route to have room, or in its lane; False: it has begun, or is ready."""
        runner = run.runner
        if _take_out(runner.backlog, run):
            if runner.order is not None:
                self._leave(runner, run.key)
        elif not _take_out(runner.lanes.get(run.key), run):
            return False
        self._forget()
        return True

    @property
    def ready(self) -> bool:
        """Whether there are runs that could begin at once."""
        return bool(self._ready)

    def wake(self) -> None:
        """See to it that somebody works on what is ready."""
        if not self._ready or self._searching:
            return
        self._searching = True
        while self._idle:
            idle = self._idle.pop()
            if not idle.cancelled():  # its task was, and is about to end
                idle.set_result(None)
                return
        self._started += 1
        name = f"{self._name}{LANE}{self._started}"
        self._tasks.add(self._loop.create_task(self._work(), name=name, context=self._context.copy()))

    @property
    def held(self) -> int:
        """Runs that are over without an outcome. Where there is one, the process is about to end."""
        return len(self._held)

    async def drain(self) -> None:
        """Return when every run has ended, but for those behind one that has no outcome: all of these come again."""
        while self.outstanding > self._unreachable():
            drained = self._loop.create_future()
            self._drained.append(drained)
            await drained

    async def stop(self) -> None:
        """Cancel what still runs, and end the workers. What is cancelled is not reported as ended.

        A handler that catches its cancellation and goes on is left behind after a while; it is then still `waiting`.
        """
        self._stopping = True
        if self._sweep is not None:
            self._sweep.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)

    def waiting(self) -> list[Run]:
        """The runs whose handlers wait for something at this moment."""
        return list(self._waiting.values())

    # -- one worker ---------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Take ready runs, until a handler leaves its traces in this task's context. Begins as the one that searches."""
        ready, clock, clean = self._ready, self._loop.time, self._context
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for type checkers: this is a coroutine of a task
        while True:
            self._search(task)
            turns, until = 0, clock() + LOOP_TURN
            while ready:
                self._current = run = ready.popleft()
                result = error = None
                try:
                    result = await run.runner.endpoint(run)
                except BaseException as raised:  # noqa: BLE001  a handler may raise anything
                    error = raised
                searching = self._current is run
                if not searching:
                    error = self._back(task, run, error)
                outcome: Outcome | None = DONE
                if error is not None or result is not None or run.message._properties.response_topic:
                    searching = self._pass_search(searching)
                    outcome = await self._settle(run, result, error)
                if outcome is None:
                    self._hold(run)
                else:
                    self._end(run, outcome)
                try:
                    traces = copy_context() != clean
                except Exception:  # noqa: BLE001  what is in it may not like to be compared
                    traces = True
                if traces:
                    self._tasks.discard(task)
                    self._pass_search(searching)
                    self.wake()
                    return
                turns += 1
                if not searching:
                    if self._searching:
                        break
                    self._search(task)
                elif not turns % _CLOCK_EVERY and clock() > until:
                    self._current = None
                    await self._turn()
                    self._search(task)
                    until = clock() + LOOP_TURN
            else:
                self._current = None
                self._searching = False
            idle = self._loop.create_future()
            self._idle.append(idle)
            try:
                await idle
            except asyncio.CancelledError as cancelled:  # by somebody who has kept the task of a handler
                self._not_ours(cancelled)
                if idle.cancelled():  # so it is not this one that `wake` has chosen
                    self._tasks.discard(task)
                    return

    async def _turn(self) -> None:
        """Give the event loop a turn."""
        try:
            await _yield()
        except asyncio.CancelledError as cancelled:
            self._not_ours(cancelled)

    def _search(self, task: asyncio.Task[None]) -> None:
        """`task`, which the loop has just begun to run, is the one that searches."""
        self._searching = True
        self._searcher = task
        self._loop.call_soon(self._detach)

    def _detach(self) -> None:
        """If the loop has its turn while the searching task is in a handler, the handler waits: let another search."""
        run = self._current
        if run is None:
            return
        now = self._loop.time()
        run.began = now
        run.deadline = None if run.runner.timeout is None else now + run.runner.timeout
        self._watch(self._searcher, run)
        self._pass_search(searching=True)

    def _watch(self, task: asyncio.Task[None], run: Run) -> None:
        """Until `_back`, the sweep looks at the run's deadline."""
        self._waiting[task] = run
        if self._sweep is None:
            self._sweep_later()

    def _sweep_later(self) -> None:
        self._sweep_due = self._loop.time() + SWEEP
        self._sweep = self._loop.call_at(self._sweep_due, self._look_at_deadlines)

    def _pass_search(self, searching: bool) -> bool:
        """Before this worker waits, let another one search. Gives False: this one does not search any more."""
        if searching:
            self._current = None
            self._searching = False
            self.wake()
        return False

    def _back(self, task: asyncio.Task[None], run: Run, error: BaseException | None) -> BaseException | None:
        """A handler that waited has ended; gives what it is taken to have raised."""
        del self._waiting[task]
        if error is None:
            uncancel_overdue(run)
            return None
        return attempt_error(run, error)

    async def _settle(self, run: Run, result: object, error: BaseException | None) -> Outcome | None:
        """How a run ended that answered or raised; None: without an outcome, and so it stays unacknowledged."""
        try:
            if error is not None and run.runner.again is not None:
                task = asyncio.current_task()
                assert task is not None  # noqa: S101  for type checkers: this is a coroutine of a task
                run.deadline = None
                self._watch(task, run)
                try:
                    result, error = await run.runner.again(run, error), None
                except BaseException as raised:  # noqa: BLE001  a handler may raise anything
                    error = raised
                error = self._back(task, run, error)
            if error is None:
                try:
                    return await self._finish(run, result)
                except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  it is the app's as well
                    error = failure
            if isinstance(error, SystemExit | KeyboardInterrupt):
                error.add_note(run.route.name)
                self._fatal(error)
                return None
            while True:
                if isinstance(error, asyncio.CancelledError):
                    self._not_ours(error)
                try:
                    return await self._fail(run, error)
                except asyncio.CancelledError as cancelled:  # that, too, is a failure to be dealt with
                    error = cancelled
        finally:
            del error  # its traceback may know this frame: nothing should have to wait for the garbage collector

    def _not_ours(self, cancelled: asyncio.CancelledError) -> None:
        """A handler was cancelled, or said so: it is a failure of its own, unless we did it."""
        if self._stopping:
            raise cancelled
        task = asyncio.current_task()
        while task is not None and task.cancelling():  # else the next `asyncio.timeout` of this task misfires
            task.uncancel()

    def _look_at_deadlines(self) -> None:
        """Cancel the handlers that took too long. One timer for all of them, and none while nobody waits.

        While the loop does not turn, because a handler blocks it or the process is stopped, nobody's time goes on: what
        the others wait for may have come long ago.
        """
        now, due = self._loop.time(), self._sweep_due
        stood_still = now - due if now - due > SWEEP else 0.0
        for task, run in self._waiting.items():
            if run.deadline is None or run.deadline < 0:
                continue
            if stood_still and run.began < due:
                run.began += stood_still
                run.deadline += stood_still
            if run.deadline <= now:
                run.deadline = -now
                task.cancel()
        self._sweep = None
        if self._waiting:
            self._sweep_later()

    # -- the end of a run ---------------------------------------------------------------------------------------

    def _end(self, run: Run, outcome: Outcome) -> None:
        """Tell the origin, then let the next run of the lane and of the route become ready."""
        runner = run.runner
        runner.counts[outcome.kind] += 1
        run.origin.ended(run, outcome)
        self.outstanding -= 1
        if self._drained:
            self._note_drained()
        if runner.limit is not None:
            self._release(runner)
        if runner.order is not None:
            self._leave(runner, run.key)

    def _leave(self, runner: Runner, key: Hashable) -> None:
        """The next run of a lane becomes ready; a lane that has none is no more."""
        waiting = runner.lanes[key]
        if not waiting:
            del runner.lanes[key]
        elif runner.limit is None:
            self._ready.append(waiting.popleft())
        else:
            self._admit(waiting.popleft())

    def _hold(self, run: Run) -> None:
        """A run is over without an outcome: its lane stays, so that nothing overtakes the message."""
        self._held.append(run)
        self._forget()
        if run.runner.limit is not None:
            self._release(run.runner)

    def _unreachable(self) -> int:
        """Runs that will never begin."""
        return sum(len(run.runner.lanes.get(run.key) or ()) for run in self._held)

    def _release(self, runner: Runner) -> None:
        """One of the route's places is free."""
        runner.running -= 1
        if runner.backlog:
            self._admit(runner.backlog.popleft())

    def _admit(self, run: Run) -> None:
        runner = run.runner
        if runner.limit is not None and runner.running >= runner.limit:
            runner.backlog.append(run)
            return
        runner.running += 1
        self._ready.append(run)

    def _forget(self) -> None:
        self.outstanding -= 1
        if self._drained:
            self._note_drained()

    def _note_drained(self) -> None:
        if self.outstanding > self._unreachable():
            return
        for drained in self._drained:
            if not drained.done():  # who waited for it may have been cancelled
                drained.set_result(None)
        self._drained.clear()


def _take_out(waiting: deque[Run] | None, run: Run) -> bool:
    """Remove a run that is most likely the first, if it is there."""
    if not waiting or not (waiting[0] is run or run in waiting):
        return False
    waiting.remove(run)
    return True


@types.coroutine
def _yield() -> Generator[None, None, None]:
    """`asyncio.sleep(0)` without its checks."""
    yield
