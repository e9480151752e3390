"""A path parameter whose hint is a table: the row by primary key or by a column, and what happens when there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID

import pytest
from sqlalchemy import BigInteger
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from mqttapi import App, ConfigurationError, Context, Controller, Depends, Drop, topic
from mqttapi.injection.rows import may_hold
from mqttapi.testing import TestClient


class BoundDevice(SQLModel, table=True):
    id: int = Field(primary_key=True)
    serial: str = Field(index=True)
    slug: str = "none"
    uuid: UUID | None = None
    room: str = "none"


KEY = UUID(int=7)


def make_app(**options: Any) -> App:
    app = App(**options)

    @app.resource
    async def session() -> AsyncIterator[AsyncSession]:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["bounddevice"].create)
        async with AsyncSession(engine, expire_on_commit=False) as opened:
            opened.add(BoundDevice(id=1, serial="A-7", slug="pump-7", uuid=KEY, room="north"))
            opened.add(BoundDevice(id=2, serial="A-8", slug="pump-8", room="north"))
            await opened.commit()
            yield opened
        await engine.dispose()

    return app


def note(context: Context, device: object) -> None:
    context.app.state.device = device


async def handled(app: App, topic: str, **options: Any) -> tuple[str, str, Any]:
    async with TestClient(app, **options) as client:
        delivery = await client.publish(topic)
    return delivery.outcome, delivery.reason, getattr(app.state, "device", None) if vars(app.state) else None


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("devices/<device>", "devices/1"),
        ("devices/<device:int>", "devices/1"),
        ("devices/<device:id>", "devices/1"),
        ("devices/<device:serial>", "devices/A-7"),
        ("devices/{device:serial}/data", "devices/A-7/data"),
        ("devices/<device:slug>", "devices/pump-7"),
        ("devices/<device:uuid>", f"devices/{KEY}"),
    ],
)
async def test_a_row_is_loaded_by_key_or_by_column(template: str, name: str) -> None:
    app = make_app()

    @app.on(template)
    async def read(device: BoundDevice, context: Context) -> None:
        note(context, device)

    outcome, _, device = await handled(app, name)
    assert (outcome, device.id) == ("done", 1)


async def test_a_name_that_is_a_converter_too_decides_whether_the_route_matches() -> None:
    app = make_app()

    @app.on("devices/<device:slug>")
    async def read(device: BoundDevice) -> None: ...

    async with TestClient(app) as client:
        assert (await client.publish("devices/pump 7")).outcome == "unmatched"


async def test_a_dependency_a_constructor_and_a_method_may_ask_for_the_row() -> None:
    seen: list[int] = []

    async def room(device: BoundDevice) -> str:
        seen.append(device.id)
        return device.room

    class Ctl:
        def __init__(self, device: BoundDevice) -> None:
            seen.append(device.id)

        @topic("<device:serial>/x")
        async def x(self, device: BoundDevice, room: Annotated[str, Depends(room)]) -> None:
            seen.append(device.id)

    app = make_app()
    app.controller("a", Ctl)

    @app.on("b/<device:serial>", dependencies=[Depends(room)])
    async def handler() -> None: ...

    async with TestClient(app) as client:
        assert (await client.publish("a/A-8/x")).outcome == "done"
        assert (await client.publish("b/A-8")).outcome == "done"
    assert seen == [2, 2, 2, 2]


async def test_without_a_row_the_message_is_rejected() -> None:
    app = make_app()

    @app.on("devices/<device:serial>")
    async def read(device: BoundDevice) -> None: ...

    outcome, reason, _ = await handled(app, "devices/A-9")
    assert (outcome, reason) == ("rejected", "path parameter 'device': BoundDevice not found")


@pytest.mark.parametrize("level", ["99999999999999999999999", "-9223372036854775809", "9223372036854775807"])
async def test_a_number_that_the_column_cannot_hold_is_not_found(level: str) -> None:
    app = make_app()

    @app.on("devices/<device>")
    async def read(device: BoundDevice) -> None: ...

    assert await handled(app, f"devices/{level}") == (
        "rejected",
        "path parameter 'device': BoundDevice not found",
        None,
    )


async def test_a_hint_that_allows_none_gets_none() -> None:
    app = make_app()
    app.state.device = "untouched"

    @app.on("devices/<device:serial>", missing="drop")
    async def read(device: BoundDevice | None, context: Context) -> None:
        note(context, device)

    assert await handled(app, "devices/A-9") == ("done", "", None)


async def test_missing_may_drop() -> None:
    app = make_app(missing="drop")

    @app.on("devices/<device:serial>")
    async def read(device: BoundDevice) -> None: ...

    assert (await handled(app, "devices/A-9"))[0] == "dropped"


async def test_missing_may_be_a_row() -> None:
    app = make_app()
    unknown = BoundDevice(id=0, serial="")

    @app.on("devices/<device:serial>", missing=unknown)
    async def read(device: BoundDevice, context: Context) -> None:
        note(context, device)

    assert (await handled(app, "devices/A-9"))[2] is unknown


@pytest.mark.parametrize("is_async", [True, False])
async def test_missing_may_be_a_function_that_gives_the_row(is_async: bool) -> None:
    def make(context: Context) -> BoundDevice:
        return BoundDevice(id=0, serial=context.params["device"])

    async def make_async(context: Context) -> BoundDevice:
        return make(context)

    app = make_app()

    @app.on("devices/<device:serial>", missing=make_async if is_async else make)
    async def read(device: BoundDevice, context: Context) -> None:
        note(context, device)

    assert (await handled(app, "devices/A-9"))[2].serial == "A-9"


async def test_a_function_for_what_is_missing_may_refuse() -> None:
    def drop(context: Context) -> None:
        raise Drop("not ours")

    app = make_app()

    @app.on("a/<device:serial>", missing=drop)
    async def a(device: BoundDevice) -> None: ...

    @app.on("b/<device:serial>", missing=lambda context: None)
    async def b(device: BoundDevice) -> None: ...

    assert (await handled(app, "a/A-9"))[:2] == ("dropped", "not ours")
    assert (await handled(app, "b/A-9"))[0] == "rejected"


async def test_missing_is_inherited_and_none_switches_it_off() -> None:
    app = make_app()
    with app.group(missing="drop") as group:

        @group.on("a/<device:serial>", missing=None)
        async def a(device: BoundDevice) -> None: ...

    assert (await handled(app, "a/A-9"))[0] == "rejected"


async def test_several_rows_are_a_failure_and_not_any_of_them() -> None:
    app = make_app()

    @app.on("rooms/<device:room>")
    async def read(device: BoundDevice) -> None: ...

    assert (await handled(app, "rooms/north", raise_exceptions=False))[0] == "failed"


def refusal(app: App, template: str, handler: Any, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        app.on(template, handler, **options)
    return str(caught.value)


async def read(device: BoundDevice) -> None: ...


async def read_text(device: str) -> None: ...


def test_a_column_that_the_table_has_not_is_refused() -> None:
    assert refusal(make_app(), "a/<device:serail>", read) == (
        "read() on 'a/<device:serail>': '<device:serail>': there is no converter 'serail', and BoundDevice has no such "
        "column (id, serial, slug, uuid, room). Did you mean 'serial'?"
    )


def test_a_column_for_something_that_is_no_table_is_an_unknown_converter() -> None:
    assert "there is no converter 'serial'" in refusal(make_app(), "a/<device:serial>", read_text)
    assert "there is no converter 'serial'" in refusal(make_app(), "a/<x:serial>/<device>", read)


def test_a_wrong_missing_is_refused() -> None:
    assert refusal(make_app(), "a/<device>", read, missing="ignore") == (
        "read() on 'a/<device>': missing must be 'reject', 'drop', a row, or a function of the context, got 'ignore'"
    )


@pytest.mark.parametrize("missing", [404, False, BoundDevice, Drop("x")])
def test_missing_is_no_code_and_no_class(missing: object) -> None:
    assert refusal(make_app(), "a/<device>", read, missing=missing) == (
        f"read() on 'a/<device>': missing must be 'reject', 'drop', a row, or a function of the context, got {missing!r}"
    )


def test_a_function_for_what_is_missing_takes_the_context() -> None:
    async def nothing() -> None: ...

    assert refusal(make_app(), "a/<device>", read, missing=nothing) == (
        "read() on 'a/<device>': missing: nothing() must take one argument, the context"
    )


async def test_what_missing_gives_is_such_a_row() -> None:
    app = make_app(missing=lambda context: 404)
    app.on("devices/<device:serial>", read, name="read")
    async with TestClient(app) as client:
        with pytest.raises(ConfigurationError) as caught:
            await client.publish("devices/A-9")
    assert str(caught.value) == (
        "read: missing= gave a int in place of a BoundDevice. Give such a row, None, 'reject' or 'drop', or raise Drop "
        "or Reject"
    )


def test_a_converter_that_gives_what_no_key_is_is_refused() -> None:
    assert refusal(make_app(), "a/<device:float>", read) == (
        "read(): 'device: BoundDevice': '<device:float>' gives float, and the column 'id' of BoundDevice is int, so no row "
        "would be found. Write '<device>', or name the column."
    )


async def test_a_controller_has_the_database_at_hand() -> None:
    from sqlalchemy.ext.asyncio import AsyncEngine

    app = App()

    @app.resource
    async def engine() -> AsyncIterator[AsyncEngine]:
        made = create_async_engine("sqlite+aiosqlite://")
        async with made.begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["bounddevice"].create)
        yield made
        await made.dispose()

    class Ctl(Controller):
        async def add(self, id: int) -> None:
            async with self.db.session() as session:
                session.add(BoundDevice(id=id, serial="B"))
            with pytest.raises(ZeroDivisionError):
                async with self.db.session() as session:
                    session.add(BoundDevice(id=id + 1, serial="B"))
                    raise ZeroDivisionError
            await self.db.query("UPDATE bounddevice SET room = :room", room="x")

        async def read(self, context: Context) -> None:
            context.app.state.rows = await self.db.query("SELECT id, room FROM bounddevice WHERE serial = :s", s="B")

    app.on("add/<id:int>", Ctl.add)
    app.on("read", Ctl.read)
    async with TestClient(app) as client:
        await client.publish("add/7")
        await client.publish("read")
    assert app.state.rows == [{"id": 7, "room": "x"}]


class WideRow(SQLModel, table=True):
    id: int = Field(primary_key=True)
    large: int = Field(sa_type=BigInteger)


@pytest.mark.parametrize(
    ("dialect", "column", "key", "holds"),
    [
        ("postgresql", "id", 2**31 - 1, True),
        ("postgresql", "id", 2**31, False),
        ("postgresql", "large", 2**31, True),
        ("postgresql", "large", -(2**63) - 1, False),
        ("sqlite", "id", 2**63 - 1, True),
        ("sqlite", "id", 2**63, False),
    ],
)
def test_how_wide_a_column_is(dialect: str, column: str, key: int, holds: bool) -> None:
    session = SimpleNamespace(get_bind=lambda table: SimpleNamespace(dialect=SimpleNamespace(name=dialect)))
    assert may_hold(session, WideRow, column, key) is holds
