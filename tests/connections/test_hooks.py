"""`@app.on_connect` and `@app.on_disconnect`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mqttapi import App, ConfigurationError, hooks
from mqttapi.config import Settings
from mqttapi.hooks import Hooks
from tests.support.fake_broker import FakeBroker
from tests.support.packets import PacketType
from tests.support.waiting import eventually


def new_app(name: str = "hooks") -> App:
    app = App(name, settings=Settings(instance="test", grace=5.0))

    @app.topic("s/<id>")
    async def handle() -> None: ...

    return app


async def test_hooks_follow_the_subscription_and_its_loss(fake_broker: FakeBroker) -> None:
    app, seen = new_app(), []

    @app.on_connect
    async def hello() -> None:
        seen.append("connected")
        assert fake_broker.packets(PacketType.SUBSCRIBE)

    @app.on_disconnect
    async def goodbye(app: App) -> None:
        seen.append(f"{app.name} disconnected")

    async with app.running(broker=fake_broker.url):
        await eventually(lambda: seen == ["connected"])
        (await fake_broker.subscribed()).reset()
        await eventually(lambda: seen == ["connected", "hooks disconnected", "connected"])
    assert seen == ["connected", "hooks disconnected", "connected", "hooks disconnected"]


async def test_hooks_may_publish_even_at_the_end(fake_broker: FakeBroker) -> None:
    """The publishing connection outlives the link."""
    app = new_app()

    @app.on_connect
    async def hello(app: App) -> None:
        await app.publish("status", "online")

    @app.on_disconnect
    async def goodbye(app: App) -> None:
        await app.publish("status", "offline")

    async with app.running(broker=fake_broker.url):
        await eventually(lambda: fake_broker.packets(PacketType.PUBLISH))
    assert [packet.publish.payload for packet in fake_broker.packets(PacketType.PUBLISH)] == [b"online", b"offline"]


async def test_a_hook_that_fails_is_logged_and_harms_nobody(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = new_app(), []

    @app.on_connect
    async def fails() -> None:
        raise ValueError("no luck")

    @app.on_connect
    async def works() -> None:
        seen.append("connected")

    async with app.running(broker=fake_broker.url):
        await eventually(lambda: seen)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "a hook of on_connect failed"
    assert "no luck" in caplog.text


async def test_a_hook_that_hangs_ends_with_the_grace(fake_broker: FakeBroker) -> None:
    ended: list[bool] = []
    app = App("hangs", settings=Settings(instance="test", grace=0.05))

    @app.on_connect
    async def hangs() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async with app.running(broker=fake_broker.url):
        pass
    assert ended == [True]


async def test_a_hook_that_hangs_does_not_put_off_the_end(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no grace of its own, and those of `on_disconnect` run all the same."""
    monkeypatch.setattr(hooks, "PATIENCE", 0.0)
    app, seen = App("hangs", settings=Settings(instance="test", grace=600.0)), []

    @app.on_connect
    async def hangs() -> None:
        seen.append("connected")
        await asyncio.get_running_loop().create_future()

    @app.on_connect
    async def never() -> None:
        seen.append("never")

    @app.on_disconnect
    async def goodbye() -> None:
        seen.append("disconnected")

    async with app.running(broker=fake_broker.url):
        await eventually(lambda: seen)
    assert seen == ["connected", "disconnected"]
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert warnings == ["a hook of on_connect still runs while the app ends: cancelled"]


async def test_a_hook_that_says_goodbye_has_time_behind_a_handler_that_took_all_of_it(fake_broker: FakeBroker) -> None:
    app, seen = App("hooks", settings=Settings(instance="test", grace=1.0)), []

    @app.topic("s/<id>")
    async def hangs() -> None:
        seen.append("called")
        await asyncio.get_running_loop().create_future()

    @app.on_disconnect
    async def goodbye() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        seen.append("disconnected")

    async with app.running(broker=fake_broker.url):
        (await fake_broker.subscribed()).publish("s/1", qos=1, packet_id=1)
        await eventually(lambda: seen)
    assert seen == ["called", "disconnected"]


async def test_a_hook_of_on_disconnect_that_hangs_is_cancelled_and_told(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("hangs", settings=Settings(instance="test", grace=0.5))

    @app.on_disconnect
    async def hangs() -> None:
        await asyncio.get_running_loop().create_future()

    async with app.running(broker=fake_broker.url):
        pass
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert warnings == ["a hook of on_disconnect was not done within the grace: cancelled"]


async def test_a_hook_that_was_cancelled_inside_has_failed_and_the_next_one_runs(
    fake_broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = new_app(), []

    @app.on_connect
    async def fails() -> None:
        inner = asyncio.ensure_future(asyncio.get_running_loop().create_future())
        inner.cancel()
        await inner

    @app.on_connect
    async def works() -> None:
        seen.append("connected")

    async with app.running(broker=fake_broker.url):
        for count in (1, 2):
            await eventually(lambda count=count: len(seen) == count)  # type: ignore[misc]  # a default, to bind it
            (await fake_broker.subscribed(count)).reset()
        await eventually(lambda: len(seen) == 3)
    assert caplog.text.count("a hook of on_connect failed") == 3


async def test_a_short_loss_during_a_hook_is_not_told() -> None:
    """Else hooks of a line that flickers would queue up without end."""
    app, seen, gate = new_app(), [], asyncio.Event()

    @app.on_connect
    async def hello() -> None:
        seen.append("connected")
        await gate.wait()

    @app.on_disconnect
    async def goodbye() -> None:
        seen.append("disconnected")

    told = Hooks(app)
    for connected in (True, False, True, False, True):
        told.update(connected=connected)
        await asyncio.sleep(0)
    gate.set()
    await told.finished()
    assert seen == ["connected"]
    told.update(connected=False)
    await told.finished()
    assert seen == ["connected", "disconnected"]


def plain() -> None: ...


async def two(one: object, other: object) -> None: ...


async def generator() -> Any:
    yield


FORM = "write @app.on_connect above 'async def hook()' or 'async def hook(app)'"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (plain, f"@app.on_connect: plain() is not an 'async def': {FORM}"),
        (generator, f"@app.on_connect: generator() is not an 'async def': {FORM}"),
        (two, f"@app.on_connect: two() takes more than the app: {FORM}"),
        ("hello", f"@app.on_connect: 'hello' is no function: {FORM}, without parentheses"),
    ],
)
def test_what_is_no_hook_is_refused(function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App().on_connect(function)
    assert str(caught.value) == text


async def test_hooks_are_frozen_once_the_app_runs(fake_broker: FakeBroker) -> None:
    app = new_app()
    async with app.running(broker=fake_broker.url):
        with pytest.raises(ConfigurationError, match="hooks are frozen once the app has started"):

            @app.on_disconnect
            async def late() -> None: ...
