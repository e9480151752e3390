"""The delivery ledger: which acknowledgements leave, and in which order.

Theory of operation
===================

One `Ledger` belongs to one link, a consuming connection, and outlives its reconnects. It does no I/O. The link tells
it what came (`arrive`, `release`), the dispatcher what ended (`finish`), and the link writes what `take` gives: all
acknowledgements of one turn of the event loop as one piece of bytes. Nothing else in MQTTAPI acknowledges.

**The queues.** Messages of QoS 1 and of QoS 2 form two independent queues [MQTT-4.6.0-2, MQTT-4.6.0-3]. A queue is a
dict, packet id to `Entry`: its order is the order of arrival, and it holds exactly the messages that are owed an
acknowledgement on *this* connection. So there is no list of acknowledgements made ready, and none can cross a
reconnect: `finish` marks, `take` pops the entries that have ended from the front of each queue (with
`ordered=False`: all that have ended, in that order) and encodes them. The ledger encodes because the bytes are its
promise: four of them, always, for all messages of a turn packed in one call.

**An entry's states.** "Owed": it is in a queue. "Loose": it is not, and its outcome is discarded.

                  arrive                  finish              take
        (new)  ──────────►  RUNNING  ──────────────►  ENDED  ──────►  (acknowledged)        owed
                              │  ▲                     │  ▲
              disconnected,   │  │ joined              │  │ joined
              id taken over   ▼  │         finish      ▼  │
                            LOOSE_RUNNING ─────────►  LOOSE_ENDED                           loose

**What an arrival is**, by the first rule that fits:

    QoS 2, id between PUBREC and PUBREL, same message   repeat   PUBREC again, in its turn [MQTT-4.3.3-10]
    id in the queue, same message                       joined   one run, one acknowledgement, in the first one's turn
    id as in one of these two, another message          new      the old entry comes loose; counted in `violations`
    id of a former connection, session present,
      same message                                      joined   one run, acknowledged in the turn of the new arrival
    QoS 2, DUP, id recalled, same message               repeat   as above; see "Over a restart"
    anything else                                       new      so is every id that was acknowledged [MQTT-4.3.2-5]

"Same message" is equal topic and payload, or an equal digest of them. Within a process the DUP flag decides nothing:
some brokers do not set it, and it is no proof [MQTT5 §3.3.1.1]. A broker may neither send again on a live connection
[MQTT-4.4.0-1] nor use an id for another message before it is free, but some do: after a while without an answer, or when
they restart from an old state. An id is acknowledged once, after the *last* message that bears it has been handled, so
that none is lost.

**Epochs.** At a disconnect the queues become the join map, as they are; while things go well it is empty and costs
one test. A session that is gone (session present = 0) empties it, and the ids that await PUBREL too. It also ends
once enough messages have come that the broker cannot be resending any more, and with it what awaits PUBREL since a
former connection: a later message that happens to have the id, topic and payload of one the broker forgot must run.

**QoS 2.** PUBREC leaves after the handlers have ended. From then to PUBREL the id is session state: it survives
reconnects. After PUBREL the id is free.

**Over a restart.** `unreleased` is what a process that ends leaves behind of that state, and `recall` takes it to the
ledger of the next one (`mqttapi.config.unreleased` keeps it on disk). What is recalled is hearsay: another process may
have had the session in between. So it is believed only of what the broker must send again, marked [MQTT-3.3.1-1] and
before anything new [MQTT-4.4.0-1]: it is forgotten as soon as a message of QoS 1 or 2 comes without DUP.
"""

from __future__ import annotations

import struct
from binascii import crc32
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry", "Ledger"]

# States of an entry; see the drawing above.
_RUNNING: Final = 0
_ENDED: Final = 1
_LOOSE_RUNNING: Final = 2
_LOOSE_ENDED: Final = 3

# The first two of an acknowledgement's four bytes; its packet id fills the others.
_PUBACK: Final = 0x4002_0000
_PUBREC: Final = 0x5002_0000
_PUBCOMP: Final = 0x7002_0000

_UNKNOWN_ID: Final = struct.Struct(">BBHBB")  # PUBCOMP with reason code 0x92 and no properties [MQTT5 §3.7.2.1]

# A broker resends before it sends anything new, at most what it had in flight. This many arrivals beyond the size of
# the join map is more than any window in use; a resend after them would run twice, never be lost.
_RESEND_HORIZON: Final = 4096


class Entry:
    """One QoS 1 or QoS 2 message that is owed an acknowledgement."""

    __slots__ = ("arrived", "packet_id", "payload", "pending", "qos", "size", "state", "topic")

    pending: int
    """Runs that have not ended: set and used by the dispatcher, the ledger does not look at it."""

    def __init__(self, packet_id: int, qos: int, topic: str, payload: bytes, size: int, arrived: float) -> None:
        self.packet_id = packet_id
        self.qos = qos
        self.topic = topic
        self.payload = payload
        self.size = size
        """Characters of the topic, bytes of the payload, and what the properties weigh."""
        self.arrived = arrived
        """`Ledger.now` when it came first."""
        self.state = _RUNNING
        """The ledger's."""

    def __repr__(self) -> str:
        state = ("running", "ended", "running, loose", "ended, loose")[self.state]
        return f"<Entry id={self.packet_id} qos={self.qos} {self.size} B {state}>"


_Queue = dict[int, Entry]


class Ledger:
    """Notes every QoS 1 and QoS 2 message of one link and decides which acknowledgements leave, in which order.

    `ordered=False` acknowledges as messages complete, for brokers with tiny windows. It gives up [MQTT-4.6.0-2] and
    [MQTT-4.6.0-3].
    """

    __slots__ = (
        "_awaiting_release",
        "_carried",
        "_completed",
        "_former",
        "_mqtt5",
        "_ordered",
        "_pubcomp",
        "_queues",
        "_recalled",
        "_resends_expected",
        "_resuming",
        "held",
        "held_bytes",
        "now",
        "violations",
    )

    def __init__(self, ordered: bool = True) -> None:
        self.held = 0
        """Messages in memory: handlers have not ended, or the answer waits behind one whose have not.

        Never those that wait for PUBREL or, after a disconnect, for the broker to send an ended one again: a link that
        stops reading at a bound on `held` always goes on once handlers end.
        """
        self.held_bytes = 0
        """The sum of their `size`."""
        self.now = 0.0
        """The time of what arrives next, in seconds; the link sets it once per read."""
        self.violations = 0
        """How often the broker used a packet id for another message before it was acknowledged [MQTT-2.2.1-4]."""
        self._ordered = ordered
        self._mqtt5 = True
        self._queues: tuple[_Queue, _Queue] = ({}, {})  # of QoS 1 and of QoS 2
        self._completed: tuple[list[Entry], list[Entry]] = ([], [])  # filled only when not ordered
        self._pubcomp = bytearray()
        self._awaiting_release: dict[int, int] = {}  # packet id to a digest of the message
        self._carried: set[int] = set()  # of these, what the broker has not come back to on this connection
        self._recalled: dict[int, int] = {}  # likewise of a former process
        self._former: dict[tuple[int, int], Entry] = {}  # (QoS, packet id) of former connections: the join map
        self._resuming = False  # whether there is anything in one of the last two
        self._resends_expected = 0

    def arrive(
        self, packet_id: int, qos: int, topic: str, payload: bytes, dup: bool = False, weight: int = 0
    ) -> Entry | None:
        """Note a PUBLISH of QoS 1 or 2.

        Gives a new entry, to be dispatched and handed to `finish` once, when all its runs have ended; or None when
        there is nothing to run: it joined an entry, or repeats one that was answered with PUBREC. `dup` counts only
        beside what was recalled; see above. `weight` is that of the properties.
        """
        queue = self._queues[qos - 1]
        if (packet_id in queue or self._resuming or qos == 2) and self._was_known(packet_id, qos, topic, payload, dup):
            return None
        size = len(topic) + len(payload) + weight
        queue[packet_id] = entry = Entry(packet_id, qos, topic, payload, size, self.now)
        self.held += 1
        self.held_bytes += size
        return entry

    def finish(self, entry: Entry) -> None:
        """Note that all runs of `entry` have ended. The next `take` may have acknowledgements."""
        state = entry.state
        if state == _RUNNING:
            entry.state = _ENDED
            if not self._ordered:
                self._completed[entry.qos - 1].append(entry)
        elif state == _LOOSE_RUNNING:
            entry.state = _LOOSE_ENDED
            self._forget(entry)
        else:
            raise RuntimeError(f"{entry!r} was finished twice: this is a bug in mqttapi")

    def release(self, packet_id: int) -> None:
        """Answer a PUBREL: PUBCOMP, with reason code 0x92 for an unknown id where MQTT 5 lets us say so."""
        if packet_id in self._awaiting_release:
            self._free(packet_id)
        elif self._recalled.pop(packet_id, None) is None and self._mqtt5:
            self._pubcomp += _UNKNOWN_ID.pack(0x70, 4, packet_id, 0x92, 0)
            return
        self._pubcomp += (_PUBCOMP | packet_id).to_bytes(4, "big")

    def take(self) -> bytes:
        """The acknowledgements that are due, encoded, for one write; empty when there are none.

        What was taken counts as acknowledged: when the connection breaks before it is written, a QoS 1 message comes
        again and is new, a QoS 2 message comes again and is a repeat.
        """
        words = [_PUBACK | entry.packet_id for entry in self._pop(1)]
        if self._queues[1]:
            for entry in self._pop(2):
                words.append(_PUBREC | entry.packet_id)
                self._awaiting_release[entry.packet_id] = _digest(entry.topic, entry.payload)
        packets = struct.pack(f">{len(words)}I", *words)
        if self._pubcomp:
            packets += self._pubcomp
            self._pubcomp.clear()
        return packets

    def disconnected(self) -> None:
        """The connection is gone: what was not taken will not leave, and waits for the broker to send it again."""
        former = self._former
        for qos, queue in enumerate(self._queues, start=1):
            for packet_id, entry in queue.items():
                self._loosen(entry)
                if qos == 1 or packet_id not in self._awaiting_release:  # else it is a repeat, and will be again
                    former[qos, packet_id] = entry
            queue.clear()
        for completed in self._completed:
            completed.clear()
        self._pubcomp.clear()

    def connected(self, session_present: bool, *, mqtt5: bool = True) -> None:
        """A CONNACK said yes. Without a session all protocol state is dropped; what runs or is queued still runs."""
        self._mqtt5 = mqtt5
        if not session_present:
            self._former.clear()
            self._recalled.clear()
            self._awaiting_release.clear()
        self._carried = set(self._awaiting_release)
        self._resuming = bool(self._former or self._recalled)
        self._resends_expected = len(self._former) + len(self._carried) + _RESEND_HORIZON

    @property
    def unreleased(self) -> dict[int, int]:
        """Packet ids that wait for PUBREL, each with a digest of its message that means the same in any process."""
        return self._recalled | self._awaiting_release

    def recall(self, unreleased: Mapping[int, int]) -> None:
        """Take over what a former process has left as `unreleased`. To be called before the first `connected`."""
        self._recalled.update(unreleased)

    def head(self) -> Entry | None:
        """The oldest message of this connection whose runs have not ended: what all others wait for."""
        running = (next((entry for entry in queue.values() if entry.state == _RUNNING), None) for queue in self._queues)
        return min((entry for entry in running if entry), key=lambda entry: entry.arrived, default=None)

    def _was_known(self, packet_id: int, qos: int, topic: str, payload: bytes, dup: bool) -> bool:
        """Decide what an arrival is that may be more than a new message, by the table above."""
        if self._recalled and not dup:
            self._recalled.clear()
        if qos == 2 and packet_id in self._awaiting_release:
            if self._awaiting_release[packet_id] == _digest(topic, payload):
                self._carried.discard(packet_id)
                if packet_id not in self._queues[1]:
                    self._repeat(packet_id, topic, payload)
                return True
            self.violations += 1
            self._free(packet_id)
            return False
        queue = self._queues[qos - 1]
        if packet_id in queue:
            known = queue[packet_id]
            if known.topic == topic and known.payload == payload:
                return True
            self.violations += 1
            del queue[packet_id]
            self._loosen(known)
            return False
        self._resends_expected -= 1
        if not self._resends_expected:
            self._end_resuming()
        if not self._resuming:
            return False
        former = self._former.pop((qos, packet_id), None)
        recalled = self._recalled.pop(packet_id, None)
        self._resuming = bool(self._former or self._recalled)
        if former is not None and former.topic == topic and former.payload == payload:
            self._bind(former)
            return True
        if recalled is not None and qos == 2 and recalled == _digest(topic, payload):
            self._awaiting_release[packet_id] = recalled
            self._repeat(packet_id, topic, payload)
            return True
        return False

    def _end_resuming(self) -> None:
        """What the broker has not sent again by now it never will."""
        self._former.clear()
        self._recalled.clear()
        for packet_id in self._carried:
            del self._awaiting_release[packet_id]
        self._carried.clear()
        self._resuming = False

    def _repeat(self, packet_id: int, topic: str, payload: bytes) -> None:
        """An id that awaits PUBREL is owed PUBREC once more."""
        repeat = Entry(packet_id, 2, topic, payload, len(topic) + len(payload), self.now)
        repeat.state = _LOOSE_ENDED
        self._bind(repeat)

    def _bind(self, entry: Entry) -> None:
        """A loose entry is owed an acknowledgement, in the turn of what arrives now."""
        self._queues[entry.qos - 1][entry.packet_id] = entry
        if entry.state == _LOOSE_RUNNING:
            entry.state = _RUNNING
            return
        entry.state = _ENDED
        self.held += 1
        self.held_bytes += entry.size
        if not self._ordered:
            self._completed[entry.qos - 1].append(entry)

    def _loosen(self, entry: Entry) -> None:
        """An entry is owed no acknowledgement any more."""
        if entry.state == _RUNNING:
            entry.state = _LOOSE_RUNNING
        else:
            entry.state = _LOOSE_ENDED
            self._forget(entry)

    def _free(self, packet_id: int) -> None:
        """The id awaits no PUBREL any more; the PUBREC of a repeat that has not left would make it do so again."""
        del self._awaiting_release[packet_id]
        if self._carried:
            self._carried.discard(packet_id)
        repeat = self._queues[1].pop(packet_id, None)
        if repeat is not None:
            self._forget(repeat)

    def _forget(self, entry: Entry) -> None:
        self.held -= 1
        self.held_bytes -= entry.size

    def _pop(self, qos: Literal[1, 2]) -> list[Entry]:
        """Take out of a queue what may be acknowledged now, in the order to send."""
        queue = self._queues[qos - 1]
        popped: list[Entry] = []
        size = 0
        if self._ordered:
            for entry in queue.values():
                if entry.state != _ENDED:
                    break
                popped.append(entry)
                size += entry.size
            if len(popped) == len(queue):
                queue.clear()
            else:
                for entry in popped:
                    del queue[entry.packet_id]
        else:
            completed = self._completed[qos - 1]
            for entry in completed:
                if queue.get(entry.packet_id) is entry:  # else another message has taken the id over
                    popped.append(entry)
                    size += entry.size
                    del queue[entry.packet_id]
            completed.clear()
        self.held -= len(popped)
        self.held_bytes -= size
        return popped


def _digest(topic: str, payload: bytes) -> int:
    """Tells messages apart, in any process: `hash` would not."""
    return crc32(topic.encode() + payload) << 16 | len(topic)  # the length: where the one ends, the other begins
