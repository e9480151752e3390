"""`mqttapi routes`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import InProcess

APP = '''\
from mqttapi import App, Router

app = App("plant")
router = Router(prefix="sensors/<device_id>")

@app.middleware
async def outer(context, call_next):
    return await call_next(context)

async def inner(context, call_next):
    return await call_next(context)

@router.topic("[data]", shared=True, workers=3, middleware=[inner], name="reading")
async def ingest(device_id: str) -> None:
    """Take a reading."""

@router.topic("state", qos=0)
async def state(device_id: str) -> None: ...

app.include_router(router, prefix="p")
'''


def test_the_list_for_programs(in_process: InProcess) -> None:
    in_process.write("main.py", APP)
    code, out, _ = in_process("routes", "--json")
    assert code == 0
    first, second = json.loads(out)
    assert first == {
        "name": "reading",
        "template": "p/sensors/<device_id>/[data]",
        "filter": ["$share/plant/p/sensors/+/[data]"],
        "qos": 1,
        "group": "plant",
        "workers": 3,
        "slots": [0, 1, 2],
        "handler": "main.ingest",
        "source": "main.py:13",
        "middleware": ["main.outer", "main.inner"],
        "description": "Take a reading.",
        "tags": [],
    }
    assert (second["qos"], second["group"], second["workers"]) == (0, None, None)


def test_the_table_for_people_wraps_nothing_that_is_piped(in_process: InProcess) -> None:
    in_process.write("main.py", APP)
    code, out, _ = in_process("routes")
    assert code == 0
    head, first, second = [line.split() for line in out.splitlines()]
    assert head == ["name", "template", "filter", "qos", "group", "workers", "slots", "handler", "middleware"]
    assert first[:7] == [
        "reading",
        "p/sensors/<device_id>/[data]",
        "$share/plant/p/sensors/+/[data]",
        "1",
        "plant",
        "3",
        "0-2",
    ]
    assert second[3:8] == ["0", "-", "-", "0", "main.state"]


def test_the_slots_are_those_that_the_pool_would_have(in_process: InProcess) -> None:
    in_process.write(
        "main.py",
        "from mqttapi import App\n"
        "app = App('plant')\n"
        "async def handle(): ...\n"
        "app.on('a/<x>', handle, shared=True, workers=4)\n"
        "app.on('b/<x>', handle, shared=True, workers=2)\n"
        "app.on('c/<x>', handle)\n",
    )
    for cap, expected in ((None, ["0-3", "0-1", "0"]), ("3", ["0-2", "0-1", "0"]), ("1", ["0", "0", "0"])):
        _, out, _ = in_process("routes", *(["--workers", cap] if cap else []))
        assert [line.split()[6] for line in out.splitlines()[1:]] == expected
