"""What `mqttapi new` and `mqttapi make` write. `NAME`, `CLASS` and `MODULE` are replaced."""

from __future__ import annotations

from typing import Final

__all__ = ["PARTS", "PROJECT"]

PARTS: Final = {
    "controller": '''\
"""For a router: `router.controller("MODULE/<id>", CLASS)`."""

from mqttapi import Controller, topic


class CLASS(Controller):
    @topic("data")
    async def data(self, id: str, payload: dict[str, object]) -> None:
        self.logger.info("%s sent %d values", id, len(payload))
''',
    "middleware": '''\
"""For `app/__init__.py`: `app.middleware_alias("MODULE", CLASS)`."""

from typing import Any

from mqttapi import Context, Middleware
from mqttapi.middleware import Endpoint


class CLASS(Middleware):
    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        return await next_handler(context)
''',
    "router": '''\
"""Topics under `MODULE`. Found by itself, as every module of this package."""

from mqttapi import Router

router = Router(prefix="MODULE/<id>", name="MODULE.")


@router.topic("data", name="data")
async def data(id: str, payload: dict[str, object]) -> None:
    print(f"{id}: {payload}")
''',
    "model": '''\
"""A table: `MODULE: CLASS` in a handler of `<MODULE>` is the row with that id."""

from sqlmodel import Field, SQLModel


class CLASS(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
''',
}

PROJECT: Final = {
    "app/__init__.py": '''\
"""`mqttapi dev` serves it with a broker of its own, `mqttapi run` with yours."""

from mqttapi import App

from app.middleware.timing import TimingMiddleware

app = App("NAME", discover="app.routers")
app.middleware_alias("timing", TimingMiddleware)
''',
    "app/routers/__init__.py": '''\
"""Each module here gives its `router`, and is found by itself."""
''',
    "app/routers/devices.py": '''\
"""Topics under `devices`."""

from mqttapi import Router

from app.controllers.device import DeviceController

router = Router(prefix="devices", middleware=["timing:0.5"], name="devices.")
router.controller("<device_id>", DeviceController)
''',
    "app/controllers/__init__.py": "",
    "app/controllers/device.py": '''\
"""What devices send."""

from mqttapi import Controller, topic

from app.models.reading import Reading


class DeviceController(Controller):
    @topic("data", qos=1, name="data")
    async def data(self, device_id: str, reading: Reading) -> None:
        self.logger.info("%s: %.1f °C", device_id, reading.temperature)
        if reading.temperature > 80:
            await self.publish("alerts/<id>", reading, params={"id": device_id})
''',
    "app/middleware/__init__.py": "",
    "app/middleware/timing.py": '''\
"""Tells of handlers that take long."""

import time
from typing import Any

from mqttapi import Context, Middleware
from mqttapi.middleware import Endpoint


class TimingMiddleware(Middleware):
    def __init__(self, limit: float = 1.0) -> None:
        self.limit = limit

    async def handle(self, context: Context, next_handler: Endpoint) -> Any:
        began = time.monotonic()
        try:
            return await next_handler(context)
        finally:
            took = time.monotonic() - began
            if took > self.limit:
                self.logger.warning("%s took %.1f s", context.route.name, took)
''',
    "app/models/__init__.py": "",
    "app/models/reading.py": '''\
"""What a device measures."""

from pydantic import BaseModel


class Reading(BaseModel):
    temperature: float
''',
    "tests/test_devices.py": """\
from mqttapi.testing import TestClient

from app import app


async def test_a_hot_device_raises_an_alert() -> None:
    async with TestClient(app) as client:
        delivery = await client.publish("devices/7/data", {"temperature": 90})
    assert delivery.outcome == "done"
    assert [sent.topic for sent in client.published] == ["alerts/7"]
""",
    "pyproject.toml": """\
[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["mqttapi-framework"]

[dependency-groups]
dev = ["mqttapi-framework[dev]", "pytest", "anyio"]

[tool.pytest.ini_options]
pythonpath = ["."]
anyio_mode = "auto"
""",
    ".env": """\
# Read by `mqttapi run` and `mqttapi dev`; variables of the environment come before it.
# MQTT_URL=mqtts://user:password@broker.example:8883
# REDIS_URL=redis://localhost:6379/0
# DATABASE_URL=sqlite:///app.db
""",
    ".gitignore": """\
.env
.venv/
__pycache__/
*.db
""",
    "README.md": """\
# NAME

    mqttapi dev                                             # with a broker of its own, started again at each change
    mqttapi pub devices/7/data '{"temperature": 90}'
    mqttapi routes
    mqttapi make controller Pump
    pytest
""",
}
