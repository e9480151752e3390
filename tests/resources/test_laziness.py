"""What nobody asks for is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "redis", "sqlalchemy", "sqlmodel", "aiosqlite", "asyncpg"
APP = """
import sys
from mqttapi import App
from mqttapi.testing import TestClient
import asyncio

app = App("lazy")

@app.topic("a")
async def a(payload: str) -> None: ...

async def main():
    async with TestClient(app) as client:
        await client.publish("a", "x")

asyncio.run(main())
"""


@pytest.mark.parametrize("program", ["import sys, mqttapi", APP])
def test_neither_the_import_nor_an_app_without_them_imports_redis_or_a_database(program: str) -> None:
    seen = f"{program}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
