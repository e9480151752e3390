"""The ledger against a model of a broker: reconnects, lost sessions, reused ids, repeats, DUP flags or none; and of an
app whose processes end, with or without leaving behind what awaits PUBREL, or with something that is out of date.

What is proved of every message: it was handled when it was acknowledged (never lost), and it ran once more only where
`Sent.may_run_again` was called, which stands where a rule of the documentation does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mqttapi.runtime.ledger import Entry, Ledger

OFTEN = st.integers(0, 3).map(bool)
QOS = st.sampled_from([1, 2, 2])
PAYLOAD = st.sampled_from([b"on", b"off"])
SELDOM = st.integers(0, 3).map(lambda number: not number)


def puback(*ids: int) -> bytes:
    return b"".join(b"\x40\x02" + i.to_bytes(2, "big") for i in ids)


def pubrec(*ids: int) -> bytes:
    return b"".join(b"\x50\x02" + i.to_bytes(2, "big") for i in ids)


def pubcomp(*ids: int) -> bytes:
    return b"".join(b"\x70\x02" + i.to_bytes(2, "big") for i in ids)


@dataclass(eq=False)
class Sent:
    """A message that the broker has to deliver."""

    packet_id: int
    qos: int
    payload: bytes
    entry: Entry | None = None  # of its last run
    ended: bool = False  # that run
    received: bool = False  # PUBREC came: PUBREL is due
    handled: bool = False  # a run has ended
    runs: int = 0
    runs_allowed: int = 1

    def may_run_again(self) -> None:
        self.runs_allowed = self.runs + 1


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
        self.recalled: dict[int, bytes] = {}  # likewise by a former process, as far as the app knows: id to payload
        self.out_of_date: tuple[dict[int, int], dict[int, bytes]] = {}, {}  # what was once left behind
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
        if not dup:
            self.forget_recalled()
        if sent not in self.answered and self.recalled.pop(sent.packet_id, None) == sent.payload and sent.qos == 2:
            self.answered.append(sent)
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

    def forget_recalled(self) -> None:
        """The broker does not mark what it sends again, or does not send it first."""
        for sent in self.session:
            if sent.qos == 2 and self.recalled.get(sent.packet_id) == sent.payload:
                sent.may_run_again()
        self.recalled.clear()

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
    @rule(qos=QOS, payload=PAYLOAD)
    def publish(self, qos: int, payload: bytes) -> None:
        self.send(self.free_id(), qos, payload)

    def free_id(self) -> int:
        used = {sent.packet_id for sent in self.session}
        return next(i for i in range(1, 65536) if i not in used)

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
        elif self.recalled.pop(sent.packet_id, None) is not None:
            self.connection.pubcomp += pubcomp(sent.packet_id)
        else:
            self.connection.pubcomp += b"\x70\x04" + sent.packet_id.to_bytes(2, "big") + b"\x92\x00"

    @connected
    @rule(packet_id=st.sampled_from([1, 2, 3, 60_000]))
    def pubrel_of_an_unknown_id(self, packet_id: int) -> None:
        if packet_id not in {sent.packet_id for sent in self.session}:
            self.release(Sent(packet_id, 2, b""))

    # What the app does

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        entries = list(self.running)
        self.end(entries[data.draw(st.integers(0, len(entries) - 1))])

    def end(self, entry: Entry) -> None:
        sent = self.running.pop(entry)
        self.ledger.finish(entry)
        if sent is None:
            return
        sent.ended = sent.handled = True
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
            assert sent.handled, f"lost: {sent}"
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
    @rule(delivered=st.floats(0, 1), all_end=OFTEN, killed=SELDOM)
    def break_with_acknowledgements_on_the_way(self, delivered: float, all_end: bool, killed: bool) -> None:
        for entry in list(self.running) if all_end else ():
            self.end(entry)
        told, _ = self.take()
        arrived = round(len(told) * delivered)
        for sent in told[arrived:]:
            if sent.qos == 1:
                sent.may_run_again()
        self.tell(told[:arrived], b"")
        if killed:
            self.connection = None
            self.start_again({}, {})
        else:
            self.disconnect()

    @connected
    @rule()
    def disconnect(self) -> None:
        self.ledger.disconnected()
        self.connection = None

    @precondition(lambda self: not self.connection)
    @rule(session_present=OFTEN, dup=OFTEN, data=st.data())
    def connect(self, session_present: bool, dup: bool, data: st.DataObject) -> None:
        self.connection = Connection()
        self.ledger.connected(session_present)
        if not session_present:
            self.session.clear()
            self.answered.clear()
            self.recalled.clear()
            self.running = dict.fromkeys(self.running)
            return
        for sent in list(self.session):
            if sent.received and data.draw(st.integers(0, 9)):
                self.release(sent)
            elif sent.received:  # it has forgotten the PUBREC, or its own PUBREL, as mosquitto 2.0.11 does
                sent.received = False
                if sent not in self.answered and self.recalled.get(sent.packet_id) != sent.payload:
                    sent.may_run_again()
                self.deliver(sent, dup)
            elif data.draw(st.integers(0, 9)):
                self.deliver(sent, dup)
            else:  # the broker has lost it, and gives its id to another message
                self.forget(sent)
                self.send(sent.packet_id, sent.qos, sent.payload + b"?")

    # What becomes of the process

    @precondition(lambda self: not self.connection and (self.answered or self.recalled))
    @rule(has_file=OFTEN)
    def start_again_while_disconnected(self, has_file: bool) -> None:
        payloads = self.recalled | {sent.packet_id: sent.payload for sent in self.answered}
        digests = self.ledger.unreleased
        assert digests.keys() == payloads.keys()
        self.out_of_date = digests, payloads
        self.start_again(*((digests, payloads) if has_file else ({}, {})))

    @precondition(lambda self: not self.connection and self.out_of_date[0])
    @rule(news=st.lists(st.tuples(QOS, PAYLOAD), max_size=3))
    def another_client_had_the_session_since(self, news: list[tuple[int, bytes]]) -> None:
        """But for what that one was sent and did not answer, and which is equal: see `mqttapi.config.unreleased`."""
        self.session = [sent for sent in self.session if not sent.received]
        for qos, payload in news:
            self.session.append(Sent(self.free_id(), qos, payload))
        digests, payloads = self.out_of_date[0].copy(), self.out_of_date[1].copy()
        for sent in self.session:
            if not sent.handled and sent.qos == 2 and payloads.get(sent.packet_id) == sent.payload:
                del digests[sent.packet_id], payloads[sent.packet_id]
        self.start_again(digests, payloads)

    @connected
    @rule(payloads=st.lists(PAYLOAD, min_size=1, max_size=3), has_file=OFTEN, data=st.data())
    def start_again_with_pubrecs_on_the_way(self, payloads: list[bytes], has_file: bool, data: st.DataObject) -> None:
        """All of it in turn, as it seldom comes together by chance."""
        for payload in payloads:
            self.publish(2, payload)
        self.break_with_acknowledgements_on_the_way(data.draw(st.sampled_from([0, 0.5])), all_end=True, killed=False)
        if self.answered:
            self.start_again_while_disconnected(has_file)
        if data.draw(SELDOM) and self.out_of_date[0]:
            self.another_client_had_the_session_since(data.draw(st.lists(st.tuples(QOS, PAYLOAD), max_size=3)))
        self.connect(data.draw(OFTEN), data.draw(OFTEN), data)

    def start_again(self, digests: dict[int, int], payloads: dict[int, bytes]) -> None:
        for sent in self.session:
            sent.entry, sent.ended = None, False
            if not (sent.qos == 2 and payloads.get(sent.packet_id) == sent.payload):
                sent.may_run_again()  # it was not acknowledged, or the process was killed and nothing left behind
        self.running.clear()
        self.answered.clear()
        self.recalled = dict(payloads)
        self.ledger = Ledger(self.ordered)
        self.ledger.recall(digests)

    # What must always hold

    @invariant()
    def held_is_what_runs_and_what_waits_behind_it(self) -> None:
        if not hasattr(self, "ledger"):
            return
        waiting = [
            o.sent.payload
            for owed in (self.connection.owed.values() if self.connection else ())
            for o in owed
            if o.done
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
        for entry in list(self.running):
            self.end(entry)
        self.tell(*self.take())
        for sent in self.session:
            self.release(sent)
        self.tell(*self.take())
        assert not self.session
        assert (self.ledger.held, self.ledger.held_bytes) == (0, 0)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
