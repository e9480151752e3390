"""`mqttapi pub` and `mqttapi sub` against a real broker."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine


def test_sub_prints_topic_and_payload_of_what_pub_sends(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    sub = mqttapi.start("sub", "console/#", "--broker", shared_mosquitto.url, "--count", "1")
    sub.wait_for("subscribed to console/#")
    done = mqttapi("pub", "console/a", "hello world", "--broker", shared_mosquitto.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sub.wait() == 0
    assert sub.output.splitlines()[-1] == "console/a hello world"


def test_sub_escapes_what_a_terminal_would_obey(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    sub = mqttapi.start("sub", "escape/#", "--broker", shared_mosquitto.url, "--count", "1")
    sub.wait_for("subscribed to")
    mqttapi("pub", "escape/é", "--file", "-", "--broker", shared_mosquitto.url, stdin=b"a\n\x1b[31m\xff")
    assert sub.wait() == 0
    assert sub.output.splitlines()[-1] == r"escape/é a\n\x1b[31m\xff"


def test_json_carries_the_properties_and_bytes_that_are_no_text(
    mqttapi: CommandLine, shared_mosquitto: Mosquitto
) -> None:
    sub = mqttapi.start("sub", "json/+", "--broker", shared_mosquitto.url, "--json", "--count", "2")
    sub.wait_for("subscribed to")
    mqttapi.write("payload", "{}")
    options = "--content-type text/plain --property k=1 --property k=2 --qos 2 --expiry 60 --file payload"
    mqttapi("pub", "json/text", *options.split(), MQTT_URL=shared_mosquitto.url)
    mqttapi("pub", "json/bytes", "--file", "-", "--qos", "0", "--broker", shared_mosquitto.url, stdin=b"\xff")
    assert sub.wait() == 0
    assert [json.loads(line) for line in sub.output.splitlines()[-2:]] == [
        {
            "topic": "json/text",
            "qos": 1,
            "retain": False,
            "payload": "{}",
            "content_type": "text/plain",
            "user_properties": [["k", "1"], ["k", "2"]],
        },
        {"topic": "json/bytes", "qos": 0, "retain": False, "payload_base64": "/w=="},
    ]


def test_a_retained_message_is_shown_to_a_later_subscriber(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi("pub", "kept/a", "1", "--retain", "--broker", shared_mosquitto.url)
    done = mqttapi("sub", "kept/#", "--count", "1", "--timeout", "20", "--broker", shared_mosquitto.url)
    assert (done.returncode, done.stdout) == (0, "kept/a 1\n")


def test_too_few_messages_in_time_is_a_failure(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    done = mqttapi("sub", "silent", "--count", "2", "--timeout", "0.2", "--broker", shared_mosquitto.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "mqttapi: received 0 of 2 messages in 0.2 s"


def test_a_timeout_without_a_count_is_the_natural_end(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    assert mqttapi("sub", "silent", "--timeout", "0.2", "--broker", shared_mosquitto.url).returncode == 0


def test_ctrl_c_is_the_natural_end_of_sub(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    sub = mqttapi.start("sub", "silent", "--broker", shared_mosquitto.url)
    sub.wait_for("subscribed to")
    assert sub.stop(signal.SIGINT) == 0
    assert "Traceback" not in sub.output


def test_a_broker_that_is_away_is_one_line_and_code_1(mqttapi: CommandLine) -> None:
    for command in (["pub", "a"], ["sub", "a"]):
        done = mqttapi(*command, "--broker", "mqtt://127.0.0.1:1")
        assert done.returncode == 1
        assert done.stderr == "mqttapi: cannot connect to mqtt://127.0.0.1:1: Connection refused\n"


def test_refused_credentials_are_one_line_code_1_and_keep_the_password(mqttapi: CommandLine) -> None:
    with Mosquitto(users={"alice": "secret"}) as broker:
        url = f"mqtt://alice:hunter2@127.0.0.1:{broker.port}"
        for command in (["pub", "a"], ["sub", "a"]):
            done = mqttapi(*command, "--broker", url)
            assert done.returncode == 1
            assert "Not authorized (0x87)" in done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert "hunter2" not in done.stderr
        good = url.replace("hunter2", "secret")
        assert mqttapi("pub", "a", "--broker", good).returncode == 0


def test_a_message_that_the_broker_refuses_is_code_1(mqttapi: CommandLine) -> None:
    with Mosquitto(acl="topic read #\n") as broker:
        done = mqttapi("pub", "a", "1", "--broker", broker.url)
        assert done.returncode == 1
        assert "0x87" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_they_speak_3_1_1_where_told_to(mqttapi: CommandLine, shared_mosquitto: Mosquitto) -> None:
    mqttapi("pub", "old/a", "1", "--retain", MQTT_URL=shared_mosquitto.url, MQTT_PROTOCOL="3.1.1")
    done = mqttapi("sub", "old/#", "--count", "1", MQTT_URL=shared_mosquitto.url, MQTT_PROTOCOL="3.1.1")
    assert done.stdout == "old/a 1\n"
