"""`TestClient`: the app's own router, plans and lanes, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from mqttapi import (
    NO_REPLY,
    App,
    ConfigurationError,
    Context,
    Depends,
    Drop,
    InvalidTopic,
    Message,
    NotConnected,
    Publish,
    Publisher,
    Reject,
    RetryLater,
)
from mqttapi.testing import TestClient


class Reading(BaseModel):
    temperature: float


async def test_what_a_handler_publishes_is_recorded_in_order() -> None:
    app = App()

    @app.topic("s/<id>")
    async def relay(id: str, reading: Reading, publisher: Publisher) -> Publish:
        await publisher.publish("a/<id>", reading, params={"id": id})
        return Publish("b", "text", qos=0)

    async with TestClient(app) as client:
        delivery = await client.publish("s/7", {"temperature": 9})
    assert (delivery.outcome, delivery.reason) == ("done", "")
    assert [(p.topic, p.payload) for p in client.published] == [("a/7", b'{"temperature":9.0}'), ("b", b"text")]


def test_it_takes_an_app() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TestClient("x")  # type: ignore[arg-type]  # that is the point
    assert str(caught.value) == "TestClient takes an App, got 'x': write TestClient(app)"


async def test_a_plain_def_may_publish_from_its_thread() -> None:
    app = App()

    @app.topic("t")
    def handler(publisher: Publisher, payload: str) -> None:
        publisher.publish_nowait("out", payload)

    async with TestClient(app) as client:
        assert (await client.publish("t", "x")).outcome == "done"
    assert [(sent.topic, sent.payload) for sent in client.published] == [("out", b"x")]


async def test_each_kind_of_outcome_has_its_reason() -> None:
    app = App()

    @app.topic("s/<kind>")
    async def handler(kind: str, reading: Reading) -> None:
        match kind:
            case "dropped":
                raise Drop("not for us")
            case "rejected":
                raise Reject("no such device")
            case "failed":
                raise ValueError("broken")

    async with TestClient(app, raise_exceptions=False) as client:
        good = {"temperature": 1}
        for kind, reason in (
            ("done", ""),
            ("dropped", "not for us"),
            ("rejected", "no such device"),
            ("failed", "raised ValueError"),
        ):
            delivery = await client.publish(f"s/{kind}", good)
            assert (delivery.outcome, delivery.reason) == (kind, reason)
        delivery = await client.publish("s/done", {"temperature": "hot"})
        assert delivery.outcome == "rejected"
        assert delivery.reason.startswith("temperature: ")
        assert "hot" not in delivery.reason
        assert (await client.publish("elsewhere")).outcome == "unmatched"


async def test_publish_raises_what_the_handler_raised_unless_told_not_to() -> None:
    app = App()

    @app.topic("s")
    async def broken() -> None:
        raise ValueError("broken")

    async with TestClient(app) as client:
        with pytest.raises(ValueError, match="broken"):
            await client.publish("s")


async def test_several_routes_each_have_an_outcome_and_the_worst_counts() -> None:
    app = App()

    @app.topic("s/#", name="good")
    async def good() -> None: ...

    @app.topic("s/<id>", name="bad")
    async def bad() -> None:
        raise Reject("bad")

    async with TestClient(app) as client:
        delivery = await client.publish("s/1")
    assert {name: outcome.kind for name, outcome in delivery.outcomes.items()} == {"good": "done", "bad": "rejected"}
    assert (delivery.outcome, delivery.reason) == ("rejected", "bad")


async def test_a_reply_goes_to_the_response_topic_with_its_correlation_data() -> None:
    app = App()

    @app.topic("ask/<what>")
    async def answer(what: str) -> Any:
        return {"none": None, "quiet": NO_REPLY}.get(what, {"answer": what})

    async with TestClient(app) as client:
        correlation = bytes(range(16))
        delivery = await client.publish("ask/x", response_topic="replies/1", correlation_data=correlation)
        assert delivery.reply is not None
        assert delivery.reply.payload == b'{"answer":"x"}'
        assert delivery.reply.correlation_data == correlation
        nothing = await client.publish("ask/none", response_topic="replies/1")
        assert nothing.reply is not None
        assert nothing.reply.payload == b""
        assert (await client.publish("ask/quiet", response_topic="replies/1")).reply is None
        assert (await client.publish("ask/x")).reply is None


async def test_middleware_sees_and_replaces_the_payload_and_may_stop() -> None:
    app = App()
    seen: list[float] = []

    @app.middleware
    async def convert(context: Context, call_next: Any) -> Any:
        if context["topic"] == "s/stop":
            return None
        context["payload"] = {"temperature": context["payload"]["celsius"]}
        context["tenant"] = "t"
        return await call_next(context)

    @app.topic("s/<id>")
    async def handler(reading: Reading, context: Context, message: Message) -> None:
        assert context["tenant"] == "t"
        assert message.payload == b'{"celsius":4}'
        seen.append(reading.temperature)

    async with TestClient(app) as client:
        assert (await client.publish("s/1", {"celsius": 4})).outcome == "done"
        assert (await client.publish("s/stop", {"celsius": 4})).outcome == "done"
    assert seen == [4.0]


async def test_retry_later_runs_dependencies_and_handler_again_and_middleware_of_the_app_once() -> None:
    app = App()
    runs = {"app": 0, "dependency": 0, "handler": 0}

    @app.middleware
    async def count(context: Context, call_next: Any) -> Any:
        runs["app"] += 1
        return await call_next(context)

    async def dependency() -> int:
        runs["dependency"] += 1
        return runs["dependency"]

    @app.topic("s")
    async def handler(context: Context, value: Annotated[int, Depends(dependency)]) -> None:
        runs["handler"] += 1
        assert context.attempt == value
        if context.attempt < 3:
            raise RetryLater(0)

    async with TestClient(app) as client:
        assert (await client.publish("s")).outcome == "done"
    assert runs == {"app": 1, "dependency": 3, "handler": 3}


async def test_an_overridden_resource_is_never_opened() -> None:
    class Database:
        pass

    app = App()
    opened: list[str] = []

    @app.resource
    async def database() -> AsyncIterator[Database]:
        opened.append("opened")
        yield Database()
        opened.append("closed")

    got: list[Database] = []

    @app.topic("s")
    async def handler(database: Database) -> None:
        got.append(database)

    async with TestClient(app) as client:
        await client.publish("s")
    assert opened == ["opened", "closed"]
    fake = Database()
    app.dependency_overrides[Database] = lambda: fake
    async with TestClient(app) as client:
        await client.publish("s")
    assert opened == ["opened", "closed"]
    assert got[1] is fake


async def test_a_resource_gets_the_resources_before_it() -> None:
    class First:
        pass

    class Second:
        def __init__(self, first: First) -> None:
            self.first = first

    app = App()

    @app.resource
    def first() -> Iterator[First]:
        yield First()

    @app.resource
    async def second(first: First, app: App) -> Second:
        return Second(first)

    @app.topic("s")
    async def handler(first: First, second: Second) -> None:
        assert second.first is first

    async with TestClient(app) as client:
        assert (await client.publish("s")).outcome == "done"


def test_a_resource_says_what_it_provides() -> None:
    with pytest.raises(ConfigurationError, match=r"resource http\(\) must say what it provides"):

        @App().resource
        async def http() -> Any: ...


class Meter: ...


async def resource_of(function: Any) -> object:
    app = App()
    app.resource(function)

    @app.topic("t")
    async def handler(meter: Meter, context: Context) -> None:
        context.app.state.meter = meter

    async with TestClient(app) as client:
        await client.publish("t")
    return app.state.meter


async def test_a_resource_may_be_a_context_manager_already() -> None:
    @asynccontextmanager
    async def meter() -> AsyncIterator[Meter]:
        yield Meter()

    assert isinstance(await resource_of(meter), Meter)


async def test_a_resource_that_gives_none_is_refused() -> None:
    async def meter() -> AsyncIterator[Meter]:
        yield  # type: ignore[misc]  # what is forgotten

    with pytest.raises(ConfigurationError) as caught:
        await resource_of(meter)
    assert str(caught.value).endswith("meter() gave None in place of a Meter: yield or return it")


async def test_what_a_resource_raises_says_whose_it_is() -> None:
    def meter() -> Meter:
        raise OSError("no route to host")

    with pytest.raises(OSError, match="no route to host") as caught:
        await resource_of(meter)
    assert caught.value.__notes__ == ["raised by resource meter() when it was opened"]


@pytest.mark.parametrize("hint", [AsyncIterator, None])
def test_what_a_resource_provides_is_no_iterator_and_not_nothing(hint: Any) -> None:
    async def meter() -> Any: ...

    meter.__annotations__ = {} if hint is None else {"return": hint}
    with pytest.raises(ConfigurationError, match=r"must say what it provides, by a class: '-> AsyncIterator\["):
        App().resource(meter)


async def not_decorated(app: App) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def without_the_app() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("lifespan", "text"),
    [
        (5, "lifespan must be a function with @asynccontextmanager, got 5"),
        (not_decorated, "lifespan: not_decorated() lacks @contextlib.asynccontextmanager above it"),
        (without_the_app, "lifespan: without_the_app() must take one argument, the app"),
    ],
)
def test_a_lifespan_that_could_not_begin_is_refused(lifespan: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App("x", lifespan=lifespan)
    assert str(caught.value) == f"App('x'): {text}"


async def test_a_lifespan_that_yields_state_says_where_that_goes() -> None:
    """FastAPI's users yield a dict, and find it in the request."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Any]:
        yield {"db": 1}

    with pytest.raises(ConfigurationError) as caught:
        async with TestClient(App("x", lifespan=lifespan)):
            pass
    assert str(caught.value) == (
        "App('x'): lifespan yields 'db', and nobody gets that: write 'app.state.name = value' before the 'yield', or make "
        "it a resource"
    )


async def test_run_says_what_to_write_where_an_event_loop_runs() -> None:
    with pytest.raises(ConfigurationError) as caught:
        App("x").run()
    assert str(caught.value) == ("app.run() is the whole program: where an event loop runs, write 'await app.serve()'")


async def test_nothing_can_be_registered_while_the_app_runs() -> None:
    app = App()

    async def handler() -> None: ...

    async with TestClient(app):
        with pytest.raises(ConfigurationError, match="routes are frozen once the app has started"):
            app.topic("s")(handler)
        with pytest.raises(ConfigurationError, match="is running already"):
            async with TestClient(app):
                pass


async def test_publishing_before_the_start_says_so() -> None:
    with pytest.raises(NotConnected, match="the app is not running"):
        await App().publish("s", "x")


async def test_system_topics_are_for_apps_that_ask_for_them() -> None:
    for app in (App(), App(system_topics=True)):
        async with TestClient(app) as client:
            if not app.publisher.system_topics:
                with pytest.raises(InvalidTopic, match=r"App\(system_topics=True\) allows them"):
                    await app.publish("$SYS/x")
            else:
                await app.publish("$SYS/x")
                assert client.published[0].topic == "$SYS/x"


async def test_an_invalid_topic_is_refused() -> None:
    async with TestClient(App()) as client:
        with pytest.raises(InvalidTopic):
            await client.publish("s/+")


async def test_messages_of_one_topic_run_in_order_and_others_meanwhile() -> None:
    app = App()
    order: list[str] = []
    gate = asyncio.Event()

    @app.topic("s/<id>")
    async def handler(id: str, payload: str) -> None:
        if payload == "first":
            await gate.wait()
        order.append(f"{id}:{payload}")

    async with TestClient(app) as client:
        tasks = [asyncio.create_task(client.publish("s/1", text)) for text in ("first", "second")]
        await asyncio.gather(*(client.publish("s/2", text) for text in ("x", "y")))
        assert order == ["2:x", "2:y"]
        gate.set()
        await asyncio.gather(*tasks)
    assert order == ["2:x", "2:y", "1:first", "1:second"]


def test_plain_tests_use_sync() -> None:
    app = App()

    @app.topic("s/<id>")
    async def handler(id: str, publisher: Publisher) -> None:
        await publisher.publish("out", id)

    with TestClient(app).sync() as client:
        assert client.publish("s/3").outcome == "done"
        assert client.published[0].payload == b"3"


async def test_a_message_may_have_an_expiry() -> None:
    app = App()

    @app.topic("t")
    async def handler(message: Message) -> None:
        app.state.left = message.message_expiry_interval

    async with TestClient(app) as client:
        await client.publish("t", expiry=5)
    assert app.state.left == 5


async def test_user_properties_may_be_a_dict() -> None:
    app = App()

    @app.topic("t")
    async def handler(message: Message) -> None:
        app.state.got = message.user_properties

    async with TestClient(app) as client:
        await client.publish("t", user_properties={"a": "b"})
    assert app.state.got == (("a", "b"),)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qos": 7}, "qos must be 0, 1 or 2, got 7"),
        ({"qos": "1"}, "qos must be 0, 1 or 2, got '1'"),
        ({"retain": "x"}, "retain must be True or False, got 'x'"),
        ({"dup": 1}, "dup must be True or False, got 1"),
        ({"expiry": 0.5}, "expiry must be a whole number of seconds, or None, got 0.5"),
        ({"expiry": -1}, "expiry must be 0 to 4294967295 seconds, or None for never, got -1"),
        ({"correlation_data": "x"}, "correlation_data must be bytes, got str"),
        ({"user_properties": "ab"}, "user_properties must be (name, value) pairs of str, got 'a'"),
        ({"user_properties": [("a", 5)]}, "user property 'a' must be a str, got 5: write str(…)"),
        ({"content_type": b"x"}, "content_type must be a str, got b'x': write str(…)"),
    ],
)
async def test_what_no_broker_sends_is_refused(options: dict[str, Any], said: str) -> None:
    async with TestClient(App()) as client:
        with pytest.raises(ConfigurationError) as caught:
            await client.publish("t", **options)
    assert str(caught.value) == said


async def test_a_response_topic_has_no_wildcards() -> None:
    async with TestClient(App()) as client:
        with pytest.raises(InvalidTopic):
            await client.publish("t", response_topic="a/+")


async def test_after_its_block_a_client_publishes_nothing() -> None:
    async with TestClient(App()) as client:
        pass
    with pytest.raises(RuntimeError, match="use the client inside `async with TestClient"):
        await client.publish("t")
