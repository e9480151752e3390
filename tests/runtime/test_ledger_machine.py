"""The ledger against a model of a broker: reconnects, lost sessions, reused ids, repeats, DUP flags or none."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        self.end(entries[data.draw(st.integers(0, len(entries) - 1))])

    def end(self, entry: Entry) -> None:
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
