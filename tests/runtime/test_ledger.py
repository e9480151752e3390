from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mqttapi.runtime.ledger import Entry, Ledger


def puback(*ids: int) -> bytes:
    return b"".join(b"\x40\x02" + i.to_bytes(2, "big") for i in ids)


def pubrec(*ids: int) -> bytes:
    return b"".join(b"\x50\x02" + i.to_bytes(2, "big") for i in ids)


def pubcomp(*ids: int) -> bytes:
    return b"".join(b"\x70\x02" + i.to_bytes(2, "big") for i in ids)


def new(ledger: Ledger, packet_id: int, qos: int = 1, topic: str = "t", payload: bytes = b"p") -> Entry:
    entry = ledger.arrive(packet_id, qos, topic, payload, dup=False)
    assert entry is not None
    return entry


def known(ledger: Ledger, packet_id: int, qos: int = 1, topic: str = "t", payload: bytes = b"p") -> None:
    assert ledger.arrive(packet_id, qos, topic, payload, dup=False) is None


def reconnect(ledger: Ledger, *, session_present: bool = True) -> None:
    ledger.disconnected()
    ledger.connected(session_present)


# ------------------------------------------------------------------------------------------------------------ order


def test_nothing_is_acknowledged_before_its_handlers_end():
    ledger = Ledger()
    new(ledger, 1)
    new(ledger, 1, qos=2)
    assert ledger.take() == b""


def test_acknowledgements_leave_in_order_of_arrival():
    ledger = Ledger()
    a, b, c = new(ledger, 1), new(ledger, 2), new(ledger, 3)
    ledger.finish(c)
    ledger.finish(b)
    assert ledger.take() == b""
    ledger.finish(a)
    assert ledger.take() == puback(1, 2, 3)
    assert ledger.take() == b""


def test_the_queues_of_qos_1_and_2_do_not_wait_for_each_other():
    ledger = Ledger()
    one, two = new(ledger, 1, qos=1), new(ledger, 2, qos=2)
    ledger.finish(two)
    assert ledger.take() == pubrec(2)
    ledger.finish(one)
    assert ledger.take() == puback(1)


def test_acknowledgements_leave_as_completed_when_not_ordered():
    ledger = Ledger(ordered=False)
    a, b, c = new(ledger, 1), new(ledger, 2), new(ledger, 3)
    ledger.finish(c)
    ledger.finish(b)
    assert ledger.take() == puback(3, 2)
    ledger.finish(a)
    assert ledger.take() == puback(1)


def test_an_id_taken_over_after_it_ended_is_not_acknowledged_early_when_not_ordered():
    ledger = Ledger(ordered=False)
    ledger.finish(new(ledger, 1))
    second = new(ledger, 1, payload=b"other")
    assert ledger.take() == b""
    ledger.finish(second)
    assert ledger.take() == puback(1)


def test_an_id_is_new_again_after_its_acknowledgement():
    """[MQTT-4.3.2-5]: never deduplicate QoS 1 by packet id."""
    ledger = Ledger()
    for _ in range(3):
        ledger.finish(new(ledger, 7))
        assert ledger.take() == puback(7)


def test_finishing_twice_is_a_bug_and_says_so():
    ledger = Ledger()
    entry = new(ledger, 7)
    ledger.finish(entry)
    with pytest.raises(RuntimeError, match=r"^<Entry id=7 qos=1 2 B ended> was finished twice: this is a bug in mqttapi$"):
        ledger.finish(entry)


# ------------------------------------------------------------------------------------------------------------ QoS 2


def test_pubrel_of_a_known_id_is_completed_and_frees_the_id():
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    assert ledger.take() == pubrec(5)
    ledger.release(5)
    assert ledger.take() == pubcomp(5)
    new(ledger, 5, qos=2)


def test_pubrel_of_an_unknown_id_is_answered_packet_identifier_not_found():
    ledger = Ledger()
    ledger.release(5)
    assert ledger.take() == b"\x70\x04\x00\x05\x92\x00"


def test_pubcomp_has_no_reason_in_mqtt_3_1_1():
    ledger = Ledger()
    ledger.connected(session_present=False, mqtt5=False)
    ledger.release(5)
    assert ledger.take() == pubcomp(5)


def test_pubcomps_leave_in_order_of_the_pubrels():
    ledger = Ledger()
    for i in (1, 2):
        ledger.finish(new(ledger, i, qos=2))
    ledger.take()
    ledger.release(2)
    ledger.release(9)
    ledger.release(1)
    assert ledger.take() == pubcomp(2) + b"\x70\x04\x00\x09\x92\x00" + pubcomp(1)


def test_a_repeat_between_pubrec_and_pubrel_gets_pubrec_again_and_does_not_run():
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    known(ledger, 5, qos=2)
    assert ledger.take() == pubrec(5)


def test_the_pubrec_of_a_repeat_waits_for_its_turn():
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    head = new(ledger, 6, qos=2)
    known(ledger, 5, qos=2)
    known(ledger, 5, qos=2)
    assert ledger.take() == b""
    ledger.finish(head)
    assert ledger.take() == pubrec(6, 5)


def test_a_pubrel_takes_back_the_pubrec_of_a_repeat_that_has_not_left():
    """Else the id would be open again, and the next message that bears it swallowed."""
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    head = new(ledger, 6, qos=2)
    known(ledger, 5, qos=2)
    ledger.release(5)
    ledger.finish(head)
    assert ledger.take() == pubrec(6) + pubcomp(5)
    assert ledger.held == 0
    new(ledger, 5, qos=2)


def test_another_message_between_pubrec_and_pubrel_runs():
    """A broker that restarted from an old state gives the id to another message: it must not be lost."""
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    known(ledger, 5, qos=2)
    entry = new(ledger, 5, qos=2, payload=b"other")
    assert ledger.take() == b""
    assert (ledger.violations, ledger.held) == (1, 1)
    ledger.finish(entry)
    assert ledger.take() == pubrec(5)


def test_ids_between_pubrec_and_pubrel_survive_reconnects():
    ledger = Ledger()
    for i in (1, 2):
        ledger.finish(new(ledger, i, qos=2))
    ledger.take()
    reconnect(ledger)
    known(ledger, 1, qos=2)
    ledger.release(2)
    assert ledger.take() == pubrec(1) + pubcomp(2)


def test_a_lost_session_frees_the_ids_between_pubrec_and_pubrel():
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    reconnect(ledger, session_present=False)
    new(ledger, 5, qos=2)
    ledger.release(5)
    assert ledger.take() == b"\x70\x04\x00\x05\x92\x00"


# --------------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize("ordered", [True, False])
def test_an_acknowledgement_never_crosses_a_reconnect(ordered: bool):
    ledger = Ledger(ordered)
    running = new(ledger, 2)
    ledger.finish(new(ledger, 1))
    ledger.finish(new(ledger, 1, qos=2))
    ledger.release(9)
    ledger.disconnected()
    ledger.finish(running)
    assert ledger.take() == b""
    ledger.connected(session_present=True)
    assert ledger.take() == b""


def test_the_same_id_after_a_reconnect_is_not_acknowledged_by_the_old_handler():
    ledger = Ledger()
    old = new(ledger, 1)
    reconnect(ledger, session_present=False)
    young = new(ledger, 1)
    ledger.finish(old)
    assert ledger.take() == b""
    ledger.finish(young)
    assert ledger.take() == puback(1)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("dup", [True, False])
def test_a_resend_joins_a_run_that_has_not_ended(qos: int, dup: bool):
    ledger = Ledger()
    entry = new(ledger, 3, qos)
    reconnect(ledger)
    assert ledger.arrive(3, qos, "t", b"p", dup) is None
    assert ledger.take() == b""
    ledger.finish(entry)
    assert ledger.take() == (puback(3) if qos == 1 else pubrec(3))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_resend_of_what_has_ended_is_answered_at_once(qos: int, ordered: bool):
    ledger = Ledger(ordered)
    ledger.finish(new(ledger, 3, qos))
    reconnect(ledger)
    known(ledger, 3, qos)
    assert ledger.take() == (puback(3) if qos == 1 else pubrec(3))


def test_a_joined_entry_takes_the_place_of_its_new_arrival():
    ledger = Ledger()
    a, b = new(ledger, 1), new(ledger, 2)
    reconnect(ledger)
    known(ledger, 2)
    c = new(ledger, 9)
    known(ledger, 1)
    for entry in (a, c):
        ledger.finish(entry)
    assert ledger.take() == b""
    ledger.finish(b)
    assert ledger.take() == puback(2, 9, 1)


def test_a_resend_joins_across_several_reconnects():
    ledger = Ledger()
    entry = new(ledger, 1)
    for _ in range(3):
        reconnect(ledger)
    known(ledger, 1)
    ledger.finish(entry)
    assert ledger.take() == puback(1)


@pytest.mark.parametrize(("topic", "payload", "qos"), [("t2", b"p", 1), ("t", b"p2", 1), ("t", b"p", 2)])
def test_an_id_reused_for_another_message_on_resume_is_new(topic: str, payload: bytes, qos: int):
    ledger = Ledger()
    old = new(ledger, 1)
    reconnect(ledger)
    entry = new(ledger, 1, qos, topic, payload)
    ledger.finish(old)
    assert ledger.take() == b""
    ledger.finish(entry)
    assert ledger.take() == (puback(1) if qos == 1 else pubrec(1))
    assert ledger.violations == 0


def test_what_was_taken_is_new_when_it_comes_again():
    ledger = Ledger()
    ledger.finish(new(ledger, 1))
    ledger.take()
    reconnect(ledger)
    new(ledger, 1)


def test_without_a_session_nothing_joins():
    ledger = Ledger()
    running = new(ledger, 1)
    ledger.finish(new(ledger, 2))
    reconnect(ledger, session_present=False)
    new(ledger, 1)
    new(ledger, 2)
    assert ledger.held == 3
    ledger.finish(running)
    assert ledger.held == 2
    assert ledger.take() == b""


def test_a_message_the_broker_forgot_does_not_swallow_a_later_equal_one():
    """The join map ends once more has come than a broker can have in flight."""
    ledger = Ledger()
    ledger.finish(new(ledger, 1))
    reconnect(ledger)
    for i in range(10_000):
        ledger.finish(new(ledger, 2 + i))
        ledger.take()
    new(ledger, 1)


# ----------------------------------------------------------------------------------------- live repeats, reused ids


def test_a_live_repeat_joins_and_is_acknowledged_once():
    ledger = Ledger()
    a, b = new(ledger, 1), new(ledger, 2)
    known(ledger, 1)
    ledger.finish(a)
    known(ledger, 1)
    ledger.finish(b)
    assert ledger.take() == puback(1, 2)
    assert ledger.violations == 0


@pytest.mark.parametrize("ended", [True, False])
def test_an_id_reused_before_its_acknowledgement_is_acknowledged_after_the_last_message(ended: bool):
    ledger = Ledger()
    old, other = new(ledger, 1), new(ledger, 2)
    if ended:
        ledger.finish(old)
    entry = new(ledger, 1, payload=b"other")
    assert ledger.violations == 1
    if not ended:
        ledger.finish(old)
    assert ledger.take() == b""
    ledger.finish(entry)
    ledger.finish(other)
    assert ledger.take() == puback(2, 1)
    assert (ledger.held, ledger.held_bytes) == (0, 0)


# ------------------------------------------------------------------------------------------------------------ bounds


def test_held_counts_what_is_in_memory_and_not_what_awaits_pubrel():
    ledger = Ledger()
    head = new(ledger, 1, 2, "topic", b"12345")
    second = new(ledger, 2, 2, "topic", b"12345")
    assert (ledger.held, ledger.held_bytes) == (2, 20)
    ledger.finish(second)
    assert (ledger.held, ledger.held_bytes) == (2, 20)  # behind the head
    ledger.finish(head)
    assert ledger.take() == pubrec(1, 2)
    assert (ledger.held, ledger.held_bytes) == (0, 0)


def test_what_has_ended_is_not_held_while_the_broker_may_or_may_not_resend_it():
    """Else a link with a window of 1 would never read the resend."""
    ledger = Ledger()
    ledger.finish(new(ledger, 1))
    ledger.disconnected()
    assert ledger.held == 0
    ledger.connected(session_present=True)
    known(ledger, 1)
    assert ledger.held == 1
    ledger.take()
    assert ledger.held == 0


def test_the_head_is_the_oldest_message_that_runs():
    ledger = Ledger()
    assert ledger.head() is None
    ledger.now = 1.0
    two = new(ledger, 1, qos=2)
    ledger.now = 2.0
    a, b = new(ledger, 1), new(ledger, 2)
    assert ledger.head() is two
    assert two.arrived == 1.0
    ledger.finish(two)
    assert ledger.head() is a
    ledger.finish(a)
    assert ledger.head() is b
    ledger.finish(b)
    assert ledger.head() is None


# --------------------------------------------------------------------------------------- against a model of a broker


@dataclass(eq=False)
class Sent:
    """A message that the broker has to deliver."""

    packet_id: int
    qos: int
    payload: bytes
    entry: Entry | None = None  # of its last run
    ended: bool = False  # that run
    received: bool = False  # PUBREC came: PUBREL is due
    runs: int = 0
    runs_allowed: int = 1


@dataclass(eq=False)
class Owed:
    """A PUBLISH of this connection, not yet acknowledged."""

    sent: Sent
    done: int = 0  # when it became ready: 1, 2, …; 0: not yet
    repeat: bool = False


@dataclass
class Connection:
    owed: dict[int, list[Owed]] = field(default_factory=lambda: {1: [], 2: []})
    pubcomp: bytes = b""


class LedgerMachine(RuleBasedStateMachine):
    """Everything a broker may do, and some things it may not, with the bytes that must come back predicted."""

    @initialize(ordered=st.booleans())
    def start(self, ordered: bool) -> None:
        self.ordered = ordered
        self.ledger = Ledger(ordered)
        self.ledger.connected(session_present=False)
        self.session: list[Sent] = []  # in order of first sending
        self.running: dict[Entry, Sent | None] = {}  # None: its outcome is discarded
        self.answered: list[Sent] = []  # PUBREC was taken, no PUBREL came since
        self.done = 0
        self.connection: Connection | None = Connection()

    def next_done(self) -> int:
        self.done += 1
        return self.done

    # What the broker sends

    def deliver(self, sent: Sent, dup: bool) -> None:
        assert self.connection
        owed = self.connection.owed[sent.qos]
        live = next((o for o in owed if o.sent is sent), None)
        repeat = sent in self.answered
        joins = sent.entry is not None and not repeat
        entry = self.ledger.arrive(sent.packet_id, sent.qos, "t", sent.payload, dup)
        if not live:
            owed.append(Owed(sent, self.next_done() if repeat or (joins and sent.ended) else 0, repeat))
        assert (entry is None) == bool(live or joins or repeat)
        if entry:
            assert entry.payload == sent.payload
            sent.entry, sent.ended = entry, False
            sent.runs += 1
            self.running[entry] = sent
            assert sent.runs <= sent.runs_allowed

    def forget(self, sent: Sent) -> None:
        self.session.remove(sent)
        if sent.entry in self.running:
            self.running[sent.entry] = None
        if sent in self.answered:
            self.answered.remove(sent)
        if self.connection:
            owed = self.connection.owed[sent.qos]
            owed[:] = [o for o in owed if o.sent is not sent]

    def send(self, packet_id: int, qos: int, payload: bytes) -> None:
        sent = Sent(packet_id, qos, payload)
        self.session.append(sent)
        self.deliver(sent, dup=False)

    connected = precondition(lambda self: self.connection)
    with_messages = precondition(lambda self: self.connection and self.session)

    @connected
    @rule(qos=st.sampled_from([1, 2]), payload=st.sampled_from([b"on", b"off"]))
    def publish(self, qos: int, payload: bytes) -> None:
        used = {sent.packet_id for sent in self.session}
        self.send(next(i for i in range(1, 65536) if i not in used), qos, payload)

    @with_messages
    @rule(data=st.data(), dup=st.booleans())
    def publish_again_on_the_live_connection(self, data: st.DataObject, dup: bool) -> None:
        sent = data.draw(st.sampled_from(self.session))
        if not sent.received and not (sent.qos == 1 and sent.entry is None):
            self.deliver(sent, dup)

    @with_messages
    @rule(data=st.data())
    def reuse_an_id_too_early(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from(self.session))
        if sent.received:
            return
        violations = self.ledger.violations
        self.forget(sent)
        self.send(sent.packet_id, sent.qos, sent.payload + b"!")
        assert self.ledger.violations == violations + 1

    @with_messages
    @rule(data=st.data())
    def pubrel(self, data: st.DataObject) -> None:
        received = [sent for sent in self.session if sent.received]
        if received:
            self.release(data.draw(st.sampled_from(received)))

    def release(self, sent: Sent) -> None:
        assert self.connection
        self.ledger.release(sent.packet_id)
        if sent in self.answered:
            self.answered.remove(sent)
            owed = self.connection.owed[2]
            owed[:] = [o for o in owed if o.sent is not sent]
            self.connection.pubcomp += pubcomp(sent.packet_id)
        else:
            self.connection.pubcomp += b"\x70\x04" + sent.packet_id.to_bytes(2, "big") + b"\x92\x00"

    @connected
    @rule()
    def pubrel_of_an_unknown_id(self) -> None:
        assert self.connection
        self.ledger.release(60_000)
        self.connection.pubcomp += b"\x70\x04" + (60_000).to_bytes(2, "big") + b"\x92\x00"

    # What the app does

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        entries = list(self.running)
        entry = entries[data.draw(st.integers(0, len(entries) - 1))]
        sent = self.running.pop(entry)
        self.ledger.finish(entry)
        if sent is None:
            return
        sent.ended = True
        for owed in self.connection.owed[sent.qos] if self.connection else ():
            if owed.sent is sent:
                owed.done = self.next_done()

    def take(self) -> tuple[list[Sent], bytes]:
        """Take, compare with the prediction, give what the broker has to be told."""
        assert self.connection
        told: list[Sent] = []
        expected = b""
        for qos, owed in self.connection.owed.items():
            due = sorted((o for o in owed if o.done), key=lambda o: o.done)
            if self.ordered:
                due = owed[: next((i for i, o in enumerate(owed) if not o.done), len(owed))]
            for o in due:
                owed.remove(o)
                o.sent.entry = None
                expected += (puback if qos == 1 else pubrec)(o.sent.packet_id)
                told.append(o.sent)
                if qos == 2 and o.sent not in self.answered:
                    self.answered.append(o.sent)
        expected += self.connection.pubcomp
        completed, self.connection.pubcomp = self.connection.pubcomp, b""
        assert self.ledger.take() == expected
        return told, completed

    def tell(self, told: list[Sent], completed: bytes) -> None:
        for sent in told:
            if sent.qos == 1:
                self.session.remove(sent)
            else:
                sent.received = True
        while completed:
            length = completed[1] + 2
            packet_id = int.from_bytes(completed[2:4], "big")
            self.session = [s for s in self.session if not (s.received and s.packet_id == packet_id)]
            completed = completed[length:]

    @connected
    @rule()
    def flush(self) -> None:
        self.tell(*self.take())

    # What the network does

    @connected
    @rule(delivered=st.floats(0, 1))
    def break_with_acknowledgements_on_the_way(self, delivered: float) -> None:
        told, _ = self.take()
        arrived = round(len(told) * delivered)
        for sent in told[arrived:]:
            sent.runs_allowed += sent.qos == 1
        self.tell(told[:arrived], b"")
        self.disconnect()

    @connected
    @rule()
    def disconnect(self) -> None:
        self.ledger.disconnected()
        self.connection = None

    @precondition(lambda self: not self.connection)
    @rule(session_present=st.booleans(), dup=st.booleans(), data=st.data())
    def connect(self, session_present: bool, dup: bool, data: st.DataObject) -> None:
        self.connection = Connection()
        self.ledger.connected(session_present)
        if not session_present:
            self.session.clear()
            self.answered.clear()
            self.running = dict.fromkeys(self.running)
            return
        for sent in list(self.session):
            if sent.received:
                self.release(sent)
            elif data.draw(st.integers(0, 9)):
                self.deliver(sent, dup)
            else:  # the broker has lost it, and gives its id to another message
                self.forget(sent)
                self.send(sent.packet_id, sent.qos, sent.payload + b"?")

    # What must always hold

    @invariant()
    def held_is_what_runs_and_what_waits_behind_it(self) -> None:
        if not hasattr(self, "ledger"):
            return
        waiting = [
            o.sent.payload for owed in (self.connection.owed.values() if self.connection else ()) for o in owed if o.done
        ]
        payloads = [entry.payload for entry in self.running] + waiting
        assert self.ledger.held == len(payloads)
        assert self.ledger.held_bytes == sum(1 + len(payload) for payload in payloads)

    @invariant()
    def head_is_unfinished(self) -> None:
        if not hasattr(self, "ledger"):
            return
        head = self.ledger.head()
        candidates = [s for s in self.running.values() if s] if self.connection else []
        if head:
            assert self.running[head] in candidates
        elif self.connection:
            assert not any(o.done == 0 for owed in self.connection.owed.values() for o in owed)

    def teardown(self) -> None:
        """When everything ends and the connection stays, nothing is left to do on either side."""
        if not hasattr(self, "ledger"):
            return
        if not self.connection:
            self.connection = Connection()
            self.ledger.connected(session_present=True)
            for sent in list(self.session):
                self.release(sent) if sent.received else self.deliver(sent, dup=True)
        for entry, sent in self.running.items():
            self.ledger.finish(entry)
            if sent:
                sent.ended = True
                for owed in self.connection.owed[sent.qos]:
                    if owed.sent is sent:
                        owed.done = self.next_done()
        self.running.clear()
        self.tell(*self.take())
        for sent in self.session:
            self.release(sent)
        self.tell(*self.take())
        assert not self.session
        assert (self.ledger.held, self.ledger.held_bytes) == (0, 0)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
