from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from mqttapi import App, Context, Reject, Retry
from mqttapi.config import Settings
from mqttapi.errors import ConfigurationError, Drop
from mqttapi.middleware import Deduplicate
from mqttapi.testing import TestClient
from tests.middleware.builtin.support import Clock, fate, message
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.command_line import CommandLine
    from tests.support.mosquitto import Mosquitto
    from tests.support.redis import RedisServer

KEY = "property.message-id"
AGAIN = "dropped: handled before"
STORES = pytest.mark.parametrize("store", ["memory", "redis"])


def deduplicate(store: str, redis: Redis, **given: Any) -> Deduplicate:
    return Deduplicate(given.pop("key", KEY), store=redis if store == "redis" else "memory", **given)


def delivery(id: str = "1", **given: Any) -> Context:
    return message(properties={"message-id": id}, **given)


def blocked(middleware: Deduplicate) -> tuple[asyncio.Task[Any], asyncio.Future[None]]:
    """A first delivery, whose handler is over when the future is: with what that was given."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(context: Context) -> None:
        await future

    return asyncio.create_task(middleware.handle(delivery(), handler)), future


# ------------------------------------------------------------------------------------------------------------- the rule


@STORES
async def test_a_message_is_handled_once(store: str, redis: Redis) -> None:
    once = deduplicate(store, redis)
    assert [await fate(once, delivery(id)) for id in "1221"] == ["passed", "passed", AGAIN, AGAIN]


@STORES
async def test_each_route_handles_it(store: str, redis: Redis) -> None:
    once = deduplicate(store, redis)
    assert [await fate(once, delivery(route=route)) for route in "aba"] == ["passed", "passed", AGAIN]


async def test_a_message_without_a_key_is_handled() -> None:
    once = Deduplicate(KEY)
    assert [await fate(once, message()) for _ in range(2)] == ["passed", "passed"]


async def test_an_empty_key_is_none() -> None:
    """Else all messages of a sender who leaves it empty would be one."""
    once = Deduplicate(KEY)
    assert [await fate(once, delivery("")) for _ in range(2)] == ["passed", "passed"]


@pytest.mark.parametrize("key", ["topic", "payload"])
def test_what_two_messages_may_have_in_common_is_no_key(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Deduplicate(key)
    assert str(caught.value) == (
        f"Deduplicate: {key!r} is no key: two messages may well have the same. Name what the sender makes for each message, "
        "such as 'property.message-id' or 'payload.id'"
    )


async def test_the_key_may_be_a_function_or_a_field() -> None:
    for key in (lambda context: context.message.payload, "payload.id"):
        once = Deduplicate(key)
        ended = [await fate(once, message(payload=payload)) for payload in (b'{"id": 1}', b'{"id": 2}', b'{"id": 1}')]
        assert ended == ["passed", "passed", AGAIN]


@STORES
@pytest.mark.parametrize("error", [ValueError(), Reject("bad"), Drop("no"), asyncio.CancelledError()])
async def test_what_was_not_handled_is_handled_when_it_comes_again(
    store: str, redis: Redis, error: BaseException
) -> None:
    once = deduplicate(store, redis)

    async def fail(context: Context) -> None:
        raise error

    with pytest.raises(type(error)):
        await once.handle(delivery(), fail)
    assert await fate(once, delivery()) == "passed"


@STORES
async def test_a_second_delivery_waits_for_the_first_and_is_dropped_when_that_succeeds(
    store: str, redis: Redis
) -> None:
    once = deduplicate(store, redis)
    first, end = blocked(once)
    await asyncio.wait([first], timeout=0.001)
    second = asyncio.create_task(fate(once, delivery()))
    await asyncio.wait([second], timeout=0.1)
    assert not second.done()
    end.set_result(None)
    assert await second == AGAIN
    await first


@STORES
async def test_a_second_delivery_is_handled_when_the_first_fails(store: str, redis: Redis) -> None:
    once = deduplicate(store, redis)
    first, end = blocked(once)
    await asyncio.wait([first], timeout=0.001)
    second = asyncio.create_task(fate(once, delivery()))
    end.set_exception(ValueError())
    assert await second == "passed"
    with pytest.raises(ValueError):
        await first


async def test_memory_forgets_what_is_older_than_its_time_to_live() -> None:
    clock = Clock()
    once = Deduplicate(KEY, ttl=60, clock=clock)
    ended: list[str] = []
    for clock.now in (0, 59, 60):
        ended.append(await fate(once, delivery()))
    assert ended == ["passed", AGAIN, "passed"]


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttapi.middleware.builtin.deduplicate.MOST_KEYS", 10)
    once = Deduplicate(KEY)
    for number in range(100):
        await fate(once, delivery(str(number)))
    [claims] = once._claims.made.values()
    assert len(claims._done) <= 11  # type: ignore[attr-defined]
    assert await fate(once, delivery("99")) == AGAIN


# ---------------------------------------------------------------------------------------------------------- with Redis


async def test_of_many_at_once_one_is_handled(redis: Redis, shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as other:
        pair = [Deduplicate(KEY, store=store) for store in (redis, other)]
        ended = await asyncio.gather(*(fate(once, delivery()) for once in pair for _ in range(20)))
    assert sorted(ended) == [AGAIN] * 39 + ["passed"]


async def test_the_claim_of_a_process_that_is_gone_runs_out(redis: Redis) -> None:
    await redis.set("mqttapi:once:plant:ingest:property.message-id:0:1", "another's", px=200)
    assert await fate(Deduplicate(KEY, store=redis), delivery()) == "passed"


async def test_a_claim_is_renewed_while_the_handler_runs(redis: Redis) -> None:
    once = Deduplicate(KEY, store=redis, lease=1)
    first, end = blocked(once)
    seen: list[int] = []

    async def renewed() -> bool:
        seen.append(await redis.pttl("mqttapi:once:plant:ingest:property.message-id:0:1"))
        return any(later > earlier > 0 for earlier, later in itertools.pairwise(seen))

    await eventually(renewed)
    end.set_result(None)
    await first


async def test_what_was_marked_is_known_for_its_time_to_live(redis: Redis) -> None:
    await fate(Deduplicate(KEY, ttl=100, store=redis), delivery())
    assert 99_000 < await redis.pttl("mqttapi:once:plant:ingest:property.message-id:0:1") <= 100_000


async def test_a_claim_that_another_one_has_is_not_given_back(redis: Redis) -> None:
    """The event loop stood still for longer than the lease, and the claim went to another process."""

    async def fail(context: Context) -> None:
        await redis.set("mqttapi:once:plant:ingest:property.message-id:0:1", "another's")
        raise ValueError

    with pytest.raises(ValueError):
        await Deduplicate(KEY, store=redis).handle(delivery(), fail)
    assert await redis.get("mqttapi:once:plant:ingest:property.message-id:0:1") == b"another's"


async def test_a_handled_message_is_done_though_it_cannot_be_marked(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mqttapi.middleware.builtin.store.PATIENCE", 0.05)

    async def handler(context: Context) -> str:
        redis_server.kill()
        return "handled"

    async with Redis.from_url(redis_server.url) as away:
        assert await Deduplicate(KEY, store=away).handle(delivery(), handler) == "handled"
    [record] = caplog.records
    assert record.getMessage().startswith(
        "Deduplicate: a handled message could not be marked, and may be handled again:"
    )


# ---------------------------------------------------------------------------------------------------------- in an app


async def test_the_attempts_of_a_message_are_no_duplicates() -> None:
    app = App("plant", settings=Settings(redis_url=None))
    attempts: list[int] = []

    @app.topic("t", middleware=[Deduplicate(KEY)], retry=3)
    async def handler(context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ValueError

    async with TestClient(app) as tester:
        outcomes = [(await tester.publish("t", user_properties=[("message-id", "1")])).outcome for _ in range(2)]
    assert (outcomes, attempts) == (["done", "dropped"], [1, 2, 3])


def app_of(shared_redis: RedisServer, *handled: list[int], **options: Any) -> App:
    """Its one route is called as that of `delivery`; no attempt takes longer than 0.3 s."""
    app = App("plant", settings=Settings(redis_url=shared_redis.url, max_hold=options.pop("max_hold", 60.0)))

    @app.topic("t", name="ingest", timeout=0.3, middleware=[Deduplicate(KEY)], **options)
    async def handler(context: Context) -> None:
        for each in handled:
            each.append(context.attempt)

    return app


async def comes(tester: TestClient) -> str:
    return (await tester.publish("t", user_properties=[("message-id", "1")])).outcome


@pytest.mark.parametrize("max_hold", [0.4, 60.0])
async def test_who_waits_for_a_process_that_is_gone_outlives_its_time_out(
    shared_redis: RedisServer, redis: Redis, max_hold: float
) -> None:
    """Else it was acknowledged, and never handled."""
    handled: list[int] = []
    await redis.set("mqttapi:once:plant:ingest:property.message-id:0:1", "another's", px=1500)
    async with TestClient(app_of(shared_redis, handled, max_hold=max_hold)) as tester:
        assert await comes(tester) == "done"
    assert handled == [1]


@pytest.mark.parametrize(("error", "outcome"), [(None, "dropped"), (ValueError(), "done")])
async def test_who_waits_for_another_delivery_outlives_its_time_out(
    shared_redis: RedisServer, redis: Redis, error: Exception | None, outcome: str
) -> None:
    handled: list[int] = []
    first, end = blocked(Deduplicate(KEY, store=redis))
    async with TestClient(app_of(shared_redis, handled)) as tester:
        await eventually(lambda: redis.exists("mqttapi:once:plant:ingest:property.message-id:0:1"))
        second = asyncio.create_task(comes(tester))
        await asyncio.wait([second], timeout=1.5)  # several sweeps pass
        assert not second.done()
        end.set_exception(error) if error else end.set_result(None)
        assert await second == outcome
    assert len(handled) == (outcome == "done")
    await asyncio.wait([first])
    assert first.exception() is error


async def test_a_later_attempt_that_waits_outlives_its_time_out_as_well(
    shared_redis: RedisServer, redis: Redis
) -> None:
    app = App("plant", settings=Settings(redis_url=shared_redis.url, max_hold=1.0))
    attempts: list[int] = []

    @app.topic("t", name="ingest", timeout=0.3, retry=Retry(3, delay=0.01), middleware=[Deduplicate(KEY)])
    async def handler(context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt < 3:
            await redis.set("mqttapi:once:plant:ingest:property.message-id:0:1", "another's", px=1500)
            raise ValueError

    async with TestClient(app) as tester:
        assert await comes(tester) == "done"
    assert attempts == [1, 2, 3]


async def test_a_later_attempt_still_has_a_time_out_after_its_wait(shared_redis: RedisServer, redis: Redis) -> None:
    app = App("plant", settings=Settings(redis_url=shared_redis.url))

    @app.topic("t", name="ingest", timeout=0.3, retry=2, middleware=[Deduplicate(KEY)])
    async def handler(context: Context) -> None:
        if context.attempt == 1:
            await redis.set("mqttapi:once:plant:ingest:property.message-id:0:1", "another's", px=500)
            raise ValueError
        await asyncio.Event().wait()

    async with TestClient(app, raise_exceptions=False) as tester:
        delivery = await tester.publish("t", user_properties=[("message-id", "1")])
    assert (delivery.outcome, delivery.reason) == ("failed", "raised HandlerTimeout")


async def test_a_message_does_not_wait_for_itself(shared_redis: RedisServer, redis: Redis) -> None:
    """With one around the app and one around the route, which have the same key in Redis."""
    handled: list[int] = []
    app = app_of(shared_redis, handled)
    app.add_middleware(Deduplicate(KEY))
    async with TestClient(app) as tester:
        assert [await comes(tester) for _ in range(2)] == ["done", "dropped"]
    assert handled == [1]


def of_a(context: Context) -> Any:
    return context.message.user_property("a")


def of_b(context: Context) -> Any:
    return context.message.user_property("b")


def both_called_key() -> list[Callable[[Context], Any]]:
    def of(name: str) -> Callable[[Context], Any]:
        return lambda context: context.message.user_property(name)

    return [of("a"), of("b")]


@STORES
@pytest.mark.parametrize("keys", [["property.a", "property.b"], [of_a, of_b], both_called_key()])
async def test_two_keys_of_a_route_have_nothing_in_common(
    store: str, keys: list[Any], shared_redis: RedisServer, redis: Redis
) -> None:
    """What is known as `a` is not known as `b`, nor in the next run."""
    url = shared_redis.url if store == "redis" else None
    app = App("plant", settings=Settings(redis_url=url), middleware=[Deduplicate(keys[0])])

    @app.topic("t", middleware=[Deduplicate(keys[1])])
    async def handler() -> None: ...

    async def fates(*sent: tuple[str, str]) -> list[str]:
        async with TestClient(app) as tester:
            return [(await tester.publish("t", user_properties=[("a", a), ("b", b)])).outcome for a, b in sent]

    assert await fates(("1", "2"), ("2", "1"), ("1", "3"), ("3", "1")) == ["done", "done", "dropped", "dropped"]
    assert await fates(("1", "9"), ("9", "1")) == (["dropped"] * 2 if store == "redis" else ["done"] * 2)


async def test_a_key_is_the_same_in_redis_whatever_else_is_around_the_route(
    shared_redis: RedisServer, redis: Redis
) -> None:
    async with TestClient(app_of(shared_redis)) as tester:
        assert await comes(tester) == "done"
    app = app_of(shared_redis)
    app.add_middleware(Deduplicate("property.other"))
    app.add_middleware(Deduplicate(KEY, ttl=100))
    async with TestClient(app) as tester:
        assert await comes(tester) == "dropped"


APP = """
import os, signal
from pathlib import Path
from mqttapi import App
from mqttapi.middleware import Deduplicate

app = App("crash")


async def crash_behind_the_handler(context, call_next):
    await call_next(context)
    if not Path("crashed").exists():
        Path("crashed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


@app.topic("orders", middleware=[Deduplicate("property.message-id", lease=1), crash_behind_the_handler])
async def handle(payload: str) -> None:
    with open("handled", "a") as file:
        file.write(payload + "\\n")


@app.on_connect
async def connected(app) -> None:
    print("connected", flush=True)
"""


async def test_killed_between_handler_and_mark_it_is_handled_again(
    mosquitto: Mosquitto, redis_server: RedisServer, mqttapi: CommandLine, tmp_path: Path
) -> None:
    """And once it is marked, another delivery is not handled."""
    mqttapi.write("main.py", APP)

    def handled() -> list[str]:
        path = tmp_path / "handled"
        return path.read_text().splitlines() if path.exists() else []

    app = mqttapi.start("run", "main:app", "--broker", mosquitto.url, "--instance", "a", REDIS_URL=redis_server.url)
    await asyncio.to_thread(app.wait_for, "connected")
    async with client(mosquitto.url) as publisher:
        await publisher.publish("orders", b"one", qos=1, user_properties=[("message-id", "1")])
        await asyncio.to_thread(app.wait_for, "was killed by SIGKILL: starting it again")
        await eventually(lambda: handled() == ["one", "one"], within=20, what=lambda: app.output)
        await publisher.publish("orders", b"one", qos=1, user_properties=[("message-id", "1")])
        await publisher.publish("orders", b"two", qos=1, user_properties=[("message-id", "2")])
        await eventually(lambda: "two" in handled())
    assert handled() == ["one", "one", "two"]
    assert await asyncio.to_thread(app.stop) == 0


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"key": KEY, "ttl": 0}, "ttl must be at least 1 s, got 0"),
        ({"key": KEY, "clock": 5}, "clock must be a function that gives seconds, got 5"),
        ({"key": KEY, "lease": 60}, "lease must be 1 to 50 s, got 60"),
        (
            {"key": ""},
            (
                "where to look must be a name such as 'device_id', 'payload.id' or 'property.id', or a function of the "
                "context, got ''"
            ),
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Deduplicate(**arguments)
    assert str(caught.value) == f"Deduplicate: {text}"


def test_a_key_function_takes_the_context() -> None:
    with pytest.raises(ConfigurationError, match=r"^Deduplicate: <lambda>\(\) must take one argument, the context$"):
        Deduplicate(lambda: 1)  # type: ignore[arg-type, misc]


def test_a_key_that_has_to_be_awaited_is_refused() -> None:
    async def key(context: Context) -> str:
        return "1"

    with pytest.raises(ConfigurationError, match=r"key\(\) is an 'async def': it must be a plain function"):
        Deduplicate(key)
