from __future__ import annotations

from typing import Any

import pytest

from mqttapi.errors import ConfigurationError
from mqttapi.middleware import MaxAge
from tests.middleware.builtin.support import Clock, fate, message

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z
UNKNOWN = "rejected: it has no time that can be read, so its age cannot be known"


async def outcome(sent: str | None, sent_at: Any = "property.sent-at", **given: Any) -> str:
    context = message(properties={} if sent is None else {"sent-at": sent}, payload=given.pop("payload", b""))
    return await fate(MaxAge(60, sent_at, clock=Clock(NOW), **given), context)


@pytest.mark.parametrize(
    "sent",
    ["1699999940", "1699999940000", "1699999940.0", "2023-11-14T22:12:20Z", "2023-11-14T23:12:20+01:00", "2023-11-14T22:12:20"],
)  # fmt: skip
async def test_the_time_may_be_seconds_milliseconds_or_iso(sent: str) -> None:
    """This one is 60 s ago; one more is too old."""
    assert await outcome(sent) == "passed"
    assert await outcome(sent.replace("40", "39").replace(":20", ":19")) == "dropped: older than 60 s"


async def test_what_is_too_old_may_be_rejected() -> None:
    assert await outcome("0", too_old="reject") == "rejected: older than 60 s"


@pytest.mark.parametrize("payload", [b'{"meta": {"time": 1699999940}}', b'{"meta": {"time": "2023-11-14T22:12:20Z"}}'])
async def test_the_time_may_be_in_the_payload(payload: bytes) -> None:
    assert await outcome(None, "payload.meta.time", payload=payload) == "passed"
    assert await outcome(None, lambda context: context["payload"]["meta"]["time"], payload=payload) == "passed"


async def test_a_time_of_the_future_passes() -> None:
    assert await outcome("1800000000") == "passed"


@pytest.mark.parametrize("sent", [None, "", "soon", "nan", "1e300", "99999-01-01"])
async def test_a_message_without_a_time_is_rejected(sent: str | None) -> None:
    assert await outcome(sent) == UNKNOWN


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (3600, "passed"),
        (3540, "passed"),
        (3539, "dropped: older than 60 s"),
        (0, "dropped: older than 60 s"),
        (None, "rejected: it has no expiry, so its age cannot be known"),
    ],
)
async def test_what_has_gone_of_the_expiry_is_the_age(left: int | None, expected: str) -> None:
    assert await fate(MaxAge(60, lifetime=3600), message(expiry=left)) == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seconds": 0, "sent_at": "property.t"}, "seconds must be above 0, got 0"),
        ({"seconds": 60, "sent_at": "property.t", "too_old": "wait"}, "too_old must be 'drop' or 'reject', got 'wait'"),
        (
            {"seconds": 60},
            "give sent_at= (where a message has its time) or lifetime= (the expiry that senders use), one of them",
        ),
        ({"seconds": 60, "lifetime": 30}, "lifetime must be at least 60 s, got 30"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MaxAge(**arguments)
    assert str(caught.value) == f"MaxAge: {text}"
