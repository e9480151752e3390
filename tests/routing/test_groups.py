"""Groups: prefix, names, options and middleware of what is declared on them, to any depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App, ConfigurationError, Context, Depends, RouteOptions, Router
from mqttapi.testing import TestClient

if TYPE_CHECKING:
    from mqttapi.middleware import Endpoint, MiddlewareFunction


async def handler() -> None: ...


def noting(log: list[str], name: str) -> MiddlewareFunction:
    async def mw(context: Context, call_next: Endpoint) -> Any:
        log.append(name)
        return await call_next(context)

    return mw


def refusal(make: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        make()
    return str(caught.value)


def test_groups_nest_to_any_depth() -> None:
    app = App()
    with (
        app.group(prefix="a/", name="a.") as a,
        a.group(prefix="/b/", name="b.") as b,
        b.group(prefix="c", name="c.") as c,
        c.group() as d,
    ):
        d.on("/x", handler, name="x")
    assert app.routes[0].template.text == "a/b/c/x"
    assert app.topic_for("a.b.c.x") == "a/b/c/x"


@pytest.mark.parametrize("style", ["on", "on as decorator", "topic"])
def test_a_group_takes_both_styles(style: str) -> None:
    app = App()
    with app.group(prefix="a") as group:
        if style == "on":
            group.on("x", handler)
        elif style == "topic":
            group.topic("x")(handler)
        else:
            group.on("x")(handler)
    assert app.routes[0].template.text == "a/x"


def test_the_options_of_a_group_are_inherited_and_the_nearest_wins() -> None:
    async def first() -> None: ...
    async def second() -> None: ...

    app = App()
    with app.group(qos=0, shared="g", workers=2, timeout=9, dependencies=[Depends(first)]) as group:
        group.on("a", handler)
        with group.group(workers=3, timeout=None, dependencies=[Depends(second)]) as inner:
            inner.on("b", handler, qos=1)
    outer, inner_route = app.routes
    assert (outer.qos, outer.shared, outer.workers, outer.timeout) == (0, "g", 2, 9)
    assert (inner_route.qos, inner_route.shared, inner_route.workers, inner_route.timeout) == (1, "g", 3, None)
    assert [marker.dependency for marker in inner_route.dependencies] == [first, second]


def test_rare_options_are_inherited_one_by_one_and_lists_add_up() -> None:
    app = App()
    app.middleware_alias("audit", noting([], "audit"))
    app.middleware_alias("scale", noting([], "scale"))
    outer = RouteOptions(tags=["a"], no_local=True, retain_as_published=True, without_middleware=["audit"])
    with app.group(options=outer) as group:
        inner = RouteOptions(description="d", tags=["b"], no_local=False, without_middleware=["scale"])
        group.on("a", handler, options=inner)
    assert app.routes[0].options == RouteOptions(
        description="d",
        tags=("a", "b"),
        no_local=False,
        retain_as_published=True,
        without_middleware=("audit", "scale"),
    )


async def test_what_a_group_leaves_out_stays_out_where_a_route_has_options_of_its_own() -> None:
    app, log = App(), list[str]()
    app.middleware_alias("audit", noting(log, "audit"))
    app.add_middleware("audit")
    with app.group(options=RouteOptions(without_middleware=["audit"])) as group:
        group.on("a", handler, options=RouteOptions(description="of its own"))
    async with TestClient(app) as client:
        await client.publish("a")
    assert log == []


def test_a_group_is_opened_by_with() -> None:
    group: Any = App().group(prefix="p")
    with pytest.raises(AttributeError) as caught:
        group.on("a", handler)
    assert str(caught.value) == "group(prefix='p') has no 'on' yet: write 'with router.group(...) as group:'"


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda where: App("x", where=where), "App('x')"),
        (lambda where: Router(prefix="p", where=where), "Router(prefix='p')"),
        (lambda where: App().group(prefix="p", where=where), "group(prefix='p')"),
        (lambda where: App().include_router(Router(), prefix="p", where=where), "include_router(prefix='p')"),
    ],
)
def test_a_constraint_that_is_none_is_refused_at_once(make: Any, label: str) -> None:
    assert refusal(lambda: make({"id": "[0-9"})).startswith(f"{label}: where={{'id': ...}}: '[0-9': unclosed")


def test_a_constraint_that_holds_for_no_route_is_warned_of_with_the_nearest_name() -> None:
    app = App(where={"id": "[0-9]+"})
    app.pattern("site", {"north"})
    with app.group(prefix="a/<id>", where={"devise": "[a-z]+"}) as group:
        group.on("<device>", handler)
    assert app.table.unused_constraints() == [
        "where={'site': ...} of the app holds for none of its routes, whose parameters are: device, id",
        "where={'devise': ...} of group(prefix='a/<id>') holds for none of its routes: did you mean 'device'?",
    ]


async def test_middleware_runs_from_app_over_routers_and_groups_to_the_route() -> None:
    app, log = App(), list[str]()
    app.add_middleware(noting(log, "app"))
    router = Router(middleware=[noting(log, "router")])
    with (
        router.group(middleware=[noting(log, "group")]) as group,
        group.group(middleware=[noting(log, "inner"), noting(log, "inner 2")]) as inner,
    ):
        inner.on("x", handler, middleware=[noting(log, "route"), noting(log, "route 2")])
    app.include_router(router, middleware=[noting(log, "include")])
    async with TestClient(app) as client:
        await client.publish("x")
    assert log == ["app", "include", "router", "group", "inner", "inner 2", "route", "route 2"]


def test_a_group_of_a_router_arrives_in_an_app_that_has_included_it_before() -> None:
    app, router = App(), Router(prefix="r")
    app.include_router(router)
    with router.group(prefix="g") as group:
        group.on("x", handler)
    assert [route.template.text for route in app.routes] == ["r/g/x"]


def test_a_group_may_include_a_router() -> None:
    app, router = App(), Router(prefix="r")
    router.on("x", handler)
    with app.group(prefix="g") as group:
        group.include_router(router)
    assert [route.template.text for route in app.routes] == ["g/r/x"]


@pytest.mark.parametrize(
    ("declare", "what"),
    [
        (lambda router: router.on("x", handler), "handler() on 'x'"),
        (lambda router: router.topic("x")(handler), "handler() on 'x'"),
        (lambda router: router.include_router(Router()), "include_router(prefix='')"),
        (lambda router: router.group(prefix="b").__enter__(), "group(prefix='b')"),
    ],
)
def test_what_is_declared_beside_an_open_group_is_refused(declare: Any, what: str) -> None:
    router = Router(prefix="r")
    with router.group(prefix="a"):
        assert refusal(lambda: declare(router)) == (
            f"{what}: the Router(prefix='r') has an open group, and this would be no part of it. Declare it on the "
            "group, 'with router.group(...) as group: group.on(...)', or behind the block"
        )
    declare(router)


def test_a_group_is_closed_by_an_exception_too() -> None:
    router = Router()
    with pytest.raises(ZeroDivisionError), router.group():
        raise ZeroDivisionError
    router.on("x", handler)


def test_a_wrong_option_names_the_group() -> None:
    assert refusal(lambda: App().group(prefix="a", qos=7).__enter__()).startswith("group(prefix='a'): qos must be ")  # type: ignore[arg-type]
    assert refusal(lambda: App().group(worker=7).__enter__()) == (  # type: ignore[call-arg]
        "group(prefix=''): unknown option 'worker'. Did you mean 'workers'?"
    )
    assert refusal(lambda: Router(prefx="a")) == "Router(prefix=''): unknown option 'prefx'. Did you mean 'prefix'?"  # type: ignore[call-arg]


# -- circles


def test_two_routers_cannot_include_each_other() -> None:
    a, b = Router(prefix="a"), Router(prefix="b")
    a.include_router(b)
    assert refusal(lambda: b.include_router(a)) == (
        "routers cannot include each other in a circle: Router(prefix='b') → Router(prefix='a') → "
        "Router(prefix='b'). Take one of the steps out"
    )


def test_a_circle_through_a_group_is_found() -> None:
    a, b, c = Router(prefix="a"), Router(prefix="b"), Router(prefix="c")
    with a.group(prefix="g") as group:
        group.include_router(b)
    b.include_router(c)
    assert refusal(lambda: c.include_router(a)) == (
        "routers cannot include each other in a circle: Router(prefix='c') → Router(prefix='a') → group(prefix='g') → "
        "Router(prefix='b') → Router(prefix='c'). Take one of the steps out"
    )
    c.on("x", handler)


def test_a_router_may_be_included_twice_by_different_ways() -> None:
    app, a, b, shared = App(), Router(prefix="a"), Router(prefix="b"), Router(prefix="s")
    shared.on("x", handler)
    a.include_router(shared)
    b.include_router(shared)
    app.include_router(a)
    app.include_router(b)
    assert [route.template.text for route in app.routes] == ["a/s/x", "b/s/x"]


def test_what_is_no_router_cannot_be_included() -> None:
    assert refusal(lambda: App().include_router(3)) == "include_router takes a Router, got 3"  # type: ignore[arg-type]
