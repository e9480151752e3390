from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mqttapi import App
from mqttapi.config import Settings
from mqttapi.errors import ConfigurationError
from mqttapi.middleware import Deduplicate, RateLimit
from mqttapi.testing import TestClient
from tests.middleware.builtin.support import Clock, fate, message
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.command_line import CommandLine
    from tests.support.mosquitto import Mosquitto
    from tests.support.redis import RedisServer

TOO_MANY = "more than 5 messages in 60 s"
STRATEGIES = pytest.mark.parametrize("strategy", ["sliding_window", "token_bucket"])
STORES = pytest.mark.parametrize("store", ["memory", "redis"])

Strategy = Literal["sliding_window", "token_bucket"]


async def fates(limiter: RateLimit, count: int, **given: Any) -> Counter[str]:
    return Counter([await fate(limiter, message(**given)) for _ in range(count)])


# ------------------------------------------------------------------------------------------------------------- the rule


@STRATEGIES
@STORES
async def test_so_many_pass_and_no_more(strategy: Strategy, store: str, redis: Redis) -> None:
    limiter = RateLimit(5, strategy=strategy, store=redis if store == "redis" else "memory", clock=Clock())
    assert await fates(limiter, 20) == {"passed": 5, f"rejected: {TOO_MANY}": 15}


async def test_what_is_too_many_is_dropped_where_that_is_asked_for() -> None:
    assert await fates(RateLimit(5, excess="drop"), 6) == {"passed": 5, f"dropped: {TOO_MANY}": 1}


@given(limit=st.integers(1, 4), steps=st.lists(st.integers(0, 40), max_size=40))
def test_no_window_has_more_than_the_limit_and_none_is_refused_without_need(limit: int, steps: list[int]) -> None:
    """The oracle counts what has passed in the period before each message."""
    clock, let_through = Clock(), list[float]()
    limiter = RateLimit(limit, seconds=60, store="memory", clock=clock)
    for step in steps:
        clock.now += step
        expected = sum(at > clock.now - 60 for at in let_through) < limit
        assert (asyncio.run(fate(limiter, message())) == "passed") is expected
        if expected:
            let_through.append(clock.now)


@given(limit=st.sampled_from([1, 2, 4]), burst=st.integers(1, 6), steps=st.lists(st.integers(0, 40), max_size=40))
def test_a_bucket_gets_its_tokens_evenly(limit: int, burst: int, steps: list[int]) -> None:
    """The oracle has a bucket; with these numbers there is no rounding."""
    clock, tokens = Clock(), float(burst)
    limiter = RateLimit(limit, seconds=64, strategy="token_bucket", burst=burst, store="memory", clock=clock)
    for step in steps:
        clock.now += step
        tokens = min(burst, tokens + step * limit / 64)
        expected = tokens >= 1
        assert (asyncio.run(fate(limiter, message())) == "passed") is expected
        tokens -= expected


@given(
    strategy=st.sampled_from(["sliding_window", "token_bucket"]),
    limit=st.sampled_from([1, 2, 4]),
    steps=st.lists(st.integers(0, 3), max_size=30),
)
def test_who_waits_passes_in_order_and_keeps_the_limit(strategy: Strategy, limit: int, steps: list[int]) -> None:
    clock = Clock()
    booked: list[float] = []

    async def book(seconds: float) -> None:
        booked[-1] += seconds

    limiter = RateLimit(
        limit, seconds=8, excess="wait", strategy=strategy, burst=1 if strategy == "token_bucket" else None,
        store="memory", clock=clock, sleep=book,
    )  # fmt: skip
    for step in steps:
        clock.now += step
        booked.append(clock.now)
        if asyncio.run(fate(limiter, message())) != "passed":
            booked.pop()
        else:
            assert booked[-1] - clock.now <= 5
    assert booked == sorted(booked)
    assert all(later - earlier >= 8 for earlier, later in zip(booked, booked[limit:], strict=False))


async def test_what_would_wait_too_long_is_rejected_and_takes_no_place() -> None:
    clock = Clock()
    limiter = RateLimit(1, seconds=6, excess="wait", store="memory", clock=clock, sleep=clock.sleep)
    assert await fates(limiter, 3) == {"passed": 1, "rejected: more than 1 messages in 6 s": 2}
    clock.now += 2
    assert await fate(limiter, message()) == "passed"
    assert clock.slept == [4]


# ---------------------------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize(
    ("by", "first", "second"),
    [
        ("topic", {"topic": "sensors/1/data"}, {"topic": "sensors/2/data"}),
        ("device_id", {"topic": "sensors/1/data"}, {"topic": "sensors/2/data"}),
        ("property.tenant", {"properties": {"tenant": "a"}}, {"properties": {"tenant": "b"}}),
        ("payload.from.id", {"payload": b'{"from": {"id": 1}}'}, {"payload": b'{"from": {"id": 2}}'}),
        (lambda context: context.message.payload, {"payload": b"1"}, {"payload": b"2"}),
        ("topic", {"route": "a"}, {"route": "b"}),
    ],
)
async def test_each_value_and_each_route_has_a_limit_of_its_own(by: Any, first: Any, second: Any) -> None:
    limiter = RateLimit(2, by=by, excess="drop", store="memory")
    for given_ in (first, second):
        assert (await fates(limiter, 3, **given_))["passed"] == 2


async def test_all_messages_together_where_nothing_has_a_limit_of_its_own() -> None:
    limiter = RateLimit(2, by=None, store="memory")
    ended = [await fate(limiter, message(f"sensors/{device}/data")) == "passed" for device in range(4)]
    assert ended == [True, True, False, False]


async def test_routes_with_one_name_count_together_also_in_objects_of_their_own(redis: Redis) -> None:
    first, second = (RateLimit(3, name="uploads", store=redis) for _ in range(2))
    ended = [await fate(limiter, message(route=str(limiter))) for limiter in (first, second) * 2]
    assert [text == "passed" for text in ended] == [True, True, True, False]


def two_routes(settings: Settings, first: list[Any], second: list[Any]) -> App:
    app = App("plant", settings=settings)

    @app.topic("a", name="a", middleware=first)
    async def a() -> None: ...

    @app.topic("b", name="b", middleware=second)
    async def b() -> None: ...

    return app


def settings_of(store: str, shared_redis: RedisServer) -> Settings:
    return Settings(redis_url=shared_redis.url if store == "redis" else None)


async def passed(app: App, topics: str) -> str:
    """The topics of the messages that have passed."""
    async with TestClient(app) as tester:
        return "".join([topic for topic in topics if (await tester.publish(topic)).outcome == "done"])


@STORES
@STRATEGIES
async def test_limiters_of_one_name_count_together_in_one_run_of_an_app(
    strategy: Strategy, store: str, redis: Redis, shared_redis: RedisServer
) -> None:
    pair = [[RateLimit(3, by=None, name="api", strategy=strategy)] for _ in range(2)]
    app = two_routes(settings_of(store, shared_redis), *pair)
    assert await passed(app, "aabbb") == "aab"
    assert await passed(app, "b") == ("b" if store == "memory" else "")


@STORES
@STRATEGIES
async def test_each_may_treat_what_is_too_many_in_its_own_way(
    store: str, strategy: Strategy, redis: Redis, shared_redis: RedisServer
) -> None:
    """What one has booked for later is to another one no sign of a clock that was set back."""
    clock = Clock()
    both: Any = {"limit": 1, "seconds": 2, "by": None, "name": "api", "strategy": strategy, "clock": clock}
    first, second = RateLimit(**both, excess="drop"), RateLimit(**both, excess="wait", sleep=clock.sleep)
    assert await passed(two_routes(settings_of(store, shared_redis), [first], [second]), "aaba") == "ab"
    assert [math.ceil(wait) for wait in clock.slept] == [2]


@STORES
async def test_a_name_that_is_also_that_of_a_route_is_another_limiter(
    store: str, redis: Redis, shared_redis: RedisServer
) -> None:
    limiters = RateLimit(2, by=None, name="b"), RateLimit(2, by=None)
    app = two_routes(settings_of(store, shared_redis), [limiters[0]], [limiters[1]])
    assert await passed(app, "aaabbb") == "aabb"


@STORES
@pytest.mark.parametrize(
    ("given_", "count"),
    [
        ([{"limit": 20, "seconds": 0.3}, {"limit": 5}], 5),
        ([{"limit": 5}, {"limit": 20}], 5),
        ([{"limit": 5}, {"limit": 5}], 5),
        ([{"limit": 5}, {"limit": 5, "by": None}, {"limit": 5, "by": lambda context: "a"}], 5),
        ([{"limit": 5, "strategy": "token_bucket"}, {"limit": 5, "strategy": "token_bucket", "burst": 3}], 3),
    ],
)
async def test_each_of_several_on_one_route_counts_for_itself(
    store: str, given_: list[Any], count: int, redis: Redis, shared_redis: RedisServer
) -> None:
    app = two_routes(settings_of(store, shared_redis), [RateLimit(**each) for each in given_], [])
    assert await passed(app, "a" * 12) == "a" * count
    if store == "redis":
        assert len(await redis.keys()) == len(given_)


async def test_one_around_the_app_and_one_like_it_around_the_route(redis: Redis, shared_redis: RedisServer) -> None:
    app = two_routes(settings_of("redis", shared_redis), [RateLimit(3)], [])
    app.add_middleware(RateLimit(3))
    assert await passed(app, "aaaabbbb") == "aaabbb"


@STORES
async def test_two_of_one_name_on_one_route_count_a_message_once(
    store: str, redis: Redis, shared_redis: RedisServer
) -> None:
    app = two_routes(settings_of(store, shared_redis), [RateLimit(4, by=None, name="api") for _ in range(2)], [])
    assert await passed(app, "aaaaa") == "aaaa"


async def test_one_name_has_one_limit() -> None:
    app = two_routes(Settings(), [RateLimit(3, name="api")], [RateLimit(4, name="api")])
    with pytest.raises(ConfigurationError) as caught:
        await TestClient(app).__aenter__()
    text = str(caught.value)
    assert text.startswith("RateLimit(4, seconds=60, excess='reject') around 'b' (test_ratelimit.py:")
    assert text.endswith(
        ") is called 'api', as is RateLimit(3, seconds=60, excess='reject') around 'a': limiters of one name count "
        "together, so they need one limit, period, strategy and burst. Give one of them another name"
    )


async def test_what_a_sender_writes_leads_to_no_other_limiter(redis: Redis) -> None:
    """The route "a" with the key ":b", and the route "a:" with the key "b"."""
    limiter = RateLimit(1, by="property.x", store=redis)
    assert await fate(limiter, message(route="a", properties={"x": ":b"})) == "passed"
    assert await fate(limiter, message(route="a:", properties={"x": "b"})) == "passed"


async def test_long_keys_take_little_room(redis: Redis) -> None:
    limiter = RateLimit(1, by="property.x", store=redis)
    await fate(limiter, message(properties={"x": "x" * 60_000}))
    assert await fate(limiter, message(properties={"x": "x" * 59_999})) == "passed"
    assert max(map(len, await redis.keys())) < 200


async def test_keys_that_nobody_uses_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimit(1, store="memory", clock=clock)
    for number in range(1000):
        clock.now += 1
        await fate(limiter, message(f"sensors/{number}/data"))
    [made] = limiter._limiters.made.values()
    assert len(made._times) <= 62  # type: ignore[attr-defined]


async def test_a_second_attempt_is_not_counted_unless_it_can_wait() -> None:
    clock = Clock()
    rejecting = RateLimit(1, store="memory", clock=clock)
    waiting = RateLimit(1, seconds=2, excess="wait", store="memory", clock=clock, sleep=clock.sleep)
    for limiter in (rejecting, waiting):
        context = message()
        await fate(limiter, context)
        context.attempt = 2
        assert await fate(limiter, context) == "passed"
    assert clock.slept == [2]


# ---------------------------------------------------------------------------------------------------------- in an app


async def test_an_alias_gives_messages_and_minutes_as_laravel_does() -> None:
    app = App("plant", settings=Settings(redis_url=None))
    app.middleware_alias("throttle", RateLimit)
    handled: list[str] = []

    @app.topic("devices/<device_id>/data", middleware=["throttle:2,1,device_id,drop"])
    async def data(device_id: str) -> None:
        handled.append(device_id)

    for _ in range(2):  # what is counted in memory ends with the run of the app
        async with TestClient(app) as tester:
            outcomes = [(await tester.publish(f"devices/{device}/data")).outcome for device in "77877"]
        assert outcomes == ["done", "done", "done", "dropped", "dropped"]
    assert handled == list("778778")


async def test_redis_is_that_of_the_app(shared_redis: RedisServer, redis: Redis) -> None:
    app = App("plant", settings=Settings(redis_url=shared_redis.url))

    @app.topic("t", middleware=[RateLimit(1)], name="t")
    async def handler() -> None: ...

    for outcome in ("done", "rejected"):
        async with TestClient(app) as tester:
            assert (await tester.publish("t")).outcome == outcome
    assert await redis.keys() == [b"mqttapi:rate:plant:route:t:sliding_window:1:60.0:1:topic:0:t"]


async def test_memory_of_one_process_is_warned_of_where_several_share_a_route(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = RateLimit(5)
    await fate(limiter, message(shared=True))
    await fate(limiter, message(shared=True))
    assert [record.getMessage() for record in caplog.records] == [
        (
            "RateLimit of the shared route ingest knows of this process alone: set REDIS_URL, so that all processes share "
            "what it knows, or store='memory' where there is one"
        )
    ]


# ---------------------------------------------------------------------------------------------------------- with Redis


@STRATEGIES
async def test_it_is_exact_however_many_ask_at_once(
    strategy: Strategy, redis: Redis, shared_redis: RedisServer
) -> None:
    async with Redis.from_url(shared_redis.url) as other:
        limiters = [RateLimit(7, strategy=strategy, excess="drop", store=store) for store in (redis, other)]
        ended = await asyncio.gather(*(fate(limiter, message()) for limiter in limiters for _ in range(50)))
    assert Counter(ended)["passed"] == 7


@STRATEGIES
async def test_redis_books_places_for_those_who_wait(strategy: Strategy, redis: Redis) -> None:
    clock = Clock()
    limiter = RateLimit(2, seconds=2, excess="wait", strategy=strategy, store=redis, sleep=clock.sleep)
    assert (await fates(limiter, 6))["passed"] == 6
    waits = {"sliding_window": [2, 2, 4, 4], "token_bucket": [1, 2, 3, 4]}[strategy]
    assert [math.ceil(wait) for wait in clock.slept] == waits


@STRATEGIES
async def test_a_clock_that_was_set_back_locks_nobody_out(strategy: Strategy, redis: Redis) -> None:
    limiter = RateLimit(1, strategy=strategy, store=redis)
    await fate(limiter, message())
    [key] = await redis.keys()
    far = (await redis.time())[0] * 10**6 + 7200 * 10**6
    await (redis.lset(key, 0, str(far)) if strategy == "sliding_window" else redis.set(key, str(far)))
    assert await fate(limiter, message()) == "passed"


@STRATEGIES
async def test_keys_in_redis_end_with_their_period(strategy: Strategy, redis: Redis) -> None:
    await fate(RateLimit(5, seconds=30, strategy=strategy, store=redis), message())
    [key] = await redis.keys()
    assert 0 < await redis.pttl(key) <= 30_000


async def test_an_error_of_redis_is_one_of_the_message(redis: Redis) -> None:
    await redis.set("mqttapi:rate:plant:route:ingest:sliding_window:1:60.0:1:device_id:0:7", "x")
    limiter = RateLimit(1, by="device_id", store=redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await fate(limiter, message())


async def test_a_message_waits_for_a_redis_that_is_away(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as away:
        limiter = RateLimit(1, store=away)
        redis_server.stop()
        waiting = asyncio.create_task(fate(limiter, message()))
        await asyncio.wait([waiting], timeout=0.01)
        assert not waiting.done()
        redis_server.start()
        assert await waiting == "passed"


APP = """
from mqttapi import App
from mqttapi.middleware import Middleware, RateLimit
from mqttapi.resources.redis import Redis

app = App("burst")


class Seen(Middleware):
    async def handle(self, context, next_handler):
        try:
            return await next_handler(context)
        finally:
            await self.redis.incr("seen")


@app.topic("in/<id>", shared=True, middleware=[Seen(), RateLimit(5, excess="drop")])
async def handle(redis: Redis) -> None:
    await redis.incr("handled")


@app.on_connect
async def connected(app) -> None:
    print("connected", flush=True)
"""


async def test_five_of_a_burst_of_two_hundred_pass_three_processes(
    mosquitto: Mosquitto, redis_server: RedisServer, mqttapi: CommandLine
) -> None:
    mqttapi.write("main.py", APP)
    for instance in "abc":
        mqttapi.start("run", "main:app", "--broker", mosquitto.url, "--instance", instance, REDIS_URL=redis_server.url)
    for running in mqttapi.running:
        await asyncio.to_thread(running.wait_for, "connected")
    async with client(mosquitto.url) as publisher, Redis.from_url(redis_server.url) as counters:
        for _ in range(200):
            await publisher.publish("in/1", b"", qos=1)

        async def all_seen() -> bool:
            return int(await counters.get("seen") or 0) == 200

        await eventually(all_seen, within=30, what=lambda: "\n".join(running.output for running in mqttapi.running))
        assert int(await counters.get("handled") or 0) == 5
    assert [running.stop() for running in mqttapi.running] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"limit": 0}, "limit must be a whole number, 1 to 10,000, got 0"),
        ({"limit": "60"}, "limit must be a whole number, 1 to 10,000, got '60'"),
        ({"limit": 10_001}, "limit must be a whole number, 1 to 10,000, got 10001"),
        ({"limit": 1, "seconds": 0}, "the period must be at least 0.001 s, got 0"),
        ({"limit": 1, "minutes": 0}, "minutes must be a number above 0, got 0"),
        ({"limit": 1, "minutes": "1"}, "minutes must be a number above 0, got '1'"),
        ({"limit": 1, "name": ""}, "name must be a text, or None, got ''"),
        ({"limit": 1, "minutes": 1, "seconds": 1}, "minutes=1 and seconds=1 say the same: give one"),
        ({"limit": 1, "excess": "ignore"}, "excess must be 'drop', 'reject' or 'wait', got 'ignore'"),
        ({"limit": 1, "strategy": "x"}, "strategy must be 'sliding_window' or 'token_bucket', got 'x'"),
        ({"limit": 1, "max_wait": 6}, "max_wait must be above 0 s and at most 5 s, got 6"),
        ({"limit": 1, "burst": 2}, "burst=2 is for strategy='token_bucket': a window has its limit"),
        ({"limit": 1, "burst": 0, "strategy": "token_bucket"}, "burst must be a whole number from 1 up, got 0"),
        ({"limit": 1, "clock": 5}, "clock must be a function that gives seconds, got 5"),
        ({"limit": 1, "sleep": None}, "sleep must be an async function that takes seconds, got None"),
        ({"limit": 1, "store": "disk"}, "store must be 'auto', 'memory', 'redis' or a client of redis.asyncio, got 'disk'"),
        (
            {"limit": 1, "by": "payload."},
            ("where to look must be a name such as 'device_id', 'payload.id' or 'property.id', or a function of the "
            "context, got 'payload.'"),
        ),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RateLimit(**arguments)
    assert str(caught.value) == f"RateLimit: {text}"


@pytest.mark.parametrize(
    "make", [lambda store: RateLimit(5, store=store), lambda store: Deduplicate("property.id", store=store)]
)
def test_a_client_that_cannot_be_awaited_is_refused(make: Any) -> None:
    """It has the same methods, and would fail for each message."""
    with pytest.raises(
        ConfigurationError,
        match=r"store must be 'auto', 'memory', 'redis' or a client of redis.asyncio, got <redis.client",
    ):
        make(SyncRedis())


async def test_a_name_that_is_nowhere_is_the_programs_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        await fate(RateLimit(1, by="devce_id"), message())
    assert str(caught.value) == (
        "RateLimit: 'devce_id' is neither a path parameter of the route 'ingest' (device_id), nor put into the context "
        "by middleware"
    )


async def test_redis_is_asked_for_where_there_is_none() -> None:
    app = App("plant", settings=Settings(redis_url=None))

    @app.topic("t", middleware=[RateLimit(1, store="redis")])
    async def handler() -> None: ...

    async with TestClient(app) as tester:
        with pytest.raises(ConfigurationError, match="REDIS_URL is not set"):
            await tester.publish("t")
