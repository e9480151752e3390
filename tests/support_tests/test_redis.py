from __future__ import annotations

import redis

from tests.support.redis import RedisServer


def test_it_answers_on_its_url(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as connection:
        assert connection.set("a", 1)


def test_persistent_data_survives_a_kill() -> None:
    with RedisServer(persistence=True) as server:
        with redis.Redis.from_url(server.url) as connection:
            connection.set("a", 1)
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as connection:
            assert connection.get("a") == b"1"
