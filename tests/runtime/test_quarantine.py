"""What a process may have died of runs alone in the next one: which messages, for how long, and what is noted of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqttapi import App, PoisonMessage
from mqttapi.message import NO_PROPERTIES, Message
from mqttapi.runtime.dispatcher import Dispatcher
from mqttapi.runtime.intake import Intake
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.links import subscriptions
from mqttapi.runtime.outcome import DONE, Outcome
from mqttapi.runtime.overflow import Queue
from mqttapi.runtime.quarantine import CHARGES, Note, Quarantine, key_of, read_note, write_note
from mqttapi.runtime.runs import Run, Runner
from tests.runtime.routes import add

WINDOW = 8


class Port:
    """A connection that takes acknowledgements."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.pauses = 0
        self.resumes = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.resumes += 1


class Bench:
    """Links of a process in quarantine, without their connections. A handler ends when its gate opens."""

    def __init__(
        self,
        note: int,
        app: App | None = None,
        *,
        links: int = 1,
        condemned: tuple[bytes, ...] = (),
        patience: float = 60.0,
        **bounds: int,
    ) -> None:
        self.note = note
        self.running: list[Run] = []
        self.began: list[str] = []
        self.handled: list[str] = []
        self.failed: list[tuple[Run, BaseException]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.quarantine = Quarantine(note, condemned)
        self._app = app if app is not None else app_with("<t>")
        self._links = links
        self._patience = patience
        self._bounds = {"max_in_flight": 1_000, "max_bytes": 1_000_000, **bounds}
        self._ids = 0

    @asynccontextmanager
    async def started(self, *, session_present: bool = True) -> AsyncIterator[Bench]:
        async def finish(run: Run, result: object) -> Outcome:
            return DONE

        async def fail(run: Run, error: BaseException) -> Outcome | None:
            self.failed.append((run, error))
            return None if isinstance(error, KeyError) else Outcome("failed", type(error).__name__, error)

        self.runners = [
            Runner(route, self._handle, index, queue=_queue_of(route)) for index, route in enumerate(self._app.routes)
        ]
        self.dispatcher = Dispatcher(subscriptions(self.runners, "g"), by_id=False)
        self.workers = Workers(
            finish=finish, fail=fail, fatal=lambda _: None, context=contextvars.copy_context(), name="test"
        )
        self.quarantine.begin(self.workers, fail, patience=self._patience, name="test")
        self.ports = [Port() for _ in range(self._links)]
        backlogs = [self.quarantine.backlog(WINDOW) for _ in range(self._links)]
        self.intakes = [
            Intake(self._app, self.dispatcher, self.workers, port, backlog=backlog, **cast("Any", self._bounds))
            for port, backlog in zip(self.ports, backlogs, strict=True)
        ]
        for intake in self.intakes:
            intake.connected(session_present, mqtt5=True)
        try:
            yield self
        finally:
            await self.quarantine.cancel()
            await self.workers.stop()

    async def _handle(self, context: Any) -> None:
        name = context.message.payload.decode()
        self.running.append(context)
        self.began.append(name)
        try:
            if name in self.gates:
                await self.gates[name].wait()
            if name == "ends the process":
                raise KeyError
        finally:
            self.running.remove(context)
        self.handled.append(name)

    def give(self, *payloads: str, topic: str = "a", dup: bool = False, qos: int = 1, link: int = 0) -> None:
        """One read."""
        intake = self.intakes[link]
        intake.batch_begin()
        for payload in payloads:
            self._ids += 1
            intake.receive(topic, payload.encode(), qos, False, dup, self._ids if qos else 0, NO_PROPERTIES)
        intake.batch_end()

    def stuck(self, *payloads: str) -> None:
        """Their handlers wait until `let`."""
        self.gates.update({payload: asyncio.Event() for payload in payloads})

    def let(self, *payloads: str) -> None:
        for payload in payloads:
            self.gates[payload].set()

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            for intake in self.intakes:
                intake.watch()

    def active(self) -> bool:
        return self.quarantine.active

    def key(self, payload: str, topic: str = "a", qos: int = 1) -> bytes:
        return key_of(Message(topic, payload.encode(), qos), self.dispatcher.targets(topic))

    async def settle(self) -> None:
        """Until nothing happens any more."""
        for _ in range(100):
            await asyncio.sleep(0)


def app_with(*templates: str, **options: Any) -> App:
    app = App()
    for template in templates:
        add(app, template, **{"ordered_by": None, **options})
    return app


def _queue_of(route: Any) -> Queue | None:
    return None if route.overflow == "block" else Queue(route.name, route.overflow, limit=3, max_bytes=1_000)


@pytest.fixture
def note() -> Iterator[int]:
    fd = os.memfd_create("test")
    write_note(fd, Note())
    yield fd
    os.close(fd)


# -- notes ----------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_note_is_read_as_it_was_written_whatever_stood_there_before(key: bytes, what: str) -> None:
    fd = os.memfd_create("test")
    try:
        write_note(fd, Note(b"k" * 16, "x" * 1_000))
        write_note(fd, Note(key, what))
        read = read_note(fd)
        assert (read.key, read.over) == (key, False)
        assert what.startswith(read.what)
        assert len(read.what.encode()) >= min(len(what.encode()), 490)
        write_note(fd, Note(over=True))
        assert read_note(fd) == Note(over=True)
        write_note(fd, Note())
        assert read_note(fd) == Note()
    finally:
        os.close(fd)


async def test_a_key_depends_on_qos_topic_payload_and_routes(note: int) -> None:
    async with Bench(note, app_with("<t>", "ab", "<t>/c")).started() as bench:
        keys = {
            bench.key("1"),
            bench.key("1", qos=2),
            bench.key("1", topic="b"),
            bench.key("1", topic="ab"),
            bench.key("11"),
            key_of(Message("ab", b"1", 1), bench.dispatcher.targets("ab")[:1]),
            key_of(Message("a", b"b1", 1), bench.dispatcher.targets("ab")[:1]),
        }
        assert len(keys) == 7
        assert bench.key("1") == key_of(Message("a", b"1", 1, True, True, 7), bench.dispatcher.targets("a"))


# -- one at a time --------------------------------------------------------------------------------------------------


async def test_flagged_messages_run_one_by_one_in_their_order(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.stuck("1", "2", "3")
        bench.give("1", "2", "3", dup=True)
        for name in ("1", "2", "3"):
            await bench.settle()
            assert [run.message.payload.decode() for run in bench.running] == [name]
            assert read_note(note).key == bench.key(name)
            bench.let(name)
        await bench.settle()
        assert bench.handled == ["1", "2", "3"]
        assert read_note(note) == Note()


async def test_the_note_says_topic_and_routes_without_what_a_terminal_would_obey(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.stuck("1")
        bench.give("1", dup=True, topic="a\x1b[2J")
        await bench.settle()
        assert read_note(note).what == r"a\x1b[2J for <t>"


async def test_the_routes_of_one_message_run_together(note: int) -> None:
    async with Bench(note, app_with("<t>", "a")).started() as bench:
        bench.stuck("1")
        bench.give("1", dup=True)
        await bench.settle()
        assert [run.route.name for run in bench.running] == ["a", "<t>"]
        assert read_note(note).what == "a for a, <t>"


async def test_only_one_runs_over_all_links(note: int) -> None:
    async with Bench(note, links=2).started() as bench:
        bench.stuck("1", "2")
        bench.give("1", dup=True, link=0)
        bench.give("2", dup=True, link=1)
        await bench.settle()
        assert bench.began == ["1"]
        bench.let("1")
        await bench.settle()
        assert bench.began == ["1", "2"]


async def test_each_is_acknowledged_before_the_next_one_begins(note: int) -> None:
    """A kill by the next one brings only that one again."""
    async with Bench(note).started() as bench:
        bench.stuck("2")
        bench.give("1", "2", dup=True)
        await bench.settle()
        assert bench.began == ["1", "2"]
        assert bench.ports[0].written == b"\x40\x02\x00\x01"


async def test_a_link_that_comes_late_waits_for_what_runs_on_others(note: int) -> None:
    async with Bench(note, links=2).started() as bench:
        bench.give("flagged", dup=True, link=0)
        await bench.settle()
        bench.stuck("new")
        bench.give("new", "too", link=0)
        await bench.settle()
        bench.give("late", dup=True, link=1)
        bench.give("behind", link=0)
        await bench.settle()
        assert bench.began == ["flagged", "new", "too"]
        assert read_note(note) == Note()
        bench.let("new")
        await bench.settle()
        assert bench.began == ["flagged", "new", "too", "late", "behind"]


async def test_qos_0_waits_and_is_not_noted(note: int) -> None:
    """It cannot come again; but it might kill beside one that would be charged."""
    async with Bench(note).started() as bench:
        bench.stuck("1", "0")
        bench.give("1", dup=True)
        bench.give("0", qos=0)
        await bench.settle()
        assert bench.began == ["1"]
        bench.let("1")
        await bench.settle()
        assert bench.began == ["1", "0"]
        assert read_note(note) == Note()


async def test_what_was_to_be_acknowledged_when_it_came_is_so_when_it_begins(note: int) -> None:
    async with Bench(note, app_with("<t>", ack="received")).started() as bench:
        bench.stuck("1", "2")
        bench.give("1", "2", dup=True)
        await bench.settle()
        assert bench.ports[0].written == b"\x40\x02\x00\x01"


async def test_memory_is_bounded_while_messages_wait(note: int) -> None:
    async with Bench(note, max_in_flight=4).started() as bench:
        bench.stuck("1")
        bench.give("1", "2", dup=True)
        bench.give("3", "4", qos=0)
        assert bench.ports[0].pauses == 1
        bench.let("1")
        await bench.settle()
        assert bench.ports[0].resumes == 1
        assert bench.intakes[0].ledger.held == 0
        assert bench.intakes[0]._light == bench.intakes[0]._light_bytes == 0


async def test_a_message_whose_order_function_kills_is_noted_before_it_is_asked(note: int) -> None:
    seen = []

    def order(message: Message) -> bytes:
        seen.append(read_note(note).key)
        return message.payload

    async with Bench(note, app_with("<t>", ordered_by=order)).started() as bench:
        bench.give("1", dup=True)
        await bench.settle()
        assert seen == [bench.key("1")]


# -- which, and until when ------------------------------------------------------------------------------------------


async def test_what_comes_without_the_flag_behind_flagged_ones_is_new(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.stuck("1", "2", "3")
        bench.give("1", dup=True)
        bench.give("2", "3")
        await bench.settle()
        assert bench.active()
        bench.let("1")
        await bench.settle()
        assert bench.began == ["1", "2", "3"]
        assert len(bench.running) == 2
        assert not bench.active()
        assert read_note(note) == Note(over=True)


async def test_where_no_flag_is_seen_a_window_of_messages_runs_alone(note: int) -> None:
    async with Bench(note).started() as bench:
        names = [str(number) for number in range(WINDOW + 3)]
        bench.stuck(*names)
        bench.give(*names)
        for number in range(WINDOW):
            await bench.settle()
            assert bench.began == names[: number + 1]
            bench.let(names[number])
        await bench.settle()
        assert bench.began == names
        assert not bench.active()


async def test_without_a_session_nothing_runs_alone(note: int) -> None:
    async with Bench(note).started(session_present=False) as bench:
        assert not bench.active()
        bench.stuck("1", "2")
        bench.give("1", "2")
        await bench.settle()
        assert bench.began == ["1", "2"]


async def test_it_ends_when_the_broker_falls_silent(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.give("1", dup=True)
        await bench.settle()
        bench.look(2)  # the first one has seen something come
        assert bench.active()
        bench.look()
        assert not bench.active()
        assert read_note(note) == Note(over=True)


async def test_a_broker_that_waits_for_an_acknowledgement_is_not_silent(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.stuck("1")
        bench.give("1", dup=True)
        await bench.settle()
        bench.look(10)
        assert bench.active()
        bench.let("1")
        await bench.settle()
        bench.look(2)
        assert not bench.active()


@pytest.mark.parametrize("state", ["not subscribed", "does not read"])
async def test_a_link_that_cannot_hear_is_not_silent(note: int, state: str) -> None:
    async with Bench(note).started() as bench:
        (intake,) = bench.intakes
        if state == "does not read":
            intake.hold()
        for _ in range(10):
            intake.watch(subscribed=state != "not subscribed")
        assert bench.active()


async def test_it_goes_on_over_a_reconnect_and_joins_what_comes_again(note: int) -> None:
    async with Bench(note).started() as bench:
        (intake,) = bench.intakes
        bench.stuck("1", "2")
        bench.give("1", "2", dup=True)
        await bench.settle()
        intake.disconnected()
        intake.connected(session_present=True, mqtt5=True)
        bench._ids = 0
        bench.give("1", "2", "3", dup=True)
        bench.let("1")
        await bench.settle()
        assert bench.began == ["1", "2"]
        bench.let("2")
        await bench.settle()
        assert bench.handled == ["1", "2", "3"]
        assert bytes(bench.ports[0].written) == b"".join(b"\x40\x02" + n.to_bytes(2) for n in (1, 2, 3))


async def test_it_ends_where_the_session_is_lost(note: int) -> None:
    async with Bench(note).started() as bench:
        (intake,) = bench.intakes
        bench.stuck("1", "2")
        bench.give("1", "2", dup=True)
        await bench.settle()
        intake.disconnected()
        intake.connected(session_present=False, mqtt5=True)
        assert bench.active()
        bench.let("1", "2")
        await bench.settle()
        assert bench.handled == ["1", "2"]
        assert not bench.active()


@pytest.mark.parametrize("how", ["without a session", "never"])
async def test_it_is_over_only_once_every_link_is_connected_or_will_never_be(note: int, how: str) -> None:
    async with Bench(note).started() as bench:
        late = bench.quarantine.backlog(WINDOW)
        bench.give("1", dup=True)
        bench.give("2")
        await bench.settle()
        assert bench.handled == ["1", "2"]
        assert bench.active()
        assert read_note(note) == Note()
        if how == "without a session":
            late.connected(session_present=False)
        else:
            late.end()
        assert not bench.active()
        assert read_note(note) == Note(over=True)


async def test_who_waits_for_others_in_quarantine_is_no_reason_to_warn(
    note: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bench(note, max_in_flight=4).started() as bench:
        bench.stuck("1", "new")
        bench.give("1", "2", "3", dup=True)
        bench.give("new")
        await bench.settle()
        for entry in bench.intakes[0].ledger._queues[0].values():
            entry.arrived -= 10
        bench.look()
        assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
        bench.let("1")
        await bench.settle()
        bench.give("4", "5", "6")
        bench.look()
        assert "has been handling a message on a for 10 s" in caplog.text


async def test_afterwards_the_intake_is_as_it_always_is(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.give("1", dup=True)
        bench.give("2")
        await bench.settle()
        bench.give("3")
        assert bench.intakes[0]._submit is None
        await bench.settle()
        assert bench.handled == ["1", "2", "3"]


async def test_a_route_that_may_drop_does_so_afterwards(note: int) -> None:
    async with Bench(note, app_with("<t>", qos=0, overflow="drop_newest", ordered_by="topic")).started() as bench:
        bench.stuck("1")
        bench.give("1", dup=True)
        bench.give(*"abcde", qos=0)
        await bench.settle()
        bench.let("1")
        await bench.settle()
        assert bench.handled == ["1", "a", "b", "c"]
        assert bench.runners[0].counts["overflowed"] == 2


# -- what does not end ----------------------------------------------------------------------------------------------


async def test_what_took_the_process_down_stays_noted_and_nothing_else_begins(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.give("ends the process", "2", dup=True)
        await bench.settle()
        await bench.quarantine.drain()
        assert bench.began == ["ends the process"]
        assert read_note(note).key == bench.key("ends the process")
        assert bench.ports[0].written == b""


async def test_it_is_given_up_when_nothing_ends(note: int, caplog: pytest.LogCaptureFixture) -> None:
    async with Bench(note, patience=0.01).started() as bench:
        bench.stuck("1", "2", "3")
        bench.give("1", "2", dup=True)
        while len(bench.began) < 2:
            await asyncio.sleep(0)
        bench.give("3", dup=True)
        await bench.settle()
        assert bench.began == ["1", "2", "3"]
        assert read_note(note) == Note()  # and not over: the charges stay
        assert not bench.active()
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == (
        "the quarantine is given up, and messages run side by side again: 1 messages run, and none has ended for 0.01 s"
    )


async def test_a_note_that_cannot_be_written_keeps_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        async with Bench(fd).started() as bench:
            bench.give("1", "2", dup=True)
            bench.give("3")
            await bench.settle()
            assert bench.handled == ["1", "2", "3"]
    finally:
        os.close(fd)
    assert sum("cannot note which message runs alone" in each.getMessage() for each in caplog.records) == 1


async def test_the_end_of_the_app_waits_for_what_was_received(note: int) -> None:
    async with Bench(note).started() as bench:
        bench.stuck("1")
        bench.give("1", "2", "3", dup=True)
        await bench.settle()
        drained = asyncio.create_task(bench.quarantine.drain())
        await bench.settle()
        assert not drained.done()
        bench.let("1")
        await drained
        assert bench.handled == ["1", "2", "3"]


# -- the condemned --------------------------------------------------------------------------------------------------


async def test_a_condemned_message_fails_on_each_of_its_routes_and_is_acknowledged(note: int) -> None:
    async with Bench(note, app_with("<t>", "a")).started() as bench:
        key = bench.key("poison")
    async with Bench(note, app_with("<t>", "a"), condemned=(key,)).started() as bench:
        bench.give("1", "poison", "2", dup=True)
        await bench.settle()
        assert set(bench.handled) == {"1", "2"}
        assert [(run.route.name, type(error)) for run, error in bench.failed] == [
            ("a", PoisonMessage),
            ("<t>", PoisonMessage),
        ]
        assert [runner.counts["failed"] for runner in bench.runners] == [1, 1]
        assert len(bench.ports[0].written) == 3 * 4
        bench.give("new")
        await bench.settle()
        assert not bench.active()


async def test_no_code_of_the_app_sees_a_condemned_message(note: int) -> None:
    def order(message: Message) -> bytes:
        raise AssertionError("it was asked")

    async with Bench(note, app_with("<t>")).started() as bench:
        key = bench.key("poison")
    async with Bench(note, app_with("<t>", ordered_by=order), condemned=(key,)).started() as bench:
        bench.give("poison", dup=True)
        await bench.settle()
        assert len(bench.failed) == 1
        assert bench.failed[0][0].attempt == CHARGES


async def test_an_equal_message_does_not_run_later_either(note: int) -> None:
    """A retained one comes with each subscription, and a device may send the same again."""
    async with Bench(note).started() as bench:
        key = bench.key("poison")
    async with Bench(note, condemned=(key,)).started() as bench:
        bench.give("poison", dup=True)
        bench.give("1", "poison")
        await bench.settle()
        assert not bench.active()
        bench.give("2", "poison")
        await bench.settle()
        assert bench.handled == ["1", "2"]
        assert len(bench.failed) == 3


async def test_it_is_not_over_before_the_dead_letter_is_safe(note: int) -> None:
    async with Bench(note).started() as bench:
        key = bench.key("poison")
    bench, safe = Bench(note, condemned=(key,)), asyncio.Event()
    async with bench.started():

        async def fail(run: Run, error: BaseException) -> Outcome:
            await safe.wait()
            return Outcome("failed", "", error)

        bench.quarantine._fail = fail
        bench.give("poison", "1", dup=True)
        bench.give("2")
        await bench.settle()
        assert bench.handled == ["1", "2"]
        assert bench.active()
        safe.set()
        await bench.settle()
        assert not bench.active()


# -- whatever comes -------------------------------------------------------------------------------------------------

sent = st.tuples(
    st.integers(0, 1),  # the link
    st.booleans(),  # whether it comes with the next one, in one read
    st.sampled_from("ab"),  # the topic
    st.integers(0, 2),  # QoS
    st.booleans(),  # DUP
    st.integers(0, 3),  # turns of the loop that each of its handlers takes
)


@settings(max_examples=100)
@given(sent=st.lists(sent, max_size=40), present=st.tuples(st.booleans(), st.booleans()))
async def test_a_suspect_is_never_in_company_and_what_is_noted_is_what_runs_alone(
    sent: list[tuple[int, bool, str, int, bool, int]], present: tuple[bool, bool]
) -> None:
    suspects = suspects_of(sent, present)
    fd = os.memfd_create("test")
    try:
        bench = Bench(fd, app_with("<t>", "a", ordered_by="topic"), links=2)

        async def handle(context: Any) -> None:
            number = int(context.message.payload)
            bench.running.append(context)
            for _ in range(sent[number][5] + 1):
                here = {int(run.message.payload) for run in bench.running}
                assert here == {number} or not here & suspects
                key = bench.key(str(number), context.message.topic, context.message.qos)
                assert read_note(fd).key == (key if number in suspects else None)
                await asyncio.sleep(0)
            bench.running.remove(context)
            bench.handled.append(f"{number} {context.route.name}")

        bench._handle = handle  # type: ignore[method-assign]  # in place of gates
        async with bench.started():
            for intake, session_present in zip(bench.intakes, present, strict=True):
                intake.connected(session_present, mqtt5=True)
            for number, (link, together, topic, qos, dup, _) in enumerate(sent):
                bench.give(str(number), topic=topic, dup=dup, qos=qos, link=link)
                if not together:
                    await asyncio.sleep(0)
            await bench.quarantine.drain()
            await bench.workers.drain()
            await bench.settle()
            bench.look(3)
            assert sorted(bench.handled) == sorted(
                f"{number} {route}"
                for number, (_, _, topic, _, _, _) in enumerate(sent)
                for route in (["a", "<t>"] if topic == "a" else ["<t>"])
            )
            assert not bench.active()
            assert read_note(fd) == Note(over=True)
            assert bench.failed == []
            assert all(intake.ledger.held == intake._light == intake._light_bytes == 0 for intake in bench.intakes)
    finally:
        os.close(fd)


def suspects_of(sent: list[tuple[int, bool, str, int, bool, int]], present: tuple[bool, bool]) -> set[int]:
    """By the rules, told once more: of each link with a session the flagged ones at the beginning, or where none is
    flagged a window, as those that come before the first flagged one are.
    """
    found: set[int] = set()
    for link, session_present in enumerate(present):
        if not session_present:
            continue
        numbered = [(n, dup) for n, (of, _, _, qos, dup, _) in enumerate(sent) if of == link and qos]
        first = next((i for i, (_, dup) in enumerate(numbered) if dup), len(numbered))
        end = next((i for i, (_, dup) in enumerate(numbered) if i > first and not dup), len(numbered))
        found |= {n for n, _ in numbered[: min(end, WINDOW)]}
    return found
