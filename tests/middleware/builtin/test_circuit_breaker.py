from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App, Context, Drop, Reject, RetryLater
from mqttapi.config import Settings
from mqttapi.errors import ConfigurationError
from mqttapi.middleware import CircuitBreaker
from mqttapi.testing import TestClient
from tests.middleware.builtin.support import message
from tests.support.mqtt import client
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.mosquitto import Mosquitto


class Service:
    """What handlers depend on: it counts its calls, and fails while `error` is set."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: Counter[str] = Counter()

    async def __call__(self, context: Context) -> str:
        topic = context.message.topic
        self.calls[topic] += 1
        if self.error is not None:
            raise self.error
        return topic


def send(breaker: CircuitBreaker, service: Any, device: int = 7) -> asyncio.Task[str]:
    return asyncio.create_task(breaker.handle(message(f"sensors/{device}/data"), service))


async def fails(breaker: CircuitBreaker, service: Service, times: int) -> None:
    for _ in range(times):
        with pytest.raises(type(service.error) if service.error else ConnectionError):
            await send(breaker, service)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------- the rule


async def test_closed_it_is_not_there() -> None:
    service = Service()
    assert await send(CircuitBreaker(), service) == "sensors/7/data"


async def test_failures_in_a_row_open_it_and_messages_wait() -> None:
    breaker, service = CircuitBreaker(3, reset=60), Service(ConnectionError())
    await fails(breaker, service, 2)
    third, fourth = send(breaker, service), send(breaker, service, 8)
    await turns()
    assert not third.done()
    assert not fourth.done()
    assert service.calls == {"sensors/7/data": 3}
    for task in (third, fourth):
        task.cancel()


async def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker, service = CircuitBreaker(3, reset=60), Service()
    for _ in range(4):
        service.error = ConnectionError()
        await fails(breaker, service, 2)
        service.error = None
        await send(breaker, service)


async def test_one_probes_and_when_it_succeeds_all_go_on() -> None:
    breaker, service = CircuitBreaker(1, reset=0.02), Service(ConnectionError())
    tasks = [send(breaker, service, device) for device in range(5)]
    await eventually(lambda: service.calls.total() >= 5 + 3)  # each once, then probes: one at a time
    service.error = None
    assert await asyncio.gather(*tasks) == [f"sensors/{device}/data" for device in range(5)]


async def test_another_message_probes_each_time() -> None:
    """One that fails for a reason of its own keeps nobody waiting for ever."""
    breaker = CircuitBreaker(1, reset=0.01)
    calls: list[str] = []

    async def handler(context: Context) -> str:
        calls.append(context["device_id"])
        if context["device_id"] == "0":
            raise ConnectionError("always")
        return "done"

    tasks = [send(breaker, handler, device) for device in (0, 1, 2)]
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [ConnectionError, str, str]
    assert calls.count("0") >= 2


@pytest.mark.parametrize("error", [Drop(), Reject("no"), RetryLater(1), KeyError()])
async def test_what_is_no_failure_opens_nothing(error: Exception) -> None:
    service = Service(error)
    await fails(CircuitBreaker(1, on=(ConnectionError, Drop)), service, 3)


async def test_what_is_no_failure_ends_a_probe_well() -> None:
    breaker, service = CircuitBreaker(1, reset=0.01, on=ConnectionError), Service(ConnectionError())
    first = send(breaker, service)
    await turns()
    service.error = Reject("it answers again")
    with pytest.raises(Reject):
        await first
    service.error = None
    assert await send(breaker, service) == "sensors/7/data"


async def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    breaker, service = CircuitBreaker(1, reset=0.01), Service(ConnectionError())
    tasks = [send(breaker, service, device) for device in range(3)]
    await turns()
    service.error = None
    tasks[0].cancel()
    assert await asyncio.gather(*tasks[1:]) == ["sensors/1/data", "sensors/2/data"]


async def test_a_second_attempt_is_not_held() -> None:
    breaker, service = CircuitBreaker(1, reset=60), Service(ConnectionError())
    first = send(breaker, service)
    await turns()
    context = message()
    context.attempt = 2
    with pytest.raises(ConnectionError):
        await breaker.handle(context, service)
    first.cancel()


async def test_routes_have_circuits_of_their_own() -> None:
    breaker, service = CircuitBreaker(1, reset=60), Service(ConnectionError())
    first = send(breaker, service)
    await turns()
    service.error = None
    assert await breaker.handle(message(route="other"), service) == "sensors/7/data"
    first.cancel()


async def test_it_says_when_it_opens_and_when_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mqttapi.middleware")
    breaker, service = CircuitBreaker(1, reset=0.01), Service(ConnectionError("with a secret"))
    task = send(breaker, service)
    await turns()
    service.error = None
    await task
    assert caplog.messages == [
        "the circuit of ingest is open, after 1 failures in a row (ConnectionError): messages wait, one probes in 0.01 s",
        "the circuit of ingest is closed again: 0 messages go on",
    ]


# ---------------------------------------------------------------------------------------------------------- in an app


def breaking(settings: Settings, service: dict[str, Any], **options: Any) -> tuple[App, list[str]]:
    app = App("circuit", settings=settings)
    handled: list[str] = []

    @app.topic(
        "orders/<id>", isolate=True, middleware=[CircuitBreaker(1, reset=0.02, on=ConnectionError)], name="o", **options
    )
    async def order(id: str) -> None:
        if service["away"]:
            service["calls"] += 1
            raise ConnectionError
        handled.append(id)

    @app.topic("other", name="other")
    async def other() -> None:
        handled.append("other")

    return app, handled


async def test_a_message_that_waits_outlives_its_time_out_and_is_handled() -> None:
    """The time-out of the route is shorter than the wait: several sweeps pass."""
    service = {"away": True, "calls": 0}
    app, handled = breaking(Settings(), service, timeout=0.3)
    async with TestClient(app) as tester:
        delivery = asyncio.create_task(tester.publish("orders/1"))
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.0
        await eventually(lambda: loop.time() > until)
        service["away"] = False
        assert (await delivery).outcome == "done"
    assert handled == ["1"]


async def test_a_message_that_was_held_has_all_its_time_again() -> None:
    """Else a service that is slow to fail leaves it too little for the next call."""
    app = App("t")
    left: list[float] = []

    @app.topic("t", isolate=True, timeout=60.0, middleware=[CircuitBreaker(1, reset=0.01)])
    async def handler(context: Context) -> None:
        await asyncio.sleep(0)
        run: Any = context
        left.append(run.deadline - asyncio.get_running_loop().time())
        if len(left) == 1:
            run.began -= 50
            run.deadline -= 50  # so long did the call take
            raise ConnectionError

    async with TestClient(app) as tester:
        assert (await tester.publish("t")).outcome == "done"
    assert all(50 < seconds <= 60 for seconds in left)


async def test_nothing_is_lost_and_other_routes_go_on(mosquitto: Mosquitto) -> None:
    service = {"away": True, "calls": 0}
    app, handled = breaking(Settings(instance="test", max_hold=0.4, max_in_flight=5, grace=5.0), service)
    orders = [str(number) for number in range(30)]
    async with app.running(broker=mosquitto.url), client(mosquitto.url) as publisher:
        for number in orders:
            await publisher.publish(f"orders/{number}", b"", qos=1)
        await publisher.publish("other", b"", qos=1)
        await eventually(lambda: service["calls"] > 40)  # probes, for longer than `max_hold`
        assert handled == ["other"]
        assert app._service is not None
        assert app._service.consumer is not None
        assert [intake.paused for intake in app._service.consumer.intakes] == [False, True]
        service["away"] = False
        await eventually(lambda: len(handled) == 31)
        assert app.stats.routes["o"].done == 30
    assert sorted(handled) == sorted([*orders, "other"])


async def test_its_route_has_to_be_isolated() -> None:
    app = App("circuit", middleware=[CircuitBreaker()])

    @app.topic("orders", name="orders")
    async def order() -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        await TestClient(app).__aenter__()
    assert str(caught.value).startswith("CircuitBreaker around 'orders' (test_circuit_breaker.py:")
    assert str(caught.value).endswith(
        "): while the circuit is open nothing is acknowledged, and other routes would stand still with it. Give the "
        "route isolate=True"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"failures": 0}, "failures must be a whole number, 1 to 1,000,000, got 0"),
        ({"reset": 0}, "reset must be above 0 s, got 0"),
        ({"on": ()}, "on must be an exception or a tuple of them, got ()"),
        ({"on": "OSError"}, "on must be an exception or a tuple of them, got 'OSError'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker(**arguments)
    assert str(caught.value) == f"CircuitBreaker: {text}"
