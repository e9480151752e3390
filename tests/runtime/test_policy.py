"""What becomes of what a handler returned, and of what it raised for good."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel, TypeAdapter

from mqttapi import (
    NO_REPLY,
    App,
    ConfigurationError,
    Context,
    Drop,
    Inbox,
    InvalidPayload,
    MessageError,
    NotConnected,
    Publish,
    PublishResult,
    Reject,
    Router,
)
from mqttapi.config import Settings
from mqttapi.testing import TestClient
from tests.support.waiting import eventually


class Reading(BaseModel):
    number: int


class DeviceError(Exception):
    pass


class UnknownDevice(DeviceError):
    pass


def raising(error: BaseException, **options: Any) -> App:
    app = App("t", **options)

    @app.topic("t/<id>", name="r")
    async def handler() -> None:
        raise error

    return app


def pairs(publish: Publish) -> list[tuple[str, str]]:
    """Its user properties."""
    return cast("list[tuple[str, str]]", list(publish.user_properties))


async def forgets_to_await(context: Context, call_next: Any) -> Any:
    return call_next(context)


@pytest.mark.parametrize("level", ["app", "route", "outbox"])
async def test_a_middleware_that_forgets_await_is_a_failure_and_no_message_is_lost_in_silence(
    level: str, tmp_path: Path
) -> None:
    app = App(settings=Settings(database_url=f"sqlite:///{tmp_path}/x.db"))
    handled: list[str] = []
    if level == "app":
        app.add_middleware(forgets_to_await)
    options: Any = {"inbox": Inbox(key=lambda: 1)} if level == "outbox" else {}
    options |= {"middleware": [forgets_to_await]} if level == "route" else {}

    @app.topic("a", name="r", **options)
    async def handler() -> Any:
        handled.append("a")
        return asyncio.sleep(0) if level == "outbox" else None

    async with client_of(app) as client:
        delivery = await client.publish("a")
    error = delivery.outcomes["r"].error
    assert (delivery.outcome, type(error)) == ("failed", TypeError)
    assert str(error) == (
        "r: a coroutine came out of it that nobody has awaited, so what it is to do was not done. An 'await' is missing, in "
        "the handler or in a middleware: 'return await call_next(context)'"
    )


def client_of(app: App) -> TestClient:
    return TestClient(app, raise_exceptions=False)


# -- exception handlers


async def test_an_exception_handler_that_returns_ends_the_message_as_done() -> None:
    app = raising(UnknownDevice("x"), dead_letter="dead/<topic>")
    seen: list[tuple[str, Exception]] = []

    @app.exception_handler(UnknownDevice)
    async def unknown(context: Context, error: UnknownDevice) -> None:
        seen.append((context.message.topic, error))

    async with client_of(app) as client:
        assert (await client.publish("t/1")).outcome == "done"
    assert [(topic, str(error)) for topic, error in seen] == [("t/1", "x")]
    assert client.published == []


async def test_the_handler_of_the_nearest_class_is_used() -> None:
    app = raising(UnknownDevice("x"))
    seen: list[str] = []

    @app.exception_handler(Exception)
    async def far(context: Context, error: Exception) -> None:
        seen.append("far")

    @app.exception_handler(DeviceError)
    async def near(context: Context, error: DeviceError) -> None:
        seen.append("near")

    @app.exception_handler(KeyError)
    async def other(context: Context, error: KeyError) -> None:
        seen.append("other")

    async with client_of(app) as client:
        await client.publish("t/1")
    assert seen == ["near"]


async def test_what_an_exception_handler_raises_is_the_outcome_and_goes_to_no_other_handler() -> None:
    app = raising(UnknownDevice("x"))

    @app.exception_handler(UnknownDevice)
    async def unknown(context: Context, error: UnknownDevice) -> None:
        raise KeyError

    @app.exception_handler(KeyError)
    async def key(context: Context, error: KeyError) -> None:
        raise AssertionError

    async with client_of(app) as client:
        delivery = await client.publish("t/1")
    assert (delivery.outcome, delivery.reason) == ("failed", "raised KeyError")


async def test_an_exception_handler_that_is_cancelled_leaves_a_dead_letter() -> None:
    """By something it waits for, say."""
    app = raising(UnknownDevice("x"), dead_letter="dead/<topic>")

    @app.exception_handler(UnknownDevice)
    async def unknown(context: Context, _: UnknownDevice) -> None:
        raise asyncio.CancelledError

    async with client_of(app) as client:
        delivery = await client.publish("t/1")
    assert (delivery.reason, delivery.dead_letter) == ("was cancelled, though not by mqttapi", "dead/t/1")


@pytest.mark.parametrize(("error", "kind"), [(Drop("no"), "dropped"), (Reject("no"), "rejected")])
async def test_an_exception_handler_may_steer(error: Exception, kind: str) -> None:
    app = raising(UnknownDevice("x"))

    @app.exception_handler(UnknownDevice)
    async def unknown(context: Context, _: UnknownDevice) -> None:
        raise error

    async with client_of(app) as client:
        assert (await client.publish("t/1")).outcome == kind


@pytest.mark.parametrize("error", [Drop("no"), Reject("no")])
async def test_what_steers_goes_past_exception_handlers(error: Exception) -> None:
    app = raising(error)

    @app.exception_handler(Exception)
    async def everything(context: Context, _: Exception) -> None:
        raise AssertionError

    async with client_of(app) as client:
        assert (await client.publish("t/1")).outcome in {"dropped", "rejected"}


async def test_what_rejects_a_message_and_what_middleware_raises_has_exception_handlers_too() -> None:
    app = App("t")
    seen: list[str] = []

    async def guard(context: Context, call_next: Any) -> Any:
        if context.message.payload == b"guarded":
            raise PermissionError
        return await call_next(context)

    app.add_middleware(guard)

    @app.exception_handler(PermissionError)
    @app.exception_handler(MessageError)
    async def note(context: Context, error: Exception) -> None:
        seen.append(type(error).__name__)

    @app.topic("t")
    async def handler(reading: Reading) -> None: ...

    async with client_of(app) as client:
        await client.publish("t", b"guarded")
        await client.publish("t", b"[]")
    assert seen == ["PermissionError", "InvalidPayload"]


async def test_what_an_exception_handler_returns_answers_the_response_topic_and_is_not_published_elsewhere() -> None:
    app = App("t")

    @app.topic("t", publish_to="out")
    async def handler() -> None:
        raise UnknownDevice

    @app.exception_handler(UnknownDevice)
    async def unknown(context: Context, error: UnknownDevice) -> str:
        return "unknown"

    async with client_of(app) as client:
        await client.publish("t", response_topic="answers")
    assert [(publish.topic, publish.payload) for publish in client.published] == [("answers", b"unknown")]


async def a_function(context: Context, error: Exception) -> None: ...


def plain(context: Context, error: Exception) -> None: ...


async def one(error: Exception) -> None: ...


@pytest.mark.parametrize(
    ("error", "function", "text"),
    [
        (
            3,
            a_function,
            (
                "exception_handler(3): give it a class of exceptions: "
                "@app.exception_handler(ValueError) above 'async def handle(context, error)'"
            ),
        ),
        (
            BaseException,
            a_function,
            (
                "exception_handler(<class 'BaseException'>): give it a class of exceptions: "
                "@app.exception_handler(ValueError) above 'async def handle(context, error)'"
            ),
        ),
        (
            Drop,
            a_function,
            (
                "exception_handler(Drop): Drop is how a handler says what becomes of a message, "
                "and no exception handler sees it. Register one for an exception of your own, and raise that"
            ),
        ),
        (
            ValueError,
            plain,
            (
                "exception_handler(ValueError): plain() is not an 'async def'. "
                "An exception handler is 'async def handle(context, error)'."
            ),
        ),
        (
            ValueError,
            one,
            (
                "exception_handler(ValueError): one() does not take two arguments. "
                "An exception handler is 'async def handle(context, error)'."
            ),
        ),
        (
            ValueError,
            3,
            (
                "exception_handler(ValueError): 3 is not an 'async def'. "
                "An exception handler is 'async def handle(context, error)'."
            ),
        ),
    ],
)
def test_a_wrong_exception_handler_is_refused_where_it_is_registered(error: Any, function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App().exception_handler(error)(function)
    assert str(caught.value) == text


def test_one_exception_has_one_handler() -> None:
    app = App()
    app.exception_handler(ValueError)(a_function)
    with pytest.raises(
        ConfigurationError,
        match=r"^exception_handler\(ValueError\): there is one already: a_function\(\) \(test_policy.py:\d+\)$",
    ):
        app.exception_handler(ValueError)(a_function)


# -- dead letters


async def test_a_dead_letter_has_the_payload_as_it_was_and_what_is_known_of_the_failure() -> None:
    app = raising(UnknownDevice("who is 7?"), dead_letter="dead/<topic>", retry=2)
    async with client_of(app) as client:
        delivery = await client.publish(
            "t/7",
            b"\xff\x00",
            content_type="x/y",
            user_properties=[("tenant", "a"), ("tenant", "b")],
            correlation_data=b"\x01",
            response_topic="answers",
        )
    assert (delivery.outcome, delivery.dead_letter) == ("failed", "dead/t/7")
    (letter,) = client.published
    assert (letter.topic, letter.payload, letter.qos, letter.retain) == ("dead/t/7", b"\xff\x00", 1, False)
    assert (letter.content_type, letter.correlation_data, letter.response_topic) == ("x/y", b"\x01", None)
    properties = pairs(letter)
    assert properties[:2] == [("tenant", "a"), ("tenant", "b")]
    about = dict(properties[2:])
    assert about.pop("mqttapi-time").endswith("Z")
    assert about == {
        "mqttapi-topic": "t/7",
        "mqttapi-route": "r",
        "mqttapi-error": "UnknownDevice",
        "mqttapi-reason": "who is 7?",
        "mqttapi-attempts": "2",
    }


@pytest.mark.parametrize(("payload", "shown"), [("é", {"payload": "é"}), (b"\xff", {"payload_base64": "/w=="})])
async def test_without_properties_it_is_an_envelope(payload: Any, shown: dict[str, str]) -> None:
    client = client_of(raising(UnknownDevice("x"), dead_letter="dead/<topic>"))
    client.has_properties = False
    async with client:
        await client.publish("t/7", payload)
    (letter,) = client.published
    envelope = json.loads(letter.payload)
    assert envelope.pop("mqttapi-time").endswith("Z")
    assert envelope == {
        "mqttapi-topic": "t/7",
        "mqttapi-route": "r",
        "mqttapi-error": "UnknownDevice",
        "mqttapi-reason": "x",
        "mqttapi-attempts": "1",
        **shown,
    }
    assert not letter.user_properties


@pytest.mark.parametrize("error", [Reject("no"), InvalidPayload("no"), ValueError("no")])
async def test_what_is_rejected_and_what_fails_goes_to_the_dead_letters(error: Exception) -> None:
    async with client_of(raising(error, dead_letter="dead/<route>/<id>")) as client:
        assert (await client.publish("t/7")).dead_letter == "dead/r/7"


async def test_what_is_dropped_does_not() -> None:
    async with client_of(raising(Drop("no"), dead_letter="dead/<topic>")) as client:
        assert (await client.publish("t/7")).dead_letter is None
    assert client.published == []


async def test_without_dead_letter_a_failure_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    app = raising(ValueError("no"))
    async with client_of(app) as client:
        assert (await client.publish("t/7")).outcome == "failed"
        assert app.stats.routes["r"].failed == 1
    assert "r failed on t/7: raised ValueError" in caplog.messages


async def test_a_route_inherits_where_its_dead_letters_go_and_may_switch_it_off() -> None:
    app = App(dead_letter="a/<topic>")
    router = Router(dead_letter="b/<topic>")

    async def handler() -> None: ...
    async def other() -> None: ...

    router.topic("1")(handler)
    router.topic("2", dead_letter=None)(handler)
    app.include_router(router)
    app.topic("3")(other)
    found = [route.dead_letter and route.dead_letter.text for route in app.routes]
    assert sorted(map(str, found)) == ["None", "a/<topic>", "b/<topic>"]


@pytest.mark.parametrize("properties", [True, False])
async def test_a_dead_letter_is_never_made_a_dead_letter_again(properties: bool) -> None:
    """A route that gets its own dead letters, and fails with those too, does not go round for ever."""
    app = App("t", dead_letter="dead/<topic>")

    @app.topic("#")
    async def handler() -> None:
        raise ValueError

    client = client_of(app)
    client.has_properties = properties
    async with client:
        await client.publish("t/7", "x")
        (letter,) = client.published
        delivery = await client.publish(letter.topic, letter.payload, user_properties=pairs(letter))
        assert (delivery.outcome, delivery.dead_letter) == ("failed", None)
    assert client.published == [letter]


async def test_a_failure_to_publish_the_result_is_a_dead_letter_and_the_handler_does_not_run_again() -> None:
    app = App("t", dead_letter="dead/<topic>", retry=3)
    calls: list[str] = []

    @app.topic("t")
    async def handler() -> Publish:
        calls.append("x")
        return Publish("a/<x>", params={"x": "a/b"})

    async with client_of(app) as client:
        delivery = await client.publish("t")
    assert (delivery.reason, delivery.dead_letter, len(calls)) == ("raised InvalidTopic", "dead/t", 1)


class Slow(TestClient):
    """A client whose broker confirms dead letters alone."""

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        return super().submit(publish) if reserved else asyncio.get_running_loop().create_future()


async def test_a_cancellation_while_the_result_is_published_is_a_failure_and_the_next_message_is_handled() -> None:
    """Somebody has kept the task that the handler ran in, and cancels it later."""
    app = App("t", dead_letter="dead/<topic>")
    tasks: list[asyncio.Task[Any]] = []

    @app.topic("t")
    async def handler(payload: str) -> Publish | None:
        if payload == "no":
            return None
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return Publish("out")

    async with Slow(app, raise_exceptions=False) as client:
        delivery = asyncio.create_task(client.publish("t", "yes"))
        await eventually(lambda: tasks)
        tasks[0].cancel()
        assert (await delivery).dead_letter == "dead/t"
        assert (await client.publish("t", "no")).outcome == "done"


class Refusing(TestClient):
    """A client whose broker is away for dead letters."""

    away = True

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        if reserved and self.away:
            raise NotConnected("the broker is away")
        return super().submit(publish, reserved=reserved)


async def test_what_cannot_be_sent_is_held_and_the_app_not_ready_until_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mqttapi.runtime.dead_letters.AGAIN", 0.01)
    monkeypatch.setattr("mqttapi.runtime.dead_letters.OVERDUE", 0)
    app = raising(ValueError("x"), dead_letter="dead/<topic>")
    async with Refusing(app, raise_exceptions=False) as client:
        delivery = asyncio.create_task(client.publish("t/1"))
        await eventually(lambda: app.readiness)
        reason = "1 dead letters can neither be sent nor be kept: the broker is away"
        await eventually(lambda: app.readiness == (reason,))
        assert app.stats.dead_letters_held == 1
        for _ in range(3):
            assert client._service is not None
            client._service.policy.look_after()
        assert caplog.messages == [f"{reason}; their messages are held"]  # once a minute
        client.away = False
        assert (await delivery).dead_letter == "dead/t/1"
        assert app.readiness == ()
        assert (app.stats.dead_letters_held, app.stats.routes["r"].dead_lettered) == (0, 1)


# -- results


async def test_what_a_handler_returns_is_published_to_a_topic_of_the_routes_parameters() -> None:
    app = App("t")

    @app.topic("in/<id>", publish_to="out/<id>")
    async def handler(id: str) -> Reading | None:
        return Reading(number=int(id)) if id != "0" else None

    async with TestClient(app) as client:
        await client.publish("in/7")
        await client.publish("in/0")
    assert [(publish.topic, publish.payload, publish.qos) for publish in client.published] == [
        ("out/7", b'{"number":7}', 1)
    ]


async def test_publish_objects_and_lists_of_them_are_sent_as_they_are() -> None:
    app = App("t")

    @app.topic("in/<id>", publish_to="out/<id>")
    async def handler(payload: str) -> Any:
        messages = [Publish("a/<x>", "1", params={"x": 7}), Publish("b", "2", qos=0)]
        return messages[0] if payload == "one" else messages if payload == "list" else tuple(messages)

    async with TestClient(app) as client:
        await client.publish("in/1", "one", response_topic="answers")
        assert [publish.topic for publish in client.published] == ["a/7"]
        await client.publish("in/1", "list")
        await client.publish("in/1", "tuple")
        assert [publish.topic for publish in client.published[1:]] == ["a/7", "b"] * 2


@pytest.mark.parametrize(("other", "name"), [(None, "NoneType"), (3, "int")])
async def test_what_is_returned_among_publish_objects_and_is_none_is_a_failure(other: Any, name: str) -> None:
    """It was published as JSON, all of it, or not at all where nobody wanted an answer."""
    app = App("t")

    @app.topic("in", publish_to="out", name="r")
    async def handler() -> Any:
        return other, Publish("a", "1")

    async with TestClient(app, raise_exceptions=False) as client:
        delivery = await client.publish("in", response_topic="answers")
    assert client.published == []
    assert str(delivery.outcomes["r"].error) == (
        f"a tuple of Publish objects has a {name} among them: return nothing but Publish objects, or publish them by "
        "'await context.publish(...)'"
    )


async def test_a_middleware_that_stops_early_may_answer_but_is_not_published() -> None:
    app = App("t")

    @app.middleware
    async def stop(context: Context, call_next: Any) -> Any:
        return "stopped" if context.message.payload == b"stop" else await call_next(context)

    @app.topic("in", publish_to="out")
    async def handler() -> str:
        return "went on"

    async with TestClient(app) as client:
        await client.publish("in", b"stop", response_topic="answers")
        await client.publish("in", b"go", response_topic="answers")
    sent = [(publish.topic, publish.payload) for publish in client.published]
    assert sent == [("answers", b"stopped"), ("out", b"went on"), ("answers", b"went on")]


async def test_of_several_routes_the_most_specific_one_replies() -> None:
    app = App("t")

    @app.topic("#")
    async def everything() -> str:
        return "everything"

    @app.topic("a/<x>")
    async def some(x: str) -> str:
        return "some"

    @app.topic("a/b")
    async def one() -> str:
        return "one"

    async with TestClient(app) as client:
        for topic in ("a/b", "a/c", "c"):
            await client.publish(topic, response_topic="answers")
    assert [publish.payload for publish in client.published] == [b"one", b"some", b"everything"]


async def test_no_reply_is_no_reply() -> None:
    app = App("t")

    @app.topic("t", publish_to="out")
    async def handler() -> Any:
        return NO_REPLY

    async with TestClient(app) as client:
        await client.publish("t", response_topic="answers")
    assert client.published == []


@pytest.mark.parametrize(("topic", "value"), [("$SYS/x", "x"), ("answers", object())])
async def test_a_reply_that_cannot_be_sent_is_counted_and_the_message_is_done(topic: str, value: Any) -> None:
    app = App("t", dead_letter="dead/<topic>")
    calls: list[str] = []

    @app.topic("t", name="r")
    async def handler() -> Any:
        calls.append("x")
        return value

    async with TestClient(app) as client:
        assert (await client.publish("t", response_topic=topic)).outcome == "done"
        assert app.stats.routes["r"].replies_failed == 1
    assert (len(calls), client.published) == (1, [])


# -- logs


async def test_ten_failures_are_logged_in_full_and_the_rest_as_a_number(caplog: pytest.LogCaptureFixture) -> None:
    app = raising(ValueError("no"))
    async with client_of(app) as client:
        for _ in range(25):
            await client.publish("t/1")
    full = [record for record in caplog.records if record.exc_info]
    assert len(full) == 10
    assert caplog.messages[-1] == "r failed 15 more messages (ValueError) than were logged"


async def test_a_topic_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(raising(ValueError("no"))) as client:
        await client.publish("t/\u202e\u2028x")
    assert caplog.messages == ["r failed on t/\\u202e\\u2028x: raised ValueError"]


async def test_input_values_of_validation_errors_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither of the payload, nor where a handler validates something itself, nor as the cause of another error, nor in
    a group.
    """
    app = App("t", dead_letter="dead/<topic>")
    adapter = TypeAdapter(dict[str, int])
    secret = "s3cret"

    @app.topic("payload")
    async def payload(reading: Reading) -> None: ...

    @app.topic("handler")
    async def handler() -> None:
        adapter.validate_python({"a": secret})

    @app.topic("cause")
    async def cause() -> None:
        try:
            adapter.validate_python({"a": secret})
        except ValueError as error:
            raise UnknownDevice("no") from error

    @app.topic("group")
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cause())

    @app.topic("circle")
    async def circle() -> None:
        try:
            await group()
        except ExceptionGroup as error:
            raise error.exceptions[0] from error

    async with client_of(app) as client:
        for topic in ("payload", "handler", "cause", "group", "circle"):
            await client.publish(topic, {"number": secret})
    formatter = logging.Formatter()
    text = "\n".join(formatter.format(record) for record in caplog.records)
    assert secret not in text
    assert len(caplog.records) == 5
    assert "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)" in text
    assert "ValidationError: 1 validation errors for dict[str,int]: a: Input should be a valid integer" in text
    assert "test_policy.py" in text
    assert all(secret not in str(publish.user_properties) for publish in client.published)


async def test_an_exception_whose_text_raises_is_a_failure_like_others() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise ValueError

    async with client_of(raising(Nasty(), dead_letter="dead/<topic>")) as client:
        assert (await client.publish("t/1")).dead_letter == "dead/t/1"
    assert ("mqttapi-reason", "<its text raised ValueError>") in client.published[0].user_properties


async def test_the_reason_is_one_line_of_a_kibibyte_at_most() -> None:
    async with client_of(raising(ValueError("é\n" * 2000), dead_letter="dead/<topic>")) as client:
        await client.publish("t/1")
    reason = dict(pairs(client.published[0]))["mqttapi-reason"]
    assert len(reason.encode()) <= 1024
    assert reason.startswith("é; é; ")
