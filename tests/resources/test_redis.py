"""Redis against a real server: by type, with a deadline, away at the start and in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mqttapi import App, ConfigurationError, Context, ResourceUnavailable, Retry
from mqttapi.config import Settings
from mqttapi.resources import backends
from mqttapi.resources.redis import check_redis, open_redis
from mqttapi.testing import TestClient
from tests.support.mosquitto import Mosquitto
from tests.support.process import free_port
from tests.support.redis import RedisServer
from tests.support.waiting import eventually


def settings(url: str | None, **values: Any) -> Settings:
    return Settings(redis_url=url, redis_timeout=values.pop("redis_timeout", 0.5), instance="test", **values)


def storing(url: str | None, *, redis: Any = "required", **options: Any) -> App:
    app = App("redis", settings=settings(url), redis=redis)

    @app.topic("s/<key>", **options)
    async def store(key: str, payload: bytes, redis: Redis) -> None:
        await redis.set(key, payload)

    return app


async def test_a_handler_gets_redis_by_its_type(redis_server: RedisServer) -> None:
    app = storing(redis_server.url)
    async with TestClient(app) as client:
        await client.publish("s/one", b"1")
    async with Redis.from_url(redis_server.url) as redis:
        assert await redis.get("one") == b"1"


async def test_handlers_and_resources_share_one_client_which_is_closed_at_the_end(redis_server: RedisServer) -> None:
    seen: list[Redis] = []
    app = App("redis", settings=settings(redis_server.url))

    class Cache:
        def __init__(self, redis: Redis) -> None:
            self.redis = redis

    @app.resource
    def cache(redis: Redis) -> Cache:
        return Cache(redis)

    @app.topic("a")
    async def a(redis: Redis, cache: Cache) -> None:
        seen.extend((redis, cache.redis))
        await redis.ping()

    async with TestClient(app) as client:
        await client.publish("a")
    assert seen[0] is seen[1]
    assert not any(c.is_connected for c in seen[0].connection_pool._available_connections)


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:{port}/0", "redis://user:s3cret@127.0.0.1:{port}"])
async def test_redis_down_at_start_is_named_without_its_password(url: str) -> None:
    port = free_port()
    with pytest.raises(ResourceUnavailable, match=rf"Redis at 127\.0\.0\.1:{port} \(REDIS_URL\) is not") as raised:
        async with TestClient(storing(url.format(port=port))):
            pass
    assert "s3cret" not in str(raised.value)


async def test_redis_frozen_at_start_is_given_up(redis_server: RedisServer) -> None:
    redis_server.pause()
    redis = open_redis(settings(redis_server.url, redis_timeout=10.0))
    with pytest.raises(ResourceUnavailable, match=r"no answer within 0\.2 s"):
        await check_redis(redis, 0.2)
    await redis.aclose()


async def test_a_wrong_password_is_told_at_start(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as redis:
        await redis.config_set("requirepass", "right")
    with pytest.raises(ResourceUnavailable, match="invalid username-password pair") as raised:
        async with TestClient(storing(redis_server.url.replace("//", "//:wr0ng@"))):
            pass
    assert "wr0ng" not in str(raised.value)


async def test_a_handler_without_redis_url_is_told_at_start() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"store\(\) asks for Redis, but REDIS_URL is not set\. Set it, such as REDIS_URL=redis://localhost:6379/0",
    ):
        async with TestClient(storing(None)):
            pass


async def test_a_wrong_redis_url_is_told_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match=r"REDIS_URL: ") as raised:
        async with TestClient(storing("redis://:s3cret@host:port")):
            pass
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


async def test_an_option_that_redis_has_not_is_told_at_start() -> None:
    app = storing("redis://127.0.0.1:1/0?max_conections=5")
    with pytest.raises(ConfigurationError, match=r"REDIS_URL: got an unexpected keyword argument 'max_conections'"):
        async with TestClient(app):
            pytest.fail("started")


def test_a_blocking_redis_is_told_from_the_one_that_is_injected() -> None:
    import redis

    app = App()
    with pytest.raises(
        ConfigurationError, match=r"redis\.client\.Redis is another one than redis\.asyncio\.client\.Redis"
    ):

        @app.topic("t")
        async def handler(redis: redis.Redis) -> None: ...


async def test_a_hint_that_allows_none_gets_none_without_redis_url() -> None:
    given: list[Redis | None] = []
    app = App("redis", settings=settings(None))

    @app.topic("a")
    async def a(redis: Redis | None) -> None:
        given.append(redis)

    async with TestClient(app) as client:
        await client.publish("a")
    assert given == [None]


async def test_an_overridden_redis_is_never_opened() -> None:
    class Fake:
        async def set(self, key: str, value: bytes) -> None:
            self.stored = key, value

    app, fake = storing(None), Fake()
    app.dependency_overrides[Redis] = fake
    async with TestClient(app) as client:
        await client.publish("s/one", b"1")
    assert fake.stored == ("one", b"1")


async def test_optional_redis_may_be_away_at_start_and_come_later(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer()
    app = storing(server.url, redis="optional")
    async with TestClient(app, raise_exceptions=False) as client:
        assert "It is optional" in caplog.text
        delivery = await client.publish("s/one", b"1")
        assert delivery.outcome == "failed"
        assert isinstance(delivery.outcomes[app.routes[0].name].error, RedisConnectionError)
        with server:
            assert (await client.publish("s/one", b"1")).outcome == "done"


def test_redis_is_required_or_optional() -> None:
    with pytest.raises(ConfigurationError, match="redis must be 'required' or 'optional', got 'maybe'"):
        App("a", redis="maybe")  # type: ignore[arg-type]


# -- the deadline ---------------------------------------------------------------------------------------------------


async def test_a_frozen_redis_ends_every_command_within_the_deadline_and_answers_do_not_mix_up(
    redis_server: RedisServer,
) -> None:
    redis = open_redis(settings(redis_server.url))
    for number in range(30):
        await redis.set(f"key-{number}", number)
    redis_server.pause()
    results = await asyncio.gather(*(redis.get(f"key-{number}") for number in range(30)), return_exceptions=True)
    assert {type(result) for result in results} == {RedisTimeoutError}
    assert str(results[0]) == (
        f"Redis at 127.0.0.1:{redis_server.port} did not answer GET within 0.5 s (MQTTAPI_REDIS_TIMEOUT)"
    )
    redis_server.resume()
    results = await asyncio.gather(*(redis.get(f"key-{number}") for number in range(30)))
    assert results == [b"%d" % number for number in range(30)]
    await redis.aclose()


async def test_pipelines_and_transactions_have_the_deadline_too(redis_server: RedisServer) -> None:
    redis = open_redis(settings(redis_server.url))
    async with redis.pipeline() as pipeline:
        pipeline.set("a", 1)
        pipeline.incr("a")
        await pipeline.execute()
    redis_server.pause()
    async with redis.pipeline() as pipeline:
        with pytest.raises(RedisTimeoutError, match="did not answer a pipeline within"):
            pipeline.set("a", 5)
            await pipeline.execute()
    async with redis.pipeline() as pipeline:
        with pytest.raises(RedisTimeoutError, match="did not answer WATCH within"):
            await pipeline.watch("a")
    redis_server.resume()
    await redis.aclose()


async def test_a_command_that_is_there_to_wait_may_wait_longer(redis_server: RedisServer) -> None:
    redis = open_redis(settings(redis_server.url, redis_timeout=0.1))
    blpop: Any = redis.blpop(["list"], timeout=20)
    waiting: asyncio.Task[Any] = asyncio.create_task(blpop)

    async def blocked() -> bool:
        return bool((await redis.info("clients"))["blocked_clients"])

    await eventually(blocked)
    loop = asyncio.get_running_loop()
    later = loop.time() + 0.3
    await eventually(lambda: loop.time() > later)  # well beyond the deadline
    await redis.rpush("list", "x")
    assert list(await waiting) == [b"list", b"x"]
    await redis.aclose()


async def test_more_commands_at_once_than_connections_wait_for_each_other(redis_server: RedisServer) -> None:
    redis = open_redis(settings(f"{redis_server.url}?max_connections=2", redis_timeout=10.0))
    counts = await asyncio.gather(*(redis.incr("count") for _ in range(200)))
    assert sorted(counts) == list(range(1, 201))
    await redis.aclose()


async def test_the_client_outlives_a_killed_redis(redis_server: RedisServer) -> None:
    redis = open_redis(settings(redis_server.url))
    await redis.set("a", 1)
    redis_server.kill()
    with pytest.raises(RedisConnectionError, match=str(redis_server.port)):
        await redis.get("a")
    redis_server.start()
    assert await redis.get("a") is None
    await redis.aclose()


async def test_redis_out_of_memory_is_a_failure_that_is_retried(redis_server: RedisServer) -> None:
    app = App("redis", settings=settings(redis_server.url))
    attempts: list[int] = []

    @app.topic("s/<key>", retry=Retry(attempts=3))
    async def store(key: str, payload: bytes, redis: Redis, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 2:
            await redis.config_set("maxmemory", 0)
        await redis.set(key, payload)

    async with Redis.from_url(redis_server.url) as redis:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", 1)
    async with TestClient(app) as client:
        assert (await client.publish("s/one", b"1")).outcome == "done"
    assert attempts == [1, 2]


# -- in a running app -----------------------------------------------------------------------------------------------


async def test_readiness_tells_of_redis(
    mosquitto: Mosquitto, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "CHECK", 0.02)
    app = storing(redis_server.url)
    async with app.running(broker=mosquitto.url):
        assert app.readiness == ()
        redis_server.kill()
        await eventually(lambda: "Redis at 127.0.0.1" in " ".join(app.readiness))
        redis_server.start()
        await eventually(lambda: app.readiness == ())
