from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from examples.inbox_outbox import app
from mqttapi.config import Settings
from mqttapi.testing import TestClient


async def test_an_order_that_comes_again_is_booked_once_and_its_invoice_leaves_once(tmp_path: Path) -> None:
    app.settings = Settings(database_url=f"sqlite:///{tmp_path}/shop.db")
    order = {"number": "2026-17", "amount": 40}
    async with TestClient(app) as client:
        outcomes = [(await client.publish("customers/kim/orders", order)).outcome for _ in range(3)]
        published = [(each.topic, each.payload) for each in client.published]
    assert outcomes == ["done", "dropped", "dropped"]
    assert published == [("customers/kim/invoices", b'{"number":"2026-17","amount":40}')]
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT customer, amount FROM booking").fetchall() == [("kim", 40)]
