"""A resource that is made of another one."""

from collections.abc import AsyncIterator

from redis.asyncio import Redis

from mqttapi import App

app = App("plant")


# --8<-- [start:resources]
class Cache:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def is_new(self, key: str) -> bool:
        return bool(await self.redis.set(f"seen:{key}", 1, nx=True, ex=3600))


@app.resource
async def cache(redis: Redis) -> AsyncIterator[Cache]:
    yield Cache(redis)


@app.topic("devices/<device_id>/hello")
async def hello(device_id: str, cache: Cache) -> None:
    if await cache.is_new(device_id):
        print(f"{device_id} has come")


# --8<-- [end:resources]
