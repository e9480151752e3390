from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from tests.cli.conftest import CommandLine
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for all tests that use apps or routes of their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def redis(shared_redis: RedisServer) -> AsyncIterator[Redis]:
    """A client; Redis is empty."""
    async with Redis.from_url(shared_redis.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def mqttapi(tmp_path: Path) -> Iterator[CommandLine]:
    """The real command line; what it started ends with the test."""
    line = CommandLine(tmp_path)
    yield line
    for command in line.running:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
