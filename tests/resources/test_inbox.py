"""The inbox: what is delivered again is not handled again, and what was rolled back is."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mqttapi import App, ConfigurationError, Context, Message, Publish, Reject, Retry
from mqttapi import Session as MQTTSession
from mqttapi.config import Settings
from mqttapi.resources import tables
from mqttapi.resources.inbox import NEVER, Inbox, _text
from mqttapi.resources.sql import Session
from mqttapi.testing import Delivery, TestClient
from tests.support.waiting import eventually


class Order(BaseModel):
    number: str


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def an_app(file: Path, **options: Any) -> App:
    return App("inbox", settings=Settings(database_url=f"sqlite:///{file}", instance="test"), **options)


def counting(file: Path, key: Any = "id", **options: Any) -> tuple[App, Counter[str]]:
    app, handled = an_app(file), Counter[str]()

    @app.topic("s/<id>", inbox=Inbox(key=key), name="count", **options)
    async def count(payload: str) -> None:
        handled[payload] += 1

    return app, handled


def keys(file: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(file)) as connection:
        return set(connection.execute("SELECT route, key FROM mqttapi_inbox"))


async def deliver(client: TestClient, payload: str, key: str | None = None, topic: str = "s/1") -> Delivery:
    return await client.publish(topic, payload, user_properties=[("id", key or payload)])


async def test_a_message_that_comes_again_is_dropped(file: Path) -> None:
    app, handled = counting(file)
    async with TestClient(app) as client:
        outcomes = [(await deliver(client, "a")).outcome for _ in range(3)]
    assert outcomes == ["done", "dropped", "dropped"]
    assert handled == {"a": 1}


async def test_it_is_known_over_restarts(file: Path) -> None:
    app, _ = counting(file)
    async with TestClient(app) as client:
        await deliver(client, "a")
    app, handled = counting(file)
    async with TestClient(app) as client:
        await deliver(client, "a")
    assert handled == {}


@pytest.mark.parametrize("error", [ValueError, lambda: Reject("no")])
async def test_what_failed_is_handled_when_it_comes_again(file: Path, error: Any) -> None:
    app, attempts = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key="id"))
    async def count(payload: str) -> None:
        attempts.append(payload)
        if len(attempts) == 1:
            raise error()

    async with TestClient(app, raise_exceptions=False) as client:
        assert (await deliver(client, "a")).outcome in {"failed", "rejected"}
        assert keys(file) == set()
        assert (await deliver(client, "a")).outcome == "done"
    assert attempts == ["a", "a"]


async def test_a_second_attempt_is_no_second_delivery(file: Path) -> None:
    app, attempts = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key="id"), retry=Retry(attempts=2))
    async def count(context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise ValueError

    async with TestClient(app) as client:
        assert (await deliver(client, "a")).outcome == "done"
    assert attempts == [1, 2]


async def test_two_deliveries_at_the_same_time_are_handled_once(file: Path) -> None:
    app, handled = counting(file, ordered_by=None)
    async with TestClient(app) as client:
        outcomes = await asyncio.gather(*(deliver(client, "a", topic=f"s/{number}") for number in range(20)))
    assert Counter(each.outcome for each in outcomes) == {"done": 1, "dropped": 19}
    assert handled == {"a": 1}


async def test_a_delivery_waits_for_another_one_of_the_same_message_and_runs_when_that_failed(file: Path) -> None:
    app, attempts = an_app(file), []
    began, fail = asyncio.Event(), asyncio.Event()

    @app.topic("s/<id>", inbox=Inbox(key="id"), ordered_by=None)
    async def count(payload: str) -> None:
        attempts.append(payload)
        if len(attempts) == 1:
            began.set()
            await fail.wait()
            raise ValueError

    async with TestClient(app, raise_exceptions=False) as client:
        first = asyncio.create_task(deliver(client, "a"))
        await began.wait()
        second = asyncio.create_task(deliver(client, "a"))
        fail.set()
        assert [(await first).outcome, (await second).outcome] == ["failed", "done"]


async def test_routes_do_not_share_keys(file: Path) -> None:
    app, seen = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key="id"), name="one")
    async def one() -> None:
        seen.append("one")

    @app.topic("s/#", inbox=Inbox(key="id"), name="two")
    async def two() -> None:
        seen.append("two")

    async with TestClient(app) as client:
        await deliver(client, "a")
        await deliver(client, "a")
    assert sorted(seen) == ["one", "two"]
    assert keys(file) == {("one", "a"), ("two", "a")}


async def test_the_row_of_the_inbox_is_in_the_handlers_own_transaction(file: Path) -> None:
    app, seen = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key="id"), name="one")
    async def one(session: Session) -> None:
        await session.rollback()
        seen.append(1)

    async with TestClient(app) as client:
        await deliver(client, "a")
        await deliver(client, "a")
    assert seen == [1, 1]


# -- keys -----------------------------------------------------------------------------------------------------------


def of_payload(payload):  # type: ignore[no-untyped-def]  # without a hint it is the decoded payload
    return payload["number"]


def of_model(order: Order) -> str:
    return order.number


def of_message(message: Message) -> bytes:
    return message.payload


def of_context(context: Context) -> str:
    return f"{context['id']}/{context['payload']['number']}"


async def of_topic(id: str) -> str:
    return id


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (of_payload, "7"),
        (of_model, "7"),
        (of_message, b'{"number":"7"}'.hex()),
        (of_context, "1/7"),
        (of_topic, "1"),
        ("id", "property"),
        (lambda message: message.user_property("id"), "property"),
    ],
)
async def test_a_key_is_a_user_property_or_what_a_function_gives(file: Path, key: Any, expected: str) -> None:
    app = an_app(file)

    @app.topic("s/<id>", inbox=Inbox(key=key), name="one")
    async def one(order: Order) -> None: ...

    async with TestClient(app) as client:
        await client.publish("s/1", {"number": "7"}, user_properties=[("id", "property")])
    assert keys(file) == {("one", expected)}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("id", "user property 'id' is missing"),
        (lambda payload: None, "the key for the inbox is empty"),
        (lambda payload: "", "the key for the inbox is empty"),
    ],
)
async def test_a_message_without_key_is_rejected(file: Path, key: Any, reason: str) -> None:
    app, handled = counting(file, key)
    async with TestClient(app) as client:
        delivery = await client.publish("s/1", "a")
    assert (delivery.outcome, delivery.reason) == ("rejected", reason)
    assert not handled


async def of_number(payload: Any) -> Any:
    return payload["number"]


def of_second(payload: Any) -> Any:
    return payload["list"][1].upper()


@pytest.mark.parametrize(
    ("key", "payload", "kind"),
    [
        (of_number, {}, "KeyError"),
        (of_number, 5, "TypeError"),
        (of_second, {"list": [1]}, "IndexError"),
        (of_second, {"list": [1, 2]}, "AttributeError"),
    ],
)
async def test_a_message_that_the_function_cannot_read_is_rejected(
    file: Path, key: Any, payload: Any, kind: str
) -> None:
    app, handled = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key=key))
    async def handler(context: Context) -> None:
        handled.append(context.message.payload)

    async with TestClient(app) as client:
        delivery = await client.publish("s/1", payload)
    assert delivery.outcome == "rejected"
    assert delivery.reason == f"there is no key for the inbox: {key.__name__}() raised {kind}"
    assert handled == []


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_keys_are_the_same_in_the_table_only_if_they_are(one: str, two: str) -> None:
    assert (_text(one) == _text(two)) == (one == two)
    assert len(_text(one * 300)) <= 200
    assert "\0" not in _text(one)


def test_a_key_is_required() -> None:
    with pytest.raises(TypeError, match="key"):
        Inbox()  # type: ignore[call-arg]
    for wrong in ("", None, 7):
        with pytest.raises(ConfigurationError, match="key must be the name of a user property, or a function"):
            Inbox(key=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "1d", True])
def test_a_ttl_is_a_time(ttl: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Inbox(key="id", ttl=ttl)
    assert str(caught.value) == f"Inbox(ttl={ttl!r}): ttl must be a number of seconds above 0"


def test_the_option_is_an_inbox() -> None:
    with pytest.raises(ConfigurationError, match=r"inbox must be an Inbox\(key=...\) or None, got 'id'"):
        App("a").topic("a", inbox="id")(print)  # type: ignore[arg-type]


# -- forgetting -----------------------------------------------------------------------------------------------------


def test_a_key_lives_longer_than_the_session() -> None:
    assert Inbox(key="id").lifetime(3600, "r") == 3600 + 86_400
    assert Inbox(key="id").lifetime(NEVER, "r") is None
    assert Inbox(key="id", ttl=3601).lifetime(3600, "r") == 3601
    with pytest.raises(
        ConfigurationError, match=r"r: Inbox\(ttl=3600\) must be more than the session's expiry \(3600 s\)"
    ):
        Inbox(key="id", ttl=3600).lifetime(3600, "r")
    with pytest.raises(ConfigurationError, match="ttl must be a number of seconds above 0"):
        Inbox(key="id", ttl=0)


async def test_a_ttl_below_the_sessions_expiry_stops_the_start(file: Path) -> None:
    app = an_app(file, session=MQTTSession(expiry=7200))

    @app.topic("s/<id>", inbox=Inbox(key="id", ttl=60), name="one")
    async def one() -> None: ...

    with pytest.raises(ConfigurationError, match="one: Inbox"):
        async with TestClient(app):
            pass


async def test_old_keys_are_forgotten_and_younger_ones_are_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, handled = counting(file)
    async with TestClient(app) as client:
        await deliver(client, "old")
        await deliver(client, "young")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE mqttapi_inbox SET handled_at = ? WHERE key = 'old'", [time.time() - 200_000])
        connection.commit()
    monkeypatch.setattr(tables, "CLEANING", 0.01)
    async with TestClient(app) as client:
        await eventually(lambda: keys(file) == {("count", "young")})
        await deliver(client, "old")
        await deliver(client, "young")
    assert handled == {"old": 2, "young": 1}


# -- what the handler returns ---------------------------------------------------------------------------------------


async def test_results_are_sent_once_and_only_after_the_commit(file: Path) -> None:
    app, committed = an_app(file), []

    @app.topic("s/<id>", inbox=Inbox(key="id"), publish_to="out/<id>")
    async def one(payload: str) -> str:
        return payload.upper()

    async with TestClient(app) as client:
        for _ in range(2):
            await client.publish(
                "s/1", "a", user_properties=[("id", "7")], response_topic="answers", correlation_data=b"\xff"
            )
        committed = [(each.topic, each.payload, each.correlation_data) for each in client.published]
    assert committed == [("out/1", b"A", None), ("answers", b"A", b"\xff")]


async def test_nothing_is_sent_for_a_handler_that_failed(file: Path) -> None:
    app = an_app(file)

    @app.topic("s/<id>", inbox=Inbox(key="id"))
    async def one(payload: str) -> Publish:
        return Publish("a/+", payload)

    async with TestClient(app, raise_exceptions=False) as client:
        assert (await deliver(client, "a")).outcome == "failed"
        assert client.published == []
    assert keys(file) == set()


@pytest.mark.parametrize("response_topic", ["$SYS/x", "$SYS"])
async def test_a_response_topic_that_cannot_be_answered_is_no_failure_of_the_handler(
    file: Path, response_topic: str
) -> None:
    app = an_app(file)

    @app.topic("s/<id>", inbox=Inbox(key="id"), publish_to="out/<id>")
    async def one(payload: str) -> str:
        return payload

    async with TestClient(app) as client:
        delivery = await client.publish("s/1", "a", user_properties=[("id", "7")], response_topic=response_topic)
        assert delivery.outcome == "done"
        assert app.stats.routes[app.routes[0].name].replies_failed == 1
        assert [each.topic for each in client.published] == ["out/1"]


async def test_a_plain_def_may_have_an_inbox(file: Path) -> None:
    app = an_app(file)

    @app.topic("s/<id>", inbox=Inbox(key="id"))
    def one(payload: str) -> Publish:
        return Publish("out", payload)

    async with TestClient(app) as client:
        await deliver(client, "a")
        await deliver(client, "a")
        assert [each.topic for each in client.published] == ["out"]
