"""Handlers that use Redis: set REDIS_URL, such as redis://localhost:6379/0."""

from redis.asyncio import Redis

from mqttapi import App

app = App("plant")


@app.topic("sensors/<device_id>/temperature")
async def remember(device_id: str, payload: float, redis: Redis) -> None:
    async with redis.pipeline() as pipeline:
        pipeline.hset("last", device_id, str(payload))
        pipeline.incr("count")
        await pipeline.execute()


@app.topic("sensors/<device_id>/last")
async def last(device_id: str, redis: Redis) -> float | None:
    """Answers the Response Topic."""
    known = await redis.hget("last", device_id)
    return float(known) if known is not None else None
