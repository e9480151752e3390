from __future__ import annotations

import asyncio

from examples.circuit_breaker import app, billing
from mqttapi.testing import TestClient


async def test_orders_wait_for_billing() -> None:
    async with TestClient(app) as client:
        billing.away = True
        deliveries = [asyncio.create_task(client.publish(f"orders/{id}")) for id in "12"]
        await asyncio.wait(deliveries, timeout=0.05)
        assert not any(each.done() for each in deliveries)
        billing.away = False
        assert [(await each).outcome for each in deliveries] == ["done", "done"]
    assert sorted(billing.booked) == ["1", "2"]
