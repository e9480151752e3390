# Handlers are written as RouteMQ's users write them.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from mqttapi import App, ConfigurationError, PublishRefused
from mqttapi.config import Settings, unknown_variables
from mqttapi.contrib.routemq import Application, Client, Controller, Middleware, Router, settings
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """An `Application` adds to it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def app_of(router: Router, **options: Any) -> Application:
    return Application(router, **options)


class DeviceController(Controller):
    @staticmethod
    async def static(device_id, payload, client) -> dict[str, bool]:
        Controller.logger.info("static")
        SEEN.append((device_id, payload, type(client)))
        return {"ok": True}

    async def method(self, device_id, payload, client):
        self.logger.info("method")
        SEEN.append((device_id, payload, type(client)))


async def function(device_id: str, payload: dict[str, Any], client: Any):
    SEEN.append((device_id, payload, type(client)))


async def keywords(payload, **kwargs: Any):
    SEEN.append((kwargs["device_id"], payload, type(kwargs["client"])))


# -------------------------------------------------------------------------------------------------- handlers and client


@pytest.mark.parametrize(
    "handler",
    [
        function,
        keywords,
        DeviceController.static,
        DeviceController.method,
        (DeviceController, "method"),
        DeviceController().method,
    ],
)
@pytest.mark.parametrize(("sent", "payload"), [(b'{"a": 1}', {"a": 1}), (b"\xff raw", b"\xff raw"), (b"text", b"text")])
async def test_handlers_are_called_as_routemq_does(handler: Any, sent: bytes, payload: Any) -> None:
    """Whatever the hint of the payload says: JSON where it is, else bytes."""
    router = Router()
    router.on("devices/{device_id}/data", handler)
    async with TestClient(app_of(router)) as client:
        assert (await client.publish("devices/7/data", sent)).outcome == "done"
    assert [("7", payload, Client)] == SEEN


async def test_other_handlers_follow_the_rules_of_mqttapi() -> None:
    class Reading(BaseModel):
        celsius: float

    router = Router()

    @router.topic("a/<n:int>")
    async def typed(n: int, reading: Reading) -> None:
        SEEN.append((n, reading.celsius))

    @router.on("b")
    async def alone(payload) -> None:
        SEEN.append(payload)

    @router.on("c")
    def in_a_thread(payload: bytes) -> None:
        SEEN.append(payload)

    async with TestClient(app_of(router)) as client:
        for topic in ("a/7", "b", "c"):
            await client.publish(topic, b'{"celsius": 21}')
    assert SEEN == [(7, 21.0), {"celsius": 21}, b'{"celsius": 21}']


def test_a_handler_is_called_what_it_was() -> None:
    router = Router()
    router.on("a", DeviceController.static)
    router.on("b", DeviceController.method)
    router.on("c", function)
    routes = app_of(router).routes
    names = [route.name.removeprefix(f"{__name__}.") for route in routes]
    assert names == ["DeviceController.static", "DeviceController.method", "function"]
    assert all(route.source.startswith("test_routemq.py:") for route in routes)


async def test_publish_does_not_wait_and_has_qos_0() -> None:
    router = Router()

    async def handler(payload, client):
        client.publish("out", "text")
        client.publish("out", b"bytes", 1, True)
        client.publish("out", payload={"a": 1}, qos=1, retain=True)

    router.on("in", handler)
    async with TestClient(app_of(router)) as client:
        await client.publish("in")
    assert [(each.payload, each.qos, each.retain) for each in client.published] == [
        (b"text", 0, False), (b"bytes", 1, True), (b'{"a":1}', 1, True),
    ]  # fmt: skip


async def test_any_thread_may_publish() -> None:
    router = Router()

    async def handler(payload, client):
        await asyncio.to_thread(client.publish, "out", payload)

    router.on("in", handler)
    async with TestClient(app_of(router)) as client:
        await client.publish("in", "1")
    assert [each.payload for each in client.published] == [b"1"]


async def test_a_publish_that_is_refused_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    class Refusing(App):
        def publish_nowait(self, topic: str, payload: Any = None, **options: Any) -> asyncio.Future[Any]:
            return refused

    Client(Refusing()).publish("a\nb")
    refused.set_exception(PublishRefused("not allowed", reason_code=0x87))
    await asyncio.sleep(0)
    assert caplog.messages == [r"could not publish to a\nb: not allowed"]


# ------------------------------------------------------------------------------------------------ router and middleware


class Logging(Middleware):
    """As `routemq new` writes it."""

    async def handle(self, context, next_handler):
        topic = context.get("topic", "unknown")
        client_id = context.get("client", {})._client_id if "client" in context else "unknown"
        self.logger.info("[INCOMING] Topic: %s, Client: %s", topic, client_id)
        return await next_handler(context)


class Noting(Middleware):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def handle(self, context, next_handler):
        SEEN.append((self.name, context["params"], context["payload"]))
        context["payload"] = [context["payload"], self.name]
        return await next_handler(context)


async def test_middleware_reads_and_writes_the_context(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    router = Router()
    with router.group(prefix="devices", middleware=[Logging(), Noting("group")]) as devices:
        devices.on("{device_id}/data", function, middleware=[Noting("route")])
    async with TestClient(app_of(router)) as client:
        await client.publish("devices/7/data", b"1")
    assert [
        ("group", {"device_id": "7"}, 1),
        ("route", {"device_id": "7"}, [1, "group"]),
        ("7", [[1, "group"], "route"], Client),
    ] == SEEN
    assert "[INCOMING] Topic: devices/7/data, Client: b'mqtt-framework'" in caplog.messages


class Passing(Middleware):
    """Passes on a dict of its own, or writes other parameters."""

    def __init__(self, how: str) -> None:
        self.how = how

    async def handle(self, context, next_handler):
        if self.how == "dict":
            return await next_handler({**context, "payload": "other", "params": {"device_id": "8"}})
        if self.how == "copy":
            return await next_handler({**context.copy(), "payload": "other", "params": {"device_id": "8"}})
        context["payload"] = "other"
        context["params"] = {**context["params"], "device_id": "8"}
        return await next_handler(context)


@pytest.mark.parametrize("how", ["dict", "copy", "assigned"])
@pytest.mark.parametrize("level", ["group", "route"])
async def test_the_handler_gets_what_the_middleware_has_passed_on(how: str, level: str) -> None:
    router = Router()
    group = router.group("devices", [Passing(how)] if level == "group" else [])
    group.on("{device_id}/data", function, middleware=[Passing(how)] if level == "route" else [])
    async with TestClient(app_of(router)) as client:
        await client.publish("devices/7/data", b"1")
    assert [("8", "other", Client)] == SEEN


async def test_a_handler_that_fails_behind_a_dict_fails_with_its_own_error() -> None:
    async def fails(device_id, payload, client):
        raise LookupError(payload)

    router = Router(retry=3)
    group = router.group("", [Passing("dict")])
    group.on("a/{device_id}", fails)
    async with TestClient(app_of(router)) as client:
        with pytest.raises(LookupError) as caught:
            await client.publish("a/7", b"1")
    assert caught.value.__notes__ == [
        "there is no second attempt: a middleware has passed on something else than its context"
    ]


async def test_middleware_that_does_not_go_on_ends_the_message() -> None:
    class Stop(Middleware):
        async def handle(self, context, next_handler):
            return {"error": "no"}

    router = Router()
    router.on("a/{device_id}", function, 0, [Stop()])
    async with TestClient(app_of(router)) as client:
        assert (await client.publish("a/7")).outcome == "done"
    assert SEEN == []


def test_groups_nest_join_with_one_slash_and_need_no_with() -> None:
    router = Router()
    outer = router.group("p/", [])
    outer.on("/a", function, 1)
    with outer.group(prefix="q/", qos=1) as inner:
        inner.on("b", function)
        router.on("c", function)  # RouteMQ allows it within the block: it belongs to the router
    routes = app_of(router).routes
    assert [(route.template.text, route.qos) for route in routes] == [("p/a", 1), ("p/q/b", 1), ("c", 0)]


def test_topics_keep_the_slash_that_they_begin_with() -> None:
    """MQTT has two topics, `/a` and `a`; RouteMQ takes both as they are."""
    router = Router()
    router.on("/a/{device_id}", function)
    router.group("/b").on("{device_id}", function)
    router.group("/c/").on("/{device_id}", function)
    router.group("/").on("d/{device_id}", function)
    assert [route.template.text for route in app_of(router).routes] == [
        "/a/{device_id}", "/b/{device_id}", "/c/{device_id}", "d/{device_id}",
    ]  # fmt: skip


async def missing_one(payload, client): ...


async def one_too_many(device_id, unit, payload, client): ...


class Wrong(Controller):
    async def method(self, payload, client): ...


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (missing_one, "missing_one() on 'a/{device_id}'"),
        (one_too_many, "missing a required argument: 'unit'"),
        (Wrong.method, "Wrong.method() on 'a/{device_id}'"),
        (Wrong().method, "got an unexpected keyword argument 'device_id'"),
    ],
)
async def test_a_handler_that_cannot_be_called_stops_the_start(handler: Any, said: str) -> None:
    router = Router()
    router.on("a/{device_id}", handler)
    with pytest.raises(ConfigurationError) as caught:
        async with TestClient(app_of(router)):
            pytest.fail("started")
    assert said in str(caught.value)
    assert "it is called as RouteMQ does, with device_id, payload, client by name: " in str(caught.value)


def test_options_by_position_and_worker_count_only_where_it_is_shared() -> None:
    router = Router()
    router.on("a", function, 1, None, True, 3)
    router.on("b", function, 1, None, False, 3)
    router.on("c", function, qos=1, shared=True)
    routes = app_of(router).routes
    assert [(route.qos, route.shared, route.workers) for route in routes] == [
        (1, True, 3), (1, False, None), (1, True, None),
    ]  # fmt: skip


async def test_the_first_route_that_matches_has_the_message() -> None:
    router = Router()
    router.on("devices/{device_id}", function)
    router.on("devices/7", keywords)
    async with TestClient(app_of(router)) as client:
        delivery = await client.publish("devices/7", b"1")
    assert list(delivery.outcomes) == [f"{__name__}.function"]


async def test_routers_are_found_where_routemq_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("found_app/__init__.py", "found_app/routers/__init__.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "found_app/routers/devices.py").write_text(
        "from mqttapi.contrib.routemq import Router\n"
        "router = Router()\n"
        "async def seen(device_id, payload, client): ...\n"
        "router.on('devices/{device_id}', seen)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = Application(router_directory="found_app.routers")
    app.connect()
    assert [route.template.text for route in app.routes] == ["devices/{device_id}"]


def test_arguments_of_routemqs_application_are_taken() -> None:
    app = Application(Router(), ".env", "app.routers", False, log_to_console=False)
    assert app.routes == ()


# -------------------------------------------------------------------------------------------------------- environment


def test_what_the_file_holds_becomes_part_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in RouteMQ: middleware reads its secrets there."""
    (tmp_path / ".env").write_text("JWT_SECRET_KEY=from the file\nMQTT_BROKER=file\n")
    monkeypatch.setenv("MQTT_BROKER", "environment")
    app = Application(Router())
    assert (os.environ["JWT_SECRET_KEY"], os.environ["MQTT_BROKER"]) == ("from the file", "environment")
    assert app.settings is not None
    assert app.settings.broker == "environment"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"MQTT_GROUP_NAME": "a/b"},
            "MQTT_GROUP_NAME must be a name without '/', '+' and '#' [MQTT-4.8.2-2], got 'a/b'",
        ),
        ({"DATABASE_URL": "x"}, "DATABASE_URL must be a URL such as sqlite+aiosqlite:///app.db, got a secret"),
        (
            {"DB_CONNECTION": "sqlite"},
            "DB_CONNECTION must be mysql or postgres, got 'sqlite'. For another database set DATABASE_URL",
        ),
    ],
)
def test_a_wrong_variable_is_named(given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(said)}$"):
        settings()


def test_what_is_read_is_not_warned_of_and_what_is_not_read_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_TLS_ENABLED", "true")
    monkeypatch.setenv("MQTT_TLS_CA_CERTS", "/ca.pem")
    monkeypatch.setenv("MQTT_CONNECT_RETRIES", "3")
    assert unknown_variables(also_known=settings().also_known) == ["unknown setting MQTT_CONNECT_RETRIES"]


def secret(value: Any) -> Any:
    return value.get_secret_value() if value is not None else None


def test_nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings()
    assert (found.group_name, found.redis_url, found.database_url) == ("mqtt_framework_group", None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"MQTT_BROKER": "b", "MQTT_PORT": "1884"}, {"broker": "b", "port": 1884, "url": None}),
        ({"MQTT_GROUP_NAME": "g", "MQTT_USERNAME": "u"}, {"group_name": "g", "username": "u"}),
        ({"MQTT_BROKER": "b", "MQTT_TLS_ENABLED": "true"}, {"url": "mqtts://b:1883", "tls_ca_file": None}),
        ({"MQTT_BROKER": "b", "MQTT_TLS_ENABLED": "false", "MQTT_TLS_INSECURE": "true"}, {"url": "mqtt://b:1883"}),
        ({"MQTT_TLS_CA_CERTS": "/ca.pem"}, {"url": None, "tls_ca_file": None}),
        ({"ENABLE_REDIS": "true"}, {"redis_url": "redis://localhost:6379/0"}),
        (
            {"ENABLE_REDIS": "true", "REDIS_HOST": "r", "REDIS_DB": "2", "REDIS_PASSWORD": "p@ss"},
            {"redis_url": "redis://:p%40ss@r:6379/2"},
        ),
        ({"REDIS_HOST": "r"}, {"redis_url": None}),
        ({"ENABLE_REDIS": "true", "REDIS_URL": "redis://mine"}, {"redis_url": "redis://mine"}),
        ({"DB_CONNECTION": "postgres", "DB_PASS": "p"}, {
            "database_url": "postgresql+asyncpg://root:p@localhost:5432/mqtt_framework"}),
        ({"DB_HOST": "d", "DB_USER": "u", "DB_PASSWORD": "p", "DB_NAME": "n"}, {
            "database_url": "mysql+aiomysql://u:p@d:3306/n"}),
        ({"DB_NAME": "n", "DB_USER": "u"}, {"database_url": "mysql+aiomysql://u:@localhost:3306/n"}),
        ({"ENABLE_MYSQL": "true"}, {"database_url": "mysql+aiomysql://root:@localhost:3306/mqtt_framework"}),
        ({"ENABLE_MYSQL": "false", "DB_HOST": "d"}, {"database_url": None}),
        ({"ENABLE_MYSQL": "false", "DB_CONNECTION": "postgres"}, {
            "database_url": "postgresql+asyncpg://root:@localhost:5432/mqtt_framework"}),
        ({"DATABASE_URL": "postgres://u:p@d/n"}, {"database_url": "postgresql+asyncpg://u:p@d/n"}),
        ({"DATABASE_URL": "mysql://u:p@d/n", "DB_HOST": "x"}, {"database_url": "mysql+aiomysql://u:p@d/n"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_environment_has_routemqs_names(
    source: str, given: dict[str, str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if source == "file":
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    else:
        for name, value in given.items():
            monkeypatch.setenv(name, value)
    found = settings()
    secrets = {"url", "redis_url", "database_url"}
    shown = {name: secret(getattr(found, name)) if name in secrets else getattr(found, name) for name in expected}
    assert shown == expected


def test_certificates_have_routemqs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA_CERTS", "CERTFILE", "KEYFILE"):
        monkeypatch.setenv(f"MQTT_TLS_{name}", f"/{name}.pem")
    monkeypatch.setenv("MQTT_TLS_ENABLED", "true")
    found = settings(None)
    assert [str(path) for path in (found.tls_ca_file, found.tls_cert_file, found.tls_key_file)] == [
        "/CA_CERTS.pem", "/CERTFILE.pem", "/KEYFILE.pem",
    ]  # fmt: skip


def test_settings_may_be_given() -> None:
    given = Settings(broker="mine")
    assert Application(Router(), settings=given).settings is given


async def test_what_a_constructor_assigns_to_redis_or_db_is_the_objects_own() -> None:
    class Counting(Controller):
        def __init__(self) -> None:
            self.redis = {"count": 1}  # type: ignore[assignment]  # as RouteMQ's documentation does

        async def handle(self, payload: Any, client: Any) -> None:
            SEEN.append(self.redis)

    class Keeping(Middleware):
        def __init__(self) -> None:
            self.db = "mine"  # type: ignore[assignment]  # likewise

        async def handle(self, context: Any, next_handler: Any, /) -> Any:
            SEEN.append(self.db)
            return await next_handler(context)

    router = Router()
    router.on("a", Counting.handle, middleware=[Keeping()])
    app = Application(router)
    async with TestClient(app) as client:
        await client.publish("a", b"x")
    assert SEEN == ["mine", {"count": 1}]


async def test_middleware_finds_the_pattern_of_the_route_and_a_correlation_id() -> None:
    async def noting(context: Any, next_handler: Any) -> Any:
        SEEN.append((context["route_pattern"], context.get("correlation_id")))
        return await next_handler(context)

    router = Router()
    router.on("a/{device_id}", keywords, middleware=[noting])
    async with TestClient(Application(router)) as client:
        await client.publish("a/1", b"x")
        await client.publish("a/1", b"x")
    noted = [each for each in SEEN if isinstance(each, tuple) and each[0] == "a/{device_id}"]
    assert len(noted) == len({identifier for _, identifier in noted}) == 2
    assert all(len(identifier) == 32 for _, identifier in noted)
