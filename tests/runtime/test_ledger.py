from __future__ import annotations

import pytest

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


def restarted(left: Ledger, *, session_present: bool = True) -> Ledger:
    """The ledger of the next process."""
    ledger = Ledger()
    ledger.recall(left.unreleased)
    ledger.connected(session_present)
    return ledger


def answered(*ids: int) -> Ledger:
    """A ledger that has answered QoS 2 messages with PUBREC."""
    ledger = Ledger()
    for packet_id in ids:
        ledger.finish(new(ledger, packet_id, qos=2))
    ledger.take()
    return ledger


# ------------------------------------------------------------------------------------------------------------ order


def test_nothing_is_acknowledged_before_its_handlers_end() -> None:
    ledger = Ledger()
    new(ledger, 1)
    new(ledger, 1, qos=2)
    assert ledger.take() == b""


def test_acknowledgements_leave_in_order_of_arrival() -> None:
    ledger = Ledger()
    a, b, c = new(ledger, 1), new(ledger, 2), new(ledger, 3)
    ledger.finish(c)
    ledger.finish(b)
    assert ledger.take() == b""
    ledger.finish(a)
    assert ledger.take() == puback(1, 2, 3)
    assert ledger.take() == b""


def test_the_queues_of_qos_1_and_2_do_not_wait_for_each_other() -> None:
    ledger = Ledger()
    one, two = new(ledger, 1, qos=1), new(ledger, 2, qos=2)
    ledger.finish(two)
    assert ledger.take() == pubrec(2)
    ledger.finish(one)
    assert ledger.take() == puback(1)


def test_acknowledgements_leave_as_completed_when_not_ordered() -> None:
    ledger = Ledger(ordered=False)
    a, b, c = new(ledger, 1), new(ledger, 2), new(ledger, 3)
    ledger.finish(c)
    ledger.finish(b)
    assert ledger.take() == puback(3, 2)
    ledger.finish(a)
    assert ledger.take() == puback(1)


def test_an_id_taken_over_after_it_ended_is_not_acknowledged_early_when_not_ordered() -> None:
    ledger = Ledger(ordered=False)
    ledger.finish(new(ledger, 1))
    second = new(ledger, 1, payload=b"other")
    assert ledger.take() == b""
    ledger.finish(second)
    assert ledger.take() == puback(1)


def test_an_id_is_new_again_after_its_acknowledgement() -> None:
    """[MQTT-4.3.2-5]: never deduplicate QoS 1 by packet id."""
    ledger = Ledger()
    for _ in range(3):
        ledger.finish(new(ledger, 7))
        assert ledger.take() == puback(7)


def test_finishing_twice_is_a_bug_and_says_so() -> None:
    ledger = Ledger()
    entry = new(ledger, 7)
    ledger.finish(entry)
    with pytest.raises(
        RuntimeError, match=r"^<Entry id=7 qos=1 2 B ended> was finished twice: this is a bug in mqttapi$"
    ):
        ledger.finish(entry)


# ------------------------------------------------------------------------------------------------------------ QoS 2


def test_pubrel_of_a_known_id_is_completed_and_frees_the_id() -> None:
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    assert ledger.take() == pubrec(5)
    ledger.release(5)
    assert ledger.take() == pubcomp(5)
    new(ledger, 5, qos=2)


def test_pubrel_of_an_unknown_id_is_answered_packet_identifier_not_found() -> None:
    ledger = Ledger()
    ledger.release(5)
    assert ledger.take() == b"\x70\x04\x00\x05\x92\x00"


def test_pubcomp_has_no_reason_in_mqtt_3_1_1() -> None:
    ledger = Ledger()
    ledger.connected(session_present=False, mqtt5=False)
    ledger.release(5)
    assert ledger.take() == pubcomp(5)


def test_pubcomps_leave_in_order_of_the_pubrels() -> None:
    ledger = Ledger()
    for i in (1, 2):
        ledger.finish(new(ledger, i, qos=2))
    ledger.take()
    ledger.release(2)
    ledger.release(9)
    ledger.release(1)
    assert ledger.take() == pubcomp(2) + b"\x70\x04\x00\x09\x92\x00" + pubcomp(1)


def test_a_repeat_between_pubrec_and_pubrel_gets_pubrec_again_and_does_not_run() -> None:
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    known(ledger, 5, qos=2)
    assert ledger.take() == pubrec(5)


def test_the_pubrec_of_a_repeat_waits_for_its_turn() -> None:
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    head = new(ledger, 6, qos=2)
    known(ledger, 5, qos=2)
    known(ledger, 5, qos=2)
    assert ledger.take() == b""
    ledger.finish(head)
    assert ledger.take() == pubrec(6, 5)


def test_a_pubrel_takes_back_the_pubrec_of_a_repeat_that_has_not_left() -> None:
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


def test_another_message_between_pubrec_and_pubrel_runs() -> None:
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


def test_ids_between_pubrec_and_pubrel_survive_reconnects() -> None:
    ledger = Ledger()
    for i in (1, 2):
        ledger.finish(new(ledger, i, qos=2))
    ledger.take()
    reconnect(ledger)
    known(ledger, 1, qos=2)
    ledger.release(2)
    assert ledger.take() == pubrec(1) + pubcomp(2)


def test_a_lost_session_frees_the_ids_between_pubrec_and_pubrel() -> None:
    ledger = Ledger()
    ledger.finish(new(ledger, 5, qos=2))
    ledger.take()
    reconnect(ledger, session_present=False)
    new(ledger, 5, qos=2)
    ledger.release(5)
    assert ledger.take() == b"\x70\x04\x00\x05\x92\x00"


# ---------------------------------------------------------------------------------------------------- over a restart


def test_what_a_former_process_answered_is_answered_again_and_does_not_run() -> None:
    ledger = restarted(answered(5))
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is None
    assert ledger.take() == pubrec(5)
    ledger.release(5)
    assert ledger.take() == pubcomp(5)
    assert ledger.unreleased == {}
    new(ledger, 5, qos=2)


def test_a_pubrel_for_what_a_former_process_answered_is_no_surprise() -> None:
    ledger = restarted(answered(5))
    ledger.release(5)
    assert ledger.take() == pubcomp(5)
    assert ledger.unreleased == {}


def test_what_a_former_process_answered_outlives_several_processes() -> None:
    ledger = restarted(restarted(answered(5)))
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is None
    ledger.disconnected()
    ledger = restarted(ledger)
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is None


def test_a_message_that_was_not_sent_before_is_no_repeat_whatever_a_former_process_answered() -> None:
    """[MQTT-3.3.1-1]: what is sent again is marked."""
    new(restarted(answered(5)), 5, qos=2)


@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_is_a_repeat_behind_the_first_message_that_was_not_sent_before(qos: int) -> None:
    ledger = restarted(answered(5, 6))
    assert ledger.arrive(6, 2, "t", b"p", dup=True) is None
    new(ledger, 7, qos=qos)
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is not None


@pytest.mark.parametrize(("topic", "payload"), [("t", b"other"), ("u", b"p"), ("tp", b""), ("", b"tp")])
def test_another_message_is_no_repeat_of_what_a_former_process_answered(topic: str, payload: bytes) -> None:
    ledger = restarted(answered(5))
    assert ledger.arrive(5, 2, topic, payload, dup=True) is not None
    assert ledger.violations == 0


def test_a_message_of_qos_1_is_no_repeat_and_says_that_the_id_is_free() -> None:
    ledger = restarted(answered(5))
    assert ledger.arrive(5, 1, "t", b"p", dup=True) is not None
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is not None


def test_a_lost_session_frees_what_a_former_process_answered() -> None:
    ledger = restarted(answered(5), session_present=False)
    assert ledger.unreleased == {}
    assert ledger.arrive(5, 2, "t", b"p", dup=True) is not None


def test_a_digest_means_the_same_in_every_process() -> None:
    assert answered(5).unreleased == {5: (0x5A8FDF31 << 16) + 1}


# --------------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize("ordered", [True, False])
def test_an_acknowledgement_never_crosses_a_reconnect(ordered: bool) -> None:
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


def test_the_same_id_after_a_reconnect_is_not_acknowledged_by_the_old_handler() -> None:
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
def test_a_resend_joins_a_run_that_has_not_ended(qos: int, dup: bool) -> None:
    ledger = Ledger()
    entry = new(ledger, 3, qos)
    reconnect(ledger)
    assert ledger.arrive(3, qos, "t", b"p", dup) is None
    assert ledger.take() == b""
    ledger.finish(entry)
    assert ledger.take() == (puback(3) if qos == 1 else pubrec(3))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_resend_of_what_has_ended_is_answered_at_once(qos: int, ordered: bool) -> None:
    ledger = Ledger(ordered)
    ledger.finish(new(ledger, 3, qos))
    reconnect(ledger)
    known(ledger, 3, qos)
    assert ledger.take() == (puback(3) if qos == 1 else pubrec(3))


def test_a_joined_entry_takes_the_place_of_its_new_arrival() -> None:
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


def test_a_resend_joins_across_several_reconnects() -> None:
    ledger = Ledger()
    entry = new(ledger, 1)
    for _ in range(3):
        reconnect(ledger)
    known(ledger, 1)
    ledger.finish(entry)
    assert ledger.take() == puback(1)


@pytest.mark.parametrize(("topic", "payload", "qos"), [("t2", b"p", 1), ("t", b"p2", 1), ("t", b"p", 2)])
def test_an_id_reused_for_another_message_on_resume_is_new(topic: str, payload: bytes, qos: int) -> None:
    ledger = Ledger()
    old = new(ledger, 1)
    reconnect(ledger)
    entry = new(ledger, 1, qos, topic, payload)
    ledger.finish(old)
    assert ledger.take() == b""
    ledger.finish(entry)
    assert ledger.take() == (puback(1) if qos == 1 else pubrec(1))
    assert ledger.violations == 0


def test_what_was_taken_is_new_when_it_comes_again() -> None:
    ledger = Ledger()
    ledger.finish(new(ledger, 1))
    ledger.take()
    reconnect(ledger)
    new(ledger, 1)


def test_without_a_session_nothing_joins() -> None:
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


def test_a_message_the_broker_forgot_does_not_swallow_a_later_equal_one() -> None:
    """The join map ends once more has come than a broker can have in flight."""
    ledger = Ledger()
    ledger.finish(new(ledger, 1))
    reconnect(ledger)
    for i in range(10_000):
        ledger.finish(new(ledger, 2 + i))
        ledger.take()
    new(ledger, 1)


def test_an_answered_message_the_broker_forgot_does_not_swallow_a_later_equal_one() -> None:
    """Such as one that expired before its PUBREC was read: no PUBREL will ever come."""
    ledger = answered(1, 2, 3)
    reconnect(ledger)
    known(ledger, 2, qos=2)
    for i in range(10_000):
        ledger.finish(new(ledger, 4 + i, qos=2))
        ledger.take()
        ledger.release(4 + i)
    known(ledger, 2, qos=2)
    assert ledger.unreleased.keys() == {2}
    new(ledger, 1, qos=2)
    new(ledger, 3, qos=2)


# ----------------------------------------------------------------------------------------- live repeats, reused ids


def test_a_live_repeat_joins_and_is_acknowledged_once() -> None:
    ledger = Ledger()
    a, b = new(ledger, 1), new(ledger, 2)
    known(ledger, 1)
    ledger.finish(a)
    known(ledger, 1)
    ledger.finish(b)
    assert ledger.take() == puback(1, 2)
    assert ledger.violations == 0


@pytest.mark.parametrize("ended", [True, False])
def test_an_id_reused_before_its_acknowledgement_is_acknowledged_after_the_last_message(ended: bool) -> None:
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


def test_held_counts_what_is_in_memory_and_not_what_awaits_pubrel() -> None:
    ledger = Ledger()
    head = new(ledger, 1, 2, "topic", b"12345")
    second = new(ledger, 2, 2, "topic", b"12345")
    assert (ledger.held, ledger.held_bytes) == (2, 20)
    ledger.finish(second)
    assert (ledger.held, ledger.held_bytes) == (2, 20)  # behind the head
    ledger.finish(head)
    assert ledger.take() == pubrec(1, 2)
    assert (ledger.held, ledger.held_bytes) == (0, 0)


def test_what_has_ended_is_not_held_while_the_broker_may_or_may_not_resend_it() -> None:
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


def test_the_head_is_the_oldest_message_that_runs() -> None:
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
