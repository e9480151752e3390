"""What goes wrong while a pool is scaled, reloaded or watched stops nothing that works."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.command_line import children, is_alive
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import publish_each as publish
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine, Running

APP = """\
import asyncio, contextlib, os, sys, time
from mqttapi import App

@contextlib.asynccontextmanager
async def lifespan(app):
    STARTS
    yield

app = App("pool", lifespan=lifespan)

@app.topic("shared/<id>", shared=True, workers=2, ordered_by=None)
async def share(id: str, payload: str) -> None:
    WORK
    print("handled", payload, app.worker.slot, app.worker.size, flush=True)
"""
BROKEN = "raise RuntimeError('no such table')"


def write(mqttapi: CommandLine, *, starts: str = "pass", work: str = "pass") -> None:
    mqttapi.write("main.py", APP.replace("STARTS", starts).replace("WORK", work))


def start(mqttapi: CommandLine, broker: Mosquitto, *options: str, size: int = 2, **environment: str) -> Running:
    mqttapi.environment |= {"MQTT_INSTANCE": "x"}
    pool = mqttapi.start("run", "--broker", broker.url, *options, **environment)
    pool.wait_for(f"all {size} workers are ready")
    return pool


def handles(pool: Running, broker: Mosquitto, payload: str) -> None:
    """The pool handles messages: some of several, as mosquitto keeps those for a member that is away until it is back."""
    publish(broker, "shared/1", *(f"{payload}{number}" for number in range(8)))
    pool.wait_for(f"handled {payload}")


def test_new_code_that_does_not_start_ends_neither_the_pool_nor_the_other_workers(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto)
    other = pool.worker(1)
    write(mqttapi, starts=BROKEN)
    failed = mqttapi("reload")
    assert failed.returncode == 2
    assert "worker 0 has died 5 times in a row before it was ready; its log says why" in failed.stderr
    handles(pool, mosquitto, "a")
    assert other in pool.children()
    write(mqttapi)
    assert mqttapi("reload").stdout == "reloaded: 2 workers run the new code\n"
    handles(pool, mosquitto, "b")
    assert pool.stop() == 0


def test_workers_that_cannot_be_added_end_nothing(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto)
    mqttapi.write("main.py", "import nonexistent\n")
    failed = mqttapi("scale", "3")
    assert failed.returncode == 2
    assert "worker 2 has died 5 times in a row before it was ready" in failed.stderr
    handles(pool, mosquitto, "a")
    assert mqttapi("scale", "2").stdout == "2 workers\n"
    assert pool.stop() == 0


def test_one_worker_that_does_not_start_at_first_does_not_end_those_that_did(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """At the start one death is enough, but only where nobody was ready."""
    write(
        mqttapi,
        starts="first = app.worker.slot == 1 and not os.path.exists('tried')\n"
        "    if first: open('tried', 'w').close()\n"
        "    if first: raise RuntimeError('not yet')\n"
        "    while app.worker.slot == 1 and not os.path.exists('go'): await asyncio.sleep(0.01)",
    )
    pool = mqttapi.start("run", "--broker", mosquitto.url, MQTT_INSTANCE="x")
    pool.wait_for("connected to")
    (mqttapi.directory / "go").touch()
    pool.wait_for("all 2 workers are ready")
    assert pool.stop() == 0


def test_with_keep_going_it_goes_on_where_the_first_start_fails(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi, starts="if not os.path.exists('there'): raise RuntimeError('not there')")
    pool = mqttapi.start("run", "--broker", mosquitto.url, "--keep-going", MQTT_INSTANCE="x")
    pool.wait_for("ended with exit code 1: starting it again")
    (mqttapi.directory / "there").touch()
    pool.wait_for("all 2 workers are ready")
    assert pool.stop() == 0


@pytest.fixture
def hesitant(mqttapi: CommandLine, mosquitto: Mosquitto) -> Running:
    """A pool of two whose worker 1 was killed: the next one of its slot is being started until there is a file `go`."""
    write(mqttapi)
    mqttapi.environment |= {"MQTT_INSTANCE": "x"}
    pool = mqttapi.start_program(sys.executable, "-m", "tests.workers.hesitant", "run", "--broker", mosquitto.url)
    pool.wait_for("all 2 workers are ready")
    hesitate = mqttapi.directory / "hesitate"
    hesitate.touch()
    os.kill(pool.worker(1), signal.SIGKILL)
    eventually_sync(lambda: not hesitate.exists(), what=lambda: pool.output)
    return pool


def test_a_worker_that_is_being_started_when_its_slot_goes_away_goes_with_it(
    mqttapi: CommandLine, mosquitto: Mosquitto, hesitant: Running
) -> None:
    hesitant.send(signal.SIGTTOU)
    hesitant.wait_for("worker 1 goes away while it is not connected")
    (mqttapi.directory / "go").touch()
    hesitant.wait_for("mqttapi.workers: 1 worker\n")
    assert len(hesitant.children()) == 1
    handles(hesitant, mosquitto, "a")
    assert hesitant.stop() == 0


def test_a_worker_that_is_being_started_when_its_slot_is_reloaded_is_replaced(
    mqttapi: CommandLine, hesitant: Running
) -> None:
    former = set(hesitant.children())
    hesitant.send(signal.SIGHUP)
    eventually_sync(lambda: len(set(hesitant.children()) - former) == 2, within=20, what=lambda: hesitant.output)
    (mqttapi.directory / "go").touch()
    hesitant.wait_for("reloaded: 2 workers run the new code")
    assert not former.intersection(hesitant.children())
    assert len(hesitant.children()) == 2
    assert hesitant.stop() == 0


def test_new_code_for_fewer_workers_takes_none_of_them_for_one_of_an_earlier_start(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto)
    mqttapi.write("main.py", (mqttapi.directory / "main.py").read_text().replace("workers=2", "workers=1"))
    assert mqttapi("reload").stdout == "reloaded: 1 worker runs the new code\n"
    assert "earlier start" not in pool.output
    assert len(pool.children()) == 1
    handles(pool, mosquitto, "a")
    assert pool.stop() == 0


def test_each_worker_knows_the_size_after_a_change(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto)
    assert mqttapi("scale", "3").returncode == 0
    publish(mosquitto, "shared/1", *map(str, range(60)))
    eventually_sync(
        lambda: len(set(re.findall(r"^handled \d+ (\d) 3$", pool.output, re.MULTILINE))) == 3, what=lambda: pool.output
    )
    assert not re.search(r"^handled \d+ \d 2$", pool.output, re.MULTILINE)
    assert pool.stop() == 0


def test_a_worker_leaves_though_the_broker_is_away_and_tells_the_way_to_rescue_it(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto, MQTTAPI_GRACE="1")
    mosquitto.stop()
    pool.wait_for("connection lost", times=2)
    assert mqttapi("scale", "1").stdout == "1 worker\n"
    assert "mqttapi rescue pool-x-1" in pool.output
    assert pool.stop() == 0


def test_sessions_of_workers_that_a_former_start_had_are_told(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi)
    pool = start(mqttapi, mosquitto)
    assert mqttapi("scale", "3").returncode == 0
    assert pool.stop() == 0
    again = start(mqttapi, mosquitto)
    again.wait_for("pool-x-2, a worker of an earlier start, has left a session")
    handles(again, mosquitto, "a")
    assert mqttapi("rescue", "--broker", mosquitto.url, "pool-x-2").returncode == 0
    assert again.stop() == 0
    assert "earlier start" not in start(mqttapi, mosquitto).output


@pytest.mark.parametrize("start_in", ["os.fork() or time.sleep(100)", "PROCESS"])
def test_what_a_handler_has_forked_does_not_keep_the_client_id(
    mqttapi: CommandLine, mosquitto: Mosquitto, start_in: str
) -> None:
    forked = (
        "import multiprocessing; multiprocessing.get_context('fork').Process(target=time.sleep, args=(100,)).start()"
    )
    write(mqttapi, work=f"if payload == 'fork0': {forked if start_in == 'PROCESS' else start_in}")
    mqttapi.environment |= {"MQTT_INSTANCE": "x"}
    pool = mqttapi.start("run", "--broker", mosquitto.url, "--workers", "1")
    pool.wait_for("subscribed")
    handles(pool, mosquitto, "fork")
    killed = pool.worker()
    orphans = children(killed)
    try:
        assert orphans
        os.kill(killed, signal.SIGKILL)
        pool.wait_for("subscribed", times=2)
        handles(pool, mosquitto, "a")
        assert pool.stop() == 0
    finally:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_stands_still_before_it_was_ready_writes_its_stack(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    write(mqttapi, starts="time.sleep(1000)")
    pool = mqttapi.start_program(
        sys.executable, "-m", "tests.workers.impatient", "run", "--broker", mosquitto.url, MQTTAPI_GRACE="1"
    )
    pool.wait_for("has said nothing for 2 s, and has not been ready yet")
    pool.wait_for('main.py", line 6 in lifespan')
    pool.send(signal.SIGTERM)
    pool.wait_for("a second signal stops at once")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 1


def test_a_worker_that_is_too_slow_to_write_its_stack_is_not_killed_by_the_request(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """It has not even imported what writes it."""
    write(mqttapi)
    mqttapi.write(
        "slow/sitecustomize.py",
        "import os, sys, time\n"
        "while 'mqttapi.cli.worker' in sys.orig_argv and not os.path.exists('go'): time.sleep(0.01)\n",
    )
    pool = mqttapi.start_program(
        *(sys.executable, "-m", "tests.workers.impatient", "run", "--broker", mosquitto.url, "--workers", "1"),
        PYTHONPATH=os.pathsep.join((str(mqttapi.directory / "slow"), mqttapi.environment["PYTHONPATH"])),
    )
    pool.wait_for("has said nothing for 2 s, and has not been ready yet")
    (mqttapi.directory / "go").touch()
    pool.wait_for("subscribed")
    assert "was killed" not in pool.output
    assert pool.stop() == 0


@pytest.fixture
def unread(mqttapi: CommandLine, mosquitto: Mosquitto) -> Iterator[subprocess.Popen[bytes]]:
    """A pool whose output nobody reads any more: the pipe is full, and its worker stands still in a print."""
    write(mqttapi, work="open('began', 'a').write('.'); print(payload * 200_000, flush=True)")
    source, sink = os.pipe()
    with subprocess.Popen(
        (sys.executable, "-m", "mqttapi", "run", "--broker", mosquitto.url, "--workers", "1"),
        cwd=mqttapi.directory,
        env=mqttapi.environment | {"MQTT_INSTANCE": "x", "MQTTAPI_GRACE": "1"},
        stdout=sink,
        stderr=sink,
        start_new_session=True,
    ) as pool:
        os.close(sink)
        said = b""
        while b"subscribed" not in said:
            said += os.read(source, 4096)
        publish(mosquitto, "shared/1", "a", "b", "c", "d")
        eventually_sync((mqttapi.directory / "began").exists)
        yield pool
        pool.kill()
    os.close(source)


def test_who_does_not_read_what_is_said_keeps_nobody_from_ending(
    mqttapi: CommandLine, unread: subprocess.Popen[bytes]
) -> None:
    unread.send_signal(signal.SIGTERM)
    eventually_sync(lambda: '"stopping"' in mqttapi("ps", "--json").stdout)
    unread.send_signal(signal.SIGTERM)
    assert unread.wait(30) == 1


def test_who_does_not_read_keeps_no_worker_alive_whose_supervisor_was_killed(unread: subprocess.Popen[bytes]) -> None:
    (worker,) = children(unread.pid)
    unread.kill()
    eventually_sync(lambda: not is_alive(worker), within=20)


def test_a_worker_that_has_drained_and_cannot_end_is_not_left_alone(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    """A thread of the user's does not end, so the interpreter waits; and then the supervisor is killed."""
    write(mqttapi, starts="threading.Thread(target=lasts, args=(asyncio.get_running_loop(),)).start()")
    with (mqttapi.directory / "main.py").open("a") as file:
        file.write(
            "import threading\n"
            "def lasts(loop):\n"
            "    while not loop.is_closed(): time.sleep(0.01)\n"
            "    print('drained', flush=True)\n"
            "    time.sleep(1000)\n"
        )
    mqttapi.environment |= {"MQTT_INSTANCE": "x"}
    pool = mqttapi.start("run", "--broker", mosquitto.url, "--workers", "1", MQTTAPI_GRACE="1")
    pool.wait_for("subscribed")
    (worker,) = pool.children()
    pool.send(signal.SIGTERM)
    pool.wait_for("drained")
    pool.process.kill()
    try:
        eventually_sync(lambda: not is_alive(worker), what=lambda: pool.output)
    finally:
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)


def test_what_ends_a_worker_is_a_record_where_logs_are_json(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi, starts=BROKEN)
    done = mqttapi("run", "--broker", mosquitto.url, "--log-format", "json", MQTT_INSTANCE="x")
    assert done.returncode == 1
    assert all(line.startswith("{") for line in done.stderr.splitlines()), done.stderr
    assert '"slot": 0' in done.stderr
    assert "no such table" in done.stderr


def test_an_app_that_exits_before_it_was_ready_is_told_of(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    write(mqttapi, starts="sys.exit(5)")
    done = mqttapi("run", "--broker", mosquitto.url, MQTT_INSTANCE="x")
    assert done.returncode == 1
    assert "the app has ended the process before it was ready, by SystemExit(5)" in done.stderr
