from __future__ import annotations

import zlib

import pytest

from examples.cpu_bound import app
from mqttapi.testing import TestClient

PICTURE = bytes([0, 100, 100, 0]) * 100


@pytest.mark.parametrize("kind", ["row", "film"])
async def test_the_edges_are_counted_in_the_worker_and_in_a_process_of_a_pool(kind: str) -> None:
    async with TestClient(app) as client:
        delivery = await client.publish(f"cameras/7/{kind}", PICTURE)
    assert delivery.outcome == "done"
    assert [(sent.topic, sent.payload) for sent in client.published] == [("cameras/7/edges", b"200")]


async def test_an_image_is_packed_in_a_thread() -> None:
    async with TestClient(app) as client:
        await client.publish("cameras/7/image", PICTURE)
    assert [zlib.decompress(sent.payload) for sent in client.published] == [PICTURE]
