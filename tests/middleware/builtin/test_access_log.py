from __future__ import annotations

import asyncio
import io
import json
import logging
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi.errors import ConfigurationError, Drop, Reject
from mqttapi.logs import JSONFormatter
from mqttapi.middleware import AccessLog
from tests.middleware.builtin.support import fate, message

if TYPE_CHECKING:
    from mqttapi import Context


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mqttapi.access")


def access_log(sample: float = 1.0) -> AccessLog:
    ticks = count()
    return AccessLog(sample, clock=lambda: next(ticks) * 0.0012)


async def test_one_line_for_a_message(caplog: pytest.LogCaptureFixture) -> None:
    await fate(access_log(), message(payload=b"21.5"))
    assert caplog.messages == ["sensors/7/data qos=1 4 B → ingest: done in 1.2 ms"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Drop("no"), "dropped"),
        (Reject("bad"), "rejected"),
        (ValueError("secret"), "failed (ValueError)"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
async def test_how_it_ended_and_no_text_of_an_error(
    error: BaseException, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(context: Context) -> None:
        raise error

    with pytest.raises(type(error)):
        await access_log().handle(message(), fail)
    assert caplog.messages == [f"sensors/7/data qos=1 0 B → ingest: {outcome} in 1.2 ms"]


async def test_a_topic_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    await fate(access_log(), message("sensors/a\nCRITICAL/data"))
    assert caplog.messages == [r"sensors/a\nCRITICAL/data qos=1 0 B → ingest: done in 1.2 ms"]


async def test_a_part_of_the_messages_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter([0.0, 0.24, 0.25, 0.99])
    log = AccessLog(0.25, random=lambda: next(numbers))
    for device in range(4):
        assert await fate(log, message(f"sensors/{device}/data")) == "passed"
    assert [text.split()[0] for text in caplog.messages] == ["sensors/0/data", "sensors/1/data"]


async def test_with_json_each_part_is_a_field() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logging.getLogger("mqttapi.access").addHandler(handler)
    try:
        await fate(access_log(), message(payload=b"21.5"))
    finally:
        logging.getLogger("mqttapi.access").removeHandler(handler)
    fields = json.loads(stream.getvalue())
    assert {
        name: fields[name] for name in ("topic", "qos", "bytes", "route", "outcome", "milliseconds", "attempt")
    } == {
        "topic": "sensors/7/data",
        "qos": 1,
        "bytes": 4,
        "route": "ingest",
        "outcome": "done",
        "milliseconds": 1.2,
        "attempt": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"level": "INFO"}, "level must be a number, such as logging.INFO, got 'INFO'"),
        ({"logger": None}, "logger must be the name of a logger, got None"),
    ],
)
def test_what_would_fail_at_each_message_is_refused_at_once(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AccessLog(**arguments)
    assert str(caught.value) == f"AccessLog: {text}"


@pytest.mark.parametrize("sample", [-0.1, 1.1, "all", True])
def test_a_sample_is_a_part(sample: float) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AccessLog(sample)
    assert str(caught.value) == f"AccessLog: sample must be a number from 0 to 1, got {sample!r}"
