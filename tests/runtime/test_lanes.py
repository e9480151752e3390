"""Order within a key, concurrency across keys, isolation of contexts, time-outs, and the end of each run."""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqttapi.message import Message
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.outcome import DONE, Outcome
from mqttapi.runtime.runs import Run, Runner
from mqttapi.runtime.timeouts import HandlerTimeout

Handler = Callable[[Any], Awaitable[object]]


class Bench:
    """Workers with one route, and what became of each run."""

    def __init__(self, handler: Handler, **route: Any) -> None:
        options: dict[str, Any] = {"name": "r", "timeout": None, "ordered_by": "topic", "concurrency": None} | route
        self.runner = Runner(cast("Any", SimpleNamespace(**options)), handler)
        self.ended_runs: list[tuple[Message, Outcome]] = []
        self.finished: list[object] = []
        self.fatal: list[BaseException] = []

    def ended(self, run: Run, outcome: Outcome) -> None:
        self.ended_runs.append((run.message, outcome))

    def give(self, *messages: Message) -> None:
        for message in messages:
            target = self.runner.target(message.topic, ())
            self.workers.submit(Run(message, target, cast("Any", None), self, None))
        self.workers.wake()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        async def finish(run: Run, result: object) -> Outcome:
            self.finished.append(result)
            return DONE

        async def fail(run: Run, error: BaseException) -> Outcome:
            return Outcome("failed", type(error).__name__, error)

        self.workers = Workers(
            finish=finish, fail=fail, fatal=self.fatal.append, context=contextvars.copy_context(), name="test"
        )
        try:
            yield self
        finally:
            await self.workers.stop()


def numbered(topic: str, count: int) -> list[Message]:
    return [Message(topic, b"%d" % number) for number in range(count)]


async def test_a_key_without_work_leaves_nothing_behind() -> None:
    async def handler(run: Run) -> None:
        await asyncio.sleep(0)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 3), *numbered("b", 1))
        await bench.workers.drain()
        assert not bench.runner.lanes


async def test_a_handler_that_never_waits_runs_in_order_in_one_task() -> None:
    seen: list[bytes] = []

    async def handler(run: Run) -> None:
        seen.append(run.message.payload)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 500))
        await bench.workers.drain()
        assert seen == [b"%d" % number for number in range(500)]
        assert [outcome for _, outcome in bench.ended_runs] == [DONE] * 500
        assert len(bench.workers._tasks) == 1


async def test_one_topic_is_in_order_though_its_handler_waits() -> None:
    seen: list[bytes] = []

    async def handler(run: Run) -> None:
        await asyncio.sleep(0)
        seen.append(run.message.payload)
        await asyncio.sleep(0)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 50))
        await bench.workers.drain()
        assert seen == [b"%d" % number for number in range(50)]


async def test_another_topic_runs_while_one_is_stuck() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    async def handler(run: Run) -> None:
        if run.message.topic == "stuck":
            await gate.wait()
        seen.append(run.message.topic)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("stuck", 2), *numbered("free", 2))
        while len(seen) < 2:
            await asyncio.sleep(0)
        assert seen == ["free", "free"]
        gate.set()
        await bench.workers.drain()
        assert seen == ["free", "free", "stuck", "stuck"]


async def test_without_an_order_messages_of_one_topic_run_at_once() -> None:
    gate = asyncio.Event()
    running = 0

    async def handler(run: Run) -> None:
        nonlocal running
        running += 1
        await gate.wait()

    async with Bench(handler, ordered_by=None).running() as bench:
        bench.give(*numbered("a", 5))
        while running < 5:
            await asyncio.sleep(0)
        gate.set()
        await bench.workers.drain()


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=40),
    limit=st.one_of(st.none(), st.integers(1, 3)),
)
def test_order_and_limit_hold_whatever_the_handlers_wait_for(
    messages: list[tuple[str, int]], limit: int | None
) -> None:
    """Each key in order, never two of a key at once, never more than `concurrency`, every run ended once."""
    running: set[str] = set()
    most = 0
    seen: dict[str, list[int]] = defaultdict(list)

    async def handler(run: Run) -> None:
        nonlocal most
        topic = run.message.topic
        assert topic not in running
        running.add(topic)
        most = max(most, len(running))
        index, waits = map(int, run.message.payload.split(b","))
        for _ in range(waits):
            await asyncio.sleep(0)
        seen[topic].append(index)
        running.discard(topic)

    async def main() -> None:
        async with Bench(handler, concurrency=limit).running() as bench:
            bench.give(*(Message(topic, b"%d,%d" % (index, waits)) for index, (topic, waits) in enumerate(messages)))
            await bench.workers.drain()
            assert [outcome for _, outcome in bench.ended_runs] == [DONE] * len(messages)
            assert bench.runner.running == 0
            assert not bench.runner.backlog

    asyncio.run(main())
    assert all(indexes == sorted(indexes) for indexes in seen.values())
    assert limit is None or most <= limit


async def test_context_variables_do_not_leak_between_messages() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    seen: list[tuple[str, str]] = []

    async def handler(run: Run) -> None:
        before = variable.get()
        variable.set("dirty")
        await asyncio.sleep(0)
        seen.append((before, variable.get()))

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 3), *numbered("b", 3))
        await bench.workers.drain()
        assert seen == [("clean", "dirty")] * 6


async def test_context_variables_whose_values_cannot_be_compared_do_not_leak_either() -> None:
    """An array, say, of which `==` makes an array."""

    class Array:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

    variable: contextvars.ContextVar[Array] = contextvars.ContextVar("variable")
    clean = Array()
    variable.set(clean)
    seen: list[bool] = []

    async def handler(run: Run) -> None:
        seen.append(variable.get() is clean)
        variable.set(Array())

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 3))
        await bench.workers.drain()
        assert seen == [True] * 3
        assert bench.workers.waiting() == []


async def test_a_function_of_the_message_is_the_key() -> None:
    """Two keys run at once: the barrier opens. Two messages of one key do not."""
    both = asyncio.Barrier(2)
    running: set[bytes] = set()

    async def handler(run: Run) -> None:
        key = run.message.payload
        assert key not in running
        running.add(key)
        await both.wait()
        running.discard(key)

    async with Bench(handler, ordered_by=lambda message: message.payload).running() as bench:
        bench.give(*(Message("a", key) for key in (b"x", b"x", b"y", b"y")))
        await bench.workers.drain()
        assert [outcome for _, outcome in bench.ended_runs] == [DONE] * 4


async def test_a_message_whose_key_cannot_be_made_is_ordered_by_its_topic(caplog: pytest.LogCaptureFixture) -> None:
    """One that reads the payload meets whatever a device sends."""
    seen: list[str] = []

    async def handler(run: Run) -> None:
        seen.append(f"{run.message.topic} {run.message.payload.decode()}")
        await asyncio.sleep(0)

    def device(message: Message) -> Any:
        return json.loads(message.payload)

    async with Bench(handler, ordered_by=device).running() as bench:
        bench.give(Message("a", b"?"), Message("a", b"!"), Message("b", b"[1]"), Message("a", b"1"))
        await bench.workers.drain()
    assert sorted(seen) == ["a !", "a 1", "a ?", "b [1]"]
    assert seen.index("a ?") < seen.index("a !")
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3


async def test_a_handler_that_takes_too_long_is_cancelled_and_the_next_runs() -> None:
    async def handler(run: Run) -> None:
        if run.message.payload == b"0":
            await asyncio.Event().wait()

    async with Bench(handler, timeout=0.01).running() as bench:
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert [outcome.reason for _, outcome in bench.ended_runs] == [HandlerTimeout.__name__, ""]


async def test_a_handler_that_blocks_the_loop_does_not_use_up_the_time_of_others() -> None:
    """What the patient one waits for comes within its time, and nobody can take it until the loop turns again."""
    came = asyncio.Event()

    async def handler(run: Run) -> None:
        if run.message.topic == "patient":
            await came.wait()
        else:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.1, came.set)
            time.sleep(1.5)  # noqa: ASYNC251  this is the fault

    async with Bench(handler, timeout=0.5).running() as bench:
        bench.give(*numbered("patient", 1), *numbered("rude", 1))
        await bench.workers.drain()
        assert [outcome.kind for _, outcome in bench.ended_runs] == ["done"] * 2
        came.clear()
        bench.give(*numbered("patient", 1))
        await bench.workers.drain()
        assert bench.ended_runs[-1][1].reason == HandlerTimeout.__name__


async def test_asyncio_timeout_works_in_a_handler_after_a_timeout_of_ours() -> None:
    """A cancellation of ours leaves no trace in the task, which serves other messages after it."""
    reasons: list[str] = []

    async def handler(run: Run) -> None:
        if run.message.payload == b"0":
            await asyncio.Event().wait()
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            reasons.append("its own")

    async with Bench(handler, timeout=0.3).running() as bench:
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert reasons == ["its own"]


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), StopAsyncIteration(), GeneratorExit()])
async def test_whatever_a_handler_raises_the_next_message_runs(error: BaseException) -> None:
    async def handler(run: Run) -> None:
        if run.message.payload == b"0":
            raise error

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert [outcome.kind for _, outcome in bench.ended_runs] == ["failed", "done"]


async def test_a_handler_that_cancels_its_own_task_is_a_failure() -> None:
    async def handler(run: Run) -> None:
        if run.message.payload == b"0":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert [outcome.reason for _, outcome in bench.ended_runs] == ["CancelledError", ""]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_cancellation_when_nothing_runs_stops_nothing(at_once: bool, cancels: int) -> None:
    """A handler has left its task to somebody who cancels it when its message is long done."""
    tasks: list[asyncio.Task[Any] | None] = []

    async def handler(run: Run) -> None:
        tasks.append(asyncio.current_task())

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 1))
        await bench.workers.drain()
        await asyncio.sleep(0)
        assert tasks[0] is not None
        for _ in range(cancels):
            tasks[0].cancel()
            if not at_once:
                await asyncio.sleep(0)
        bench.give(*numbered("a", 2))
        tasks[0].cancel()
        await bench.workers.drain()
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert [outcome.kind for _, outcome in bench.ended_runs] == ["done"] * 5


async def test_a_cancellation_that_comes_when_the_loop_has_its_turn_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqttapi.runtime.lanes.LOOP_TURN", -1)

    async def handler(run: Run) -> None:
        task = asyncio.current_task()
        assert task is not None
        if run.message.payload == b"0":
            asyncio.get_running_loop().call_soon(task.cancel)

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 100))
        await bench.workers.drain()
        assert [outcome.kind for _, outcome in bench.ended_runs] == ["done"] * 100


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_a_handler_that_exits_is_fatal_and_its_message_has_no_outcome(error: BaseException) -> None:
    async def handler(run: Run) -> None:
        raise error

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 1))
        await bench.workers.drain()
        assert bench.fatal == [error]
        assert bench.ended_runs == []


async def test_behind_a_message_without_an_outcome_its_lane_stands_still_and_drain_does_not_wait_for_it() -> None:
    seen: list[tuple[str, bytes]] = []

    async def handler(run: Run) -> None:
        await asyncio.sleep(0)
        seen.append((run.message.topic, run.message.payload))
        if run.message.topic == "a":
            raise SystemExit

    async with Bench(handler, concurrency=1).running() as bench:
        bench.give(*numbered("a", 2), *numbered("b", 2))
        await bench.workers.drain()
        bench.give(*numbered("a", 1))
        await bench.workers.drain()
        assert seen == [("a", b"0"), ("b", b"0"), ("b", b"1")]
        assert [message.topic for message, _ in bench.ended_runs] == ["b", "b"]


async def test_a_result_goes_to_finish_and_none_does_not() -> None:
    async def handler(run: Run) -> object:
        return None if run.message.payload == b"0" else "answer"

    async with Bench(handler).running() as bench:
        bench.give(*numbered("a", 2))
        await bench.workers.drain()
        assert bench.finished == ["answer"]


async def test_what_stop_cancels_has_no_outcome() -> None:
    started = asyncio.Event()

    async def handler(run: Run) -> None:
        started.set()
        await asyncio.Event().wait()

    bench = Bench(handler)
    async with bench.running():
        bench.give(*numbered("a", 1))
        await started.wait()
    assert bench.ended_runs == []


async def test_a_burst_does_not_keep_the_event_loop() -> None:
    """Handlers that never wait give the loop its turn: a callback runs before they are through."""
    done = 0
    turn_at: list[int] = []

    async def handler(run: Run) -> None:
        nonlocal done
        done += 1

    async with Bench(handler).running() as bench:
        loop = asyncio.get_running_loop()
        bench.give(*numbered("a", 50_000))
        loop.call_soon(loop.call_soon, lambda: turn_at.append(done))
        await bench.workers.drain()
        assert turn_at[0] < 50_000
