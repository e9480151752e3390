"""`mqttapi run` with several workers: real processes, real signals, a real broker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.command_line import is_alive
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.mqtt import publish_each as publish
from tests.support.waiting import eventually_sync

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine, Running

APP = """\
import asyncio, os, sys, time
from mqttapi import App

with open("imported", "a") as file:
    file.write(f"{os.getpid()}\\n")

app = App("pool")

@app.topic("shared/<seconds>", shared=True, workers=3, ordered_by=None)
async def share(seconds: float, payload: str) -> None:
    print("begin", payload, app.worker.slot, flush=True)
    await asyncio.sleep(seconds)
    print("end", payload, app.worker.slot, flush=True)

@app.topic("plain/<id>")
async def plain(payload: str) -> None:
    print("plain", payload, app.worker.slot, flush=True)

@app.topic("block/<id>", shared=True, workers=3)
async def block(payload: str) -> None:
    print("blocking", payload, flush=True)
    time.sleep(float(payload))
"""


def start(mqttapi: CommandLine, broker: Mosquitto, *options: str, size: int = 3, **environment: str) -> Running:
    if not (mqttapi.directory / "main.py").exists():
        mqttapi.write("main.py", APP)
    pool = mqttapi.start("run", "--broker", broker.url, *options, **{"MQTT_INSTANCE": "x", **environment})
    if size > 1:
        pool.wait_for(f"all {size} workers are ready")
    else:
        pool.wait_for("subscribed")
    return pool


def said(pool: Running, word: str) -> Counter[str]:
    """The payloads behind a word, and how often."""
    return Counter(re.findall(rf"^{word} (\S+)", pool.output, re.MULTILINE))


def slots(pool: Running, word: str) -> Counter[int]:
    """How often each slot has said a word."""
    return Counter(int(slot) for slot in re.findall(rf"^{word} \S+ (\d+)$", pool.output, re.MULTILINE))


def test_the_messages_of_a_shared_route_are_spread_and_each_is_handled_once(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    numbers = [str(number) for number in range(90)]
    publish(mosquitto, "shared/0", *numbers)
    eventually_sync(lambda: said(pool, "end") == Counter(numbers), within=15, what=lambda: pool.output)
    shares = slots(pool, "end")
    assert set(shares) == {0, 1, 2}
    assert all(0.2 <= count / len(numbers) <= 0.5 for count in shares.values()), shares
    assert pool.stop() == 0


def test_what_is_not_shared_is_handled_once_by_the_first_slot(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    publish(mosquitto, "plain/1", "a", "b", "c")
    eventually_sync(lambda: said(pool, "plain") == Counter("abc"), what=lambda: pool.output)
    assert pool.stop() == 0
    assert slots(pool, "plain") == {0: 3}


def test_spread_routes_are_on_one_slot_each(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    mqttapi.write(
        "main.py",
        "from mqttapi import App\n"
        "app = App('pool', placement='spread')\n"
        "async def handle(payload: str):\n"
        "    print('plain', payload, app.worker.slot, flush=True)\n"
        "async def share(): ...\n"
        "for number in range(12):\n"
        "    app.on(f'plain/{number}', handle, name=str(number))\n"
        "app.on('shared', share, shared=True, workers=3)\n",
    )
    pool = start(mqttapi, mosquitto)
    for number in range(12):
        publish(mosquitto, f"plain/{number}", str(number))
    numbers = [str(number) for number in range(12)]
    eventually_sync(lambda: said(pool, "plain") == Counter(numbers), within=15, what=lambda: pool.output)
    assert pool.stop() == 0
    assert len(slots(pool, "plain")) == 3


@pytest.mark.parametrize(
    ("options", "environment", "size"),
    [((), {"WORKER_COUNT": "2"}, 2), (("--workers", "2"), {"WORKER_COUNT": "5"}, 2), ((), {}, 1)],
)
def test_how_many_workers_there_are_when_the_routes_do_not_say(
    mqttapi: CommandLine, mosquitto: Mosquitto, options: tuple[str, ...], environment: dict[str, str], size: int
) -> None:
    mqttapi.write(
        "main.py",
        "from mqttapi import App\napp = App('pool')\n@app.topic('shared', shared=True)\nasync def share(): ...\n",
    )
    pool = start(mqttapi, mosquitto, *options, size=size, **environment)
    assert len(pool.children()) == size
    assert pool.stop() == 0


def test_the_supervisor_never_imports_the_app(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    imported = sorted(int(line) for line in (mqttapi.directory / "imported").read_text().split())
    assert imported == sorted(pool.children())
    assert pool.stop() == 0


def test_a_killed_worker_is_back_in_its_slot_and_its_message_runs_again(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    killed = pool.worker(1)
    publish(mosquitto, "shared/2", *"abcdef")
    eventually_sync(lambda: len(said(pool, "begin")) == 6, what=lambda: pool.output)
    held = set(re.findall(r"^begin (\S+) 1$", pool.output, re.MULTILINE))
    os.kill(killed, signal.SIGKILL)
    pool.wait_for(f"worker 1 (pid {killed}) was killed by SIGKILL: starting it again at once")
    pool.wait_for("as pool-x-1, subscribed", times=2)
    eventually_sync(lambda: set(said(pool, "end")) == set("abcdef"), what=lambda: pool.output)
    assert pool.stop() == 0
    assert said(pool, "end") == Counter("abcdef")
    assert {payload for payload, runs in said(pool, "begin").items() if runs == 2} == held
    assert held


def test_workers_whose_supervisor_was_killed_finish_what_they_have_and_end(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    publish(mosquitto, "shared/2", *"abcdef")
    eventually_sync(lambda: len(said(pool, "begin")) == 6, what=lambda: pool.output)
    pids = pool.children()
    assert len(pids) == 3
    pool.process.kill()
    eventually_sync(lambda: not any(map(is_alive, pids)), within=15, what=lambda: pool.output)
    assert said(pool, "end") == Counter("abcdef")
    assert "the supervisor is gone: finishing what was accepted" in pool.output


def test_a_worker_that_is_busy_ends_too_when_its_supervisor_was_killed(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """Its event loop never gets to know of it."""
    pool = start(mqttapi, mosquitto, MQTTAPI_GRACE="0.5")
    publish(mosquitto, "block/1", "600")
    pool.wait_for("blocking 600")
    pids = pool.children()
    pool.process.kill()
    eventually_sync(lambda: not any(map(is_alive, pids)), within=15, what=lambda: pool.output)


def test_a_supervisor_started_at_once_after_a_kill_waits_for_the_former_workers(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    first = start(mqttapi, mosquitto)
    publish(mosquitto, "shared/1", *"abc")
    eventually_sync(lambda: len(said(first, "begin")) == 3, what=lambda: first.output)
    first.process.kill()
    eventually_sync(lambda: first.output.count("the supervisor is gone") == 3, what=lambda: first.output)
    second = start(mqttapi, mosquitto)
    assert second.stop() == 0
    assert said(first, "end") == Counter("abc")
    assert not said(second, "begin")


def test_all_workers_drain_at_the_same_time_and_nothing_runs_twice(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    numbers = [str(number) for number in range(300)]
    first = start(mqttapi, mosquitto)
    publish(mosquitto, "shared/0.2", *numbers[:150])
    eventually_sync(lambda: len(said(first, "end")) >= 10, what=lambda: first.output)
    assert first.stop() == 0
    publish(mosquitto, "shared/0.2", *numbers[150:])
    second = start(mqttapi, mosquitto)
    eventually_sync(
        lambda: said(first, "end") + said(second, "end") >= Counter(numbers), within=20, what=lambda: second.output
    )
    assert second.stop() == 0
    assert said(first, "end") + said(second, "end") == Counter(numbers)
    assert said(first, "begin") == said(first, "end")


def test_a_second_signal_to_the_supervisor_stops_at_once(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    publish(mosquitto, "shared/60", *"abc")
    eventually_sync(lambda: len(said(pool, "begin")) == 3, what=lambda: pool.output)
    pool.send(signal.SIGTERM)
    pool.wait_for("a second signal stops at once")
    assert pool.stop(signal.SIGINT) == 1
    again = start(mqttapi, mosquitto, MQTTAPI_GRACE="0.2")
    eventually_sync(lambda: set(said(again, "begin")) == set("abc"), what=lambda: again.output)
    again.stop()


def test_a_first_signal_cuts_nothing_short_that_ends_for_another_reason(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """As where `mqttapi stop --no-wait` is told to a service before the service manager stops it."""
    pool = start(mqttapi, mosquitto)
    publish(mosquitto, "shared/1", *"abc")
    eventually_sync(lambda: len(said(pool, "begin")) == 3, what=lambda: pool.output)
    assert mqttapi("stop", "--no-wait").returncode == 0
    assert pool.stop() == 0
    assert said(pool, "end") == Counter("abc")


def test_signals_while_it_ends_do_not_change_what_its_exit_code_may_be(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)

    def told_again() -> bool:
        pool.send(signal.SIGTERM)
        return pool.process.poll() is not None

    eventually_sync(told_again)
    assert pool.process.returncode in {0, 1}


def test_signals_to_a_worker_drain_it_however_many_and_it_is_started_again(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    pid = pool.worker(1)
    publish(mosquitto, "shared/0.5", *"abc")
    eventually_sync(lambda: len(said(pool, "begin")) == 3, what=lambda: pool.output)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    pool.wait_for(f"worker 1 (pid {pid}) ended with exit code 0: starting it again at once")
    pool.wait_for("as pool-x-1, subscribed", times=2)
    assert pool.stop() == 0
    assert said(pool, "begin") == said(pool, "end") == Counter("abc")


def test_a_hang_up_replaces_the_workers_one_by_one_with_the_new_code(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    former = pool.children()
    mqttapi.write("main.py", APP.replace('print("end"', 'print("new-end"'))
    pool.send(signal.SIGHUP)
    pool.wait_for("reloaded: 3 workers run the new code")
    assert not set(former) & set(pool.children())
    publish(mosquitto, "shared/0", *"abcdef")
    eventually_sync(lambda: said(pool, "new-end") == Counter("abcdef"), what=lambda: pool.output)
    assert pool.stop() == 0
    assert "starting it again" not in pool.output


def test_nothing_is_lost_or_doubled_over_a_hang_up_under_load(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    numbers = [str(number) for number in range(600)]
    publish(mosquitto, "shared/0.01", *numbers[:100])
    pool.send(signal.SIGHUP)
    publish(mosquitto, "shared/0.01", *numbers[100:])
    pool.wait_for("reloaded: 3 workers run the new code")
    eventually_sync(lambda: set(said(pool, "end")) == set(numbers), within=20, what=lambda: pool.output[-2000:])
    assert pool.stop() == 0
    assert said(pool, "end") == Counter(numbers)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (2, 3)])
def test_nothing_is_lost_where_the_new_code_wants_another_number_of_workers(
    mqttapi: CommandLine, mosquitto: Mosquitto, before: int, after: int
) -> None:
    """Routes that are not shared go to another worker then: it has subscribed before the former one gives them up."""
    code = (
        "from mqttapi import App\n"
        "app = App('pool', placement='spread')\n"
        "async def handle(payload: str):\n"
        "    print('plain', payload, flush=True)\n"
        "async def share(): ...\n"
        "for number in range(6):\n"
        "    app.on(f'plain/{number}', handle, name=str(number))\n"
        "app.on('shared', share, shared=True, workers=WORKERS)\n"
    )
    mqttapi.write("main.py", code.replace("WORKERS", str(before)))
    pool = start(mqttapi, mosquitto, size=before)
    mqttapi.write("main.py", code.replace("WORKERS", str(after)))
    pool.send(signal.SIGHUP)
    sent = 0

    def publish_until_reloaded() -> bool:
        nonlocal sent
        for number in range(6):
            publish(mosquitto, f"plain/{number}", f"{sent}.{number}")
        sent += 1
        return f"reloaded: {after} worker" in pool.output

    eventually_sync(publish_until_reloaded, within=30, what=lambda: pool.output)
    expected = {f"{count}.{number}" for count in range(sent) for number in range(6)}
    eventually_sync(lambda: set(said(pool, "plain")) == expected, what=lambda: pool.output[-2000:])
    assert pool.stop() == 0


def test_code_that_cannot_be_loaded_leaves_the_old_one_at_work(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    former = pool.children()
    mqttapi.write("main.py", "raise RuntimeError('not today')\n")
    pool.send(signal.SIGHUP)
    pool.wait_for("ended with exit code 2 before it had loaded the app; its log says why. The old one goes on")
    assert "RuntimeError: not today" in pool.output
    assert set(pool.children()) == set(former)
    publish(mosquitto, "plain/1", "a")
    pool.wait_for("plain a 0")
    assert pool.stop() == 0


def test_signals_make_it_one_worker_more_and_one_less(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    pool.send(signal.SIGTTIN)
    pool.wait_for("mqttapi.workers: 4 workers")
    assert len(pool.children()) == 4
    pool.send(signal.SIGTTOU)
    pool.wait_for("mqttapi.workers: 3 workers")
    assert len(pool.children()) == 3
    assert pool.stop() == 0


def has_session(broker: Mosquitto, client_id: str) -> bool:
    """Whether the broker has kept a session; it has none afterwards."""

    async def look() -> bool:
        async with client(broker.url, client_id=client_id, clean=False) as visitor:
            return visitor.session_present

    return asyncio.run(look())


def test_a_worker_that_goes_away_under_load_loses_nothing_and_leaves_no_session(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    pool = start(mqttapi, mosquitto)
    numbers = [str(number) for number in range(400)]
    publish(mosquitto, "shared/0.02", *numbers[:200])
    pool.send(signal.SIGTTOU)
    publish(mosquitto, "shared/0.02", *numbers[200:])
    pool.wait_for("mqttapi.workers: 2 workers")
    eventually_sync(lambda: said(pool, "end") == Counter(numbers), within=20, what=lambda: pool.output[-2000:])
    assert pool.stop() == 0
    assert said(pool, "end") == Counter(numbers)
    assert [has_session(mosquitto, f"pool-x-{slot}") for slot in range(3)] == [True, True, False]
    assert not has_session(mosquitto, "pool-x-2-pub")


def test_a_worker_that_goes_away_while_it_is_dead_is_told_with_the_way_to_rescue_its_session(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", APP + "\nif os.path.exists('broken'): os.kill(os.getpid(), 9)\n")
    pool = start(mqttapi, mosquitto)
    (mqttapi.directory / "broken").touch()
    os.kill(pool.worker(2), signal.SIGKILL)
    pool.wait_for("starting it again in 1 s")
    pool.send(signal.SIGTTOU)
    pool.wait_for("worker 2 goes away while it is not connected")
    assert "To handle that: mqttapi rescue pool-x-2" in pool.output
    pool.wait_for("mqttapi.workers: 2 workers")
    assert pool.stop() == 0
    rescued = mqttapi("rescue", "pool-x-2", "--broker", mosquitto.url)
    assert rescued.returncode != 0  # the app cannot be imported
    (mqttapi.directory / "broken").unlink()
    rescued = mqttapi("rescue", "pool-x-2", "--broker", mosquitto.url)
    assert rescued.returncode == 0, rescued.stderr
    assert not has_session(mosquitto, "pool-x-2")


def test_a_worker_that_dies_before_it_is_ready_again_and_again_ends_the_pool(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    mqttapi.write("main.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = mqttapi("run", "--broker", mosquitto.url)
    assert done.returncode == 1
    assert done.stderr.count("was killed by SIGKILL: starting it again") == 4
    assert (
        "worker 0 has died 5 times in a row before it was ready, the last time it was killed by SIGKILL: giving up. "
        "--keep-going tries for ever"
    ) in done.stderr


def test_with_keep_going_it_does_not_give_up(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    mqttapi.write(
        "main.py",
        "import os, signal\n"
        "with open('starts', 'a+') as file:\n"
        "    file.write('x')\n"
        "    file.seek(0)\n"
        "    starts = len(file.read())\n"
        "if starts < 6:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "from mqttapi import App\n"
        "app = App('late')\n",
    )
    pool = mqttapi.start("run", "--broker", mosquitto.url, "--keep-going")
    eventually_sync(lambda: "connected to" in pool.output, within=40, what=lambda: pool.output)
    assert pool.stop() == 0


def test_a_worker_that_loses_its_client_id_takes_the_others_along(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    """Three closes soon after the CONNACK, or 0x8E: mosquitto 2.0.11 says nothing, so another app has the lock."""
    pool = start(mqttapi, mosquitto)
    second = mqttapi("run", "--broker", mosquitto.url, MQTT_INSTANCE="x")
    assert second.returncode == 3
    assert "is in use by process" in second.stderr
    assert pool.stop() == 0


def test_the_logs_of_all_workers_say_whose_they_are(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    pool = start(mqttapi, mosquitto)
    for slot in range(3):
        assert re.search(rf"INFO    \[{slot} {pool.worker(slot)}\] mqttapi.link: connected to", pool.output)
    assert pool.stop() == 0


def test_json_logs_have_the_slot_and_the_process_as_fields(mqttapi: CommandLine, mosquitto: Mosquitto) -> None:
    import json

    mqttapi.write("main.py", "from mqttapi import App\napp = App('pool')\n")
    pool = start(mqttapi, mosquitto, "--log-format", "json", size=1)
    records = [json.loads(line) for line in pool.output.splitlines()]
    assert [(each["slot"], each["pid"]) for each in records if "connected to" in each["message"]] == [
        (0, pool.children()[0])
    ]
    assert pool.stop() == 0


def test_a_worker_that_says_nothing_is_replaced_and_its_stack_is_logged(
    mqttapi: CommandLine, mosquitto: Mosquitto
) -> None:
    """Its loop is blocked; half a minute is two seconds here."""
    mqttapi.write("main.py", APP)
    pool = mqttapi.start_program(
        sys.executable,
        "-m",
        "tests.workers.impatient",
        "run",
        "--broker",
        mosquitto.url,
        MQTT_INSTANCE="x",
        MQTTAPI_GRACE="1",
    )
    pool.wait_for("all 3 workers are ready")
    publish(mosquitto, "block/1", "30")
    pool.wait_for("has said nothing for 2 s")
    pool.wait_for('main.py", line 22 in block')
    pool.wait_for("was killed by SIGKILL: starting it again")
    pool.process.kill()
