"""What happens to the app's own process: killed, out of memory, blocked, told to stop; handlers that end the wrong way."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.faults.support import AppProcess, Row, publish_all, texts
from tests.support.mosquitto import Mosquitto
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

Launch = Callable[..., AppProcess]
Before = Callable[..., Awaitable[Proxy]]


async def test_a_handler_that_hangs_is_cancelled_at_its_timeout_and_others_go_on(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 3; async handler hangs", "cancelled at `timeout`, retried, dead-lettered; others go on")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>", timeout=0.3, retry=Retry(attempts=2, delay=0), dead_letter="dead/<id>")
        async def handle(id: str, payload: str):
            note("started", payload)
            if id == "hangs":
                await asyncio.Event().wait()
            note("handled", payload)

        @app.topic("dead/<id>")
        async def dead(payload: str):
            note("dead", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/hangs", "s/1", "s/2", "s/3"], ["hangs", *texts(3)])
    handled = await app.notes_of("handled", 3)
    dead = await app.notes_of("dead")
    assert app.noted("started")["hangs"] == 2
    assert await app.stop() == 0
    fault.settle(["hangs", *texts(3)], handled + dead, seen="3 handled, 1 dead letter after 2 attempts")


async def test_a_handler_that_blocks_the_loop_may_cost_the_connection_but_no_message(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 4; `time.sleep` in an async handler until the broker gives the client up", "reconnects, nothing lost")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            note("started", payload)
            if payload == "blocks":
                opened_for_threads("go")
            note("handled", payload)
        """,
        MQTT_KEEPALIVE="1",
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "s/2"], ["blocks", *texts(5)])
    await app.notes_of("started")
    client_id = "faults-0-0"
    await eventually(
        lambda: f"Client {client_id} has exceeded timeout" in mosquitto.log(),
        what=lambda: f"the broker gives the client up; its log:\n{mosquitto.log()}",
    )
    app.open("go")
    handled = await app.notes_of("handled", 6)
    await publish_all(mosquitto.url, "s/3", ["behind"])
    handled = await app.notes_of("handled", 7)
    assert await app.stop() == 0
    assert max(handled.values()) <= 2
    fault.settle(["blocks", *texts(5), "behind"], handled, twice=["blocks", *texts(5)])


async def test_a_handler_that_blocks_the_loop_is_reported_with_route_and_stack(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 4; a handler blocks the loop", "WARN with the route's name and the stack after 1 s")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>", name="the blocking one")
        async def handle(payload: str):
            opened_for_threads("go")
            note("handled", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, "s/1", ["x"])
    await app.said("the blocking one")
    assert "opened_for_threads" in app.log
    app.open("go")
    await app.notes_of("handled")
    assert await app.stop() == 0
    fault.saw("the log names route and stack")


async def test_a_synchronous_handler_that_hangs_stops_nobody_else_and_no_shutdown(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 5; sync handler hangs in a thread", "timed out, others go on, SIGTERM ends the process, redelivered")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>", timeout=0.3)
        def handle(id: str, payload: str):
            note("started", payload)
            if id == "hangs" and not is_open("go"):
                time.sleep(10**6)
            note("handled", payload)
        """,
        MQTTAPI_GRACE="1",
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/hangs", "s/1"], ["hangs", "fine"])
    await app.notes_of("handled")
    app.open("go")
    await app.stop()
    await app.start()
    handled = await app.notes_of("handled", 2)
    assert await app.stop() == 0
    fault.settle(["hangs", "fine"], handled, twice=["fine"])  # its acknowledgement waits behind the one that hangs


@pytest.mark.parametrize("raised", ["SystemExit(4)", "KeyboardInterrupt", "GeneratorExit"])
async def test_a_handler_that_wants_to_end_the_process_leaves_its_message_unacknowledged(
    mosquitto: Mosquitto, launch: Launch, fault: Row, raised: str
) -> None:
    ends = raised != "GeneratorExit"
    expected = "never acknowledged; the app drains and ends" if ends else "a failure of that message alone"
    fault(f"row 7; handler raises {raised}", expected)
    app = launch(
        mosquitto.url,
        f"""
        @app.topic("s/<id>")
        async def handle(payload: str):
            if payload == "bad" and not is_open("go"):
                note("raised", payload)
                raise {raised}
            note("handled", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "s/2"], ["bad", *texts(5)])
    await app.notes_of("raised")
    app.open("go")
    if ends:
        await app.ended()
        await app.start()
    wanted = ["bad", *texts(5)] if ends else texts(5)
    handled = await app.notes_of("handled", len(wanted))
    assert await app.stop() == 0
    fault.settle(wanted, handled, twice=texts(5) if ends else ())


async def test_a_handler_that_cancels_itself_has_failed(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 7; handler raises CancelledError that we did not cause", "a failure, the next message is handled")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            if payload == "bad":
                raise asyncio.CancelledError
            if payload == "worse":
                asyncio.current_task().cancel()
                await asyncio.sleep(1)
            note("handled", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, "s/1", ["bad", "worse", "good"] * 3)
    await eventually(lambda: app.noted("handled")["good"] == 3, what=lambda: app.log)
    assert app.log.count("cancelled") >= 6
    assert await app.stop() == 0
    fault.saw("6 failed, 3 handled behind them")


async def test_a_handler_that_runs_out_of_memory_fails_alone(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("row 8; a handler asks for more memory than there is (`prlimit --as`)", "that message fails, others go on")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            if payload == "bad":
                bytearray(2**40)
            note("handled", payload)
        """,
    )
    await app.start()
    assert app.process is not None
    resource.prlimit(app.process.pid, resource.RLIMIT_AS, (2**32, 2**32))
    await publish_all(mosquitto.url, "s/1", ["bad", *texts(5), "bad", *texts(5, 5)])
    handled = await app.notes_of("handled", 10)
    assert app.log.count("MemoryError") >= 2
    assert await app.stop() == 0
    fault.settle(texts(10), handled, seen="2 failed with MemoryError, 10 handled")


async def test_a_process_killed_amid_a_stream_handles_the_rest_later(
    forgetful_mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    """The out-of-memory killer, say: nobody is asked. Those that had ended behind the one that runs come again too."""
    fault(
        "rows 1 and 8; SIGKILL amid 2,000 messages, three times", "nothing lost; what was not acknowledged runs again"
    )
    app = launch(
        forgetful_mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            if int(payload) % 500 == 100:
                note("halfway", payload)
                await opened(payload)
            note("handled", payload)
        """,
        MQTTAPI_MAX_IN_FLIGHT="20",
    )
    await app.start()
    topics = [f"s/{number}" for number in range(7)]
    for start in (0, 500, 1000):
        await publish_all(forgetful_mosquitto.url, topics, texts(500, start))
        await app.notes_of("handled", start + 110)
        await app.kill()
        app.open(str(start + 100))
        await app.start()
        await app.notes_of("handled", start + 500)
    app.open("1600")
    await publish_all(forgetful_mosquitto.url, topics, texts(500, 1500))
    handled = await app.notes_of("handled", 2000)
    assert await app.stop() == 0
    # At most a window in each round, beginning with the message that was being handled.
    window = {str(start + 100 + number) for start in (0, 500, 1000) for number in range(20)}
    assert len(app.noted("halfway")) == 4
    assert sum(app.noted("halfway").values()) == 7
    fault.settle(texts(2000), handled, twice=window)


async def test_a_second_signal_stops_at_once_and_unfinished_messages_come_again(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 30; SIGTERM twice", "cancelled at once, exit 1, unacknowledged messages come again")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            note("started", payload)
            await opened("go")
            note("handled", payload)
        """,
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "s/2"], texts(6))
    await app.notes_of("started", 2)
    app.send(signal.SIGTERM)
    await app.said("finishing what was accepted")
    app.send(signal.SIGTERM)
    assert await app.ended() == 1
    assert not app.noted("handled")
    app.open("go")
    await app.start()
    handled = await app.notes_of("handled", 6)
    assert await app.stop() == 0
    fault.settle(texts(6), handled, seen="exit 1, 6 of 6 after the next start")


async def test_what_is_not_done_within_the_grace_is_cancelled_and_comes_again(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    fault("row 30; SIGTERM and a handler that never ends", "exit 0 once `grace` is over, redelivered")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(id: str, payload: str):
            note("started", payload)
            if id == "stuck":
                await opened("go")
            note("handled", payload)
        """,
        MQTTAPI_GRACE="0.5",
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/stuck", "s/1"], texts(6))
    await app.notes_of("handled", 3)
    assert await app.stop() == 0
    app.open("go")
    await app.start()
    handled = await app.notes_of("handled", 6)
    assert await app.stop() == 0
    # Those of s/1 ended behind the one that is stuck: acknowledgements leave in order.
    fault.settle(texts(6), handled, twice=["1", "3", "5"])


@pytest.mark.parametrize("state", ["never there", "gone", "silent"])
async def test_a_signal_ends_an_app_whose_broker_is_away(
    mosquitto: Mosquitto, launch: Launch, fault: Row, state: str
) -> None:
    fault(f"row 30; SIGTERM while the broker is {state}", "exit 0, well within the grace")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(): ...
        """,
        MQTTAPI_GRACE="60",
    )
    if state == "never there":
        mosquitto.stop()
        app.launch()
        await app.said("trying again")
    else:
        await app.start()
        if state == "gone":
            mosquitto.stop()
            await app.said("connection lost")
        else:
            mosquitto.pause()
    assert await app.stop() == 0
    fault.saw("exit 0")


async def test_a_connection_lost_while_draining_loses_nothing(
    mosquitto: Mosquitto, proxy: Before, launch: Launch, fault: Row
) -> None:
    fault(
        "row 30; the connection is reset while SIGTERM drains", "drained, exit 0; what was not acknowledged comes again"
    )
    between = await proxy(mosquitto.port)
    app = launch(
        between.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            note("started", payload)
            await opened("go")
            note("handled", payload)
        """,
        MQTTAPI_MAX_IN_FLIGHT="10",
    )
    await app.start()
    await publish_all(mosquitto.url, [f"s/{number}" for number in range(20)], texts(20))
    await app.notes_of("started", 10)
    app.send(signal.SIGTERM)
    await app.said("finishing what was accepted")
    between.reset()
    app.open("go")
    assert await app.ended() == 0
    drained = app.noted("handled")
    assert set(drained) == set(app.noted("started"))
    await app.start()
    handled = await app.notes_of("handled", 20)
    assert await app.stop() == 0
    fault.settle(texts(20), handled, twice=drained)


async def test_a_stopped_process_goes_on_where_it_was(mosquitto: Mosquitto, launch: Launch, fault: Row) -> None:
    fault("the app's process is stopped (SIGSTOP) until the broker gives it up, then continued", "nothing lost")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>")
        async def handle(payload: str):
            note("handled", payload)
        """,
        MQTT_KEEPALIVE="1",
    )
    await app.start()
    app.send(signal.SIGSTOP)
    await publish_all(mosquitto.url, ["s/1", "s/2"], texts(50))
    await eventually(lambda: "Client faults-0-0 has exceeded timeout" in mosquitto.log(), what=mosquitto.log)
    app.send(signal.SIGCONT)
    handled = await app.notes_of("handled", 50)
    assert await app.stop() == 0
    fault.settle(texts(50), handled, twice=texts(50))


async def test_two_processes_of_one_machine_do_not_share_a_client_id(
    mosquitto: Mosquitto, launch: Launch, fault: Row, tmp_path: Path
) -> None:
    fault("row 17; a second process with the same client id on this machine", "exit 3 and the pid of the first")
    source = '@app.topic("s/<id>")\nasync def handle(payload: str):\n    note("handled", payload)\n'
    shared = {"MQTTAPI_RUNTIME_DIR": str(tmp_path / "runtime"), "MQTT_CLIENT_ID": "same", "MQTTAPI_GRACE": "1"}
    first = launch(mosquitto.url, source, instance="1", **shared)
    second = launch(mosquitto.url, source, instance="2", **shared)
    await first.start()
    second.launch()
    assert await second.ended() == 3
    assert first.process is not None
    assert str(first.process.pid) in second.log
    await publish_all(mosquitto.url, "s/1", texts(3))
    handled = await first.notes_of("handled", 3)
    assert await first.stop() == 0
    fault.settle(texts(3), handled, seen="exit 3, names the pid; the first one goes on")


async def test_two_machines_with_one_client_id_slow_down_and_say_so(
    mosquitto: Mosquitto, launch: Launch, fault: Row
) -> None:
    """mosquitto closes the older connection without a word, so neither can know for sure."""
    fault("row 17; two machines with one client id", "ERROR that asks whether it is used elsewhere, few connects")
    source = '@app.topic("s/<id>")\nasync def handle(payload: str):\n    note("handled", payload)\n'
    first = launch(mosquitto.url, source, instance="1", MQTT_CLIENT_ID="same")
    second = launch(mosquitto.url, source, instance="2", MQTT_CLIENT_ID="same")
    await first.start()
    second.launch()
    await eventually(
        lambda: any("used elsewhere" in app.log or "taken over" in app.log for app in (first, second)),
        within=25,
        what=lambda: f"a word about it:\n{first.log}\n{second.log}",
    )
    connects = mosquitto.log().count("as same-0 (")
    assert connects < 20, mosquitto.log()
    fault.saw(f"said after {connects} connects")


@pytest.mark.parametrize("offset", ["+2h", "-2h"])
async def test_a_clock_that_jumps_changes_nothing(
    mosquitto: Mosquitto, launch: Launch, fault: Row, offset: str, tmp_path: Path
) -> None:
    fault(f"row 29; the clock jumps by {offset[:-1]} hours (libfaketime)", "no time-out, no reconnect, no second run")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        reason = "libfaketime is not installed (scripts/test installs it with apt-get where it may)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    app = launch(
        mosquitto.url,
        """
        @app.topic("s/<id>", timeout=30)
        async def handle(payload: str):
            note("started", payload)
            await opened("go")
            note("handled", payload)

        @app.topic("clock")
        async def clock(payload: str):
            note("time", int(time.time()))
        """,
        LD_PRELOAD=str(library),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        MQTT_KEEPALIVE="1",
    )
    await app.start()
    await publish_all(mosquitto.url, ["s/1", "clock"], ["x", "before"])
    await app.notes_of("started")
    (before,) = await app.notes_of("time")
    clock.write_text(offset)
    await publish_all(mosquitto.url, "clock", ["after"])
    await app.notes_of("time", 2)
    (after,) = set(app.noted("time")) - {before}
    assert abs(int(after) - int(before)) > 3600
    app.open("go")
    handled = await app.notes_of("handled")
    assert await app.stop() == 0
    assert "connection lost" not in app.log
    assert "has exceeded timeout" not in mosquitto.log()
    fault.settle(["x"], handled, seen=f"the app's clock jumped by {int(after) - int(before)} s, nothing else happened")
