from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uvloop", action="store_true", help="run asynchronous tests on uvloop")


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.config.getoption("--uvloop")}


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A fresh broker for one test, which may stop, restart and pause it."""
    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def shared_mosquitto() -> Iterator[Mosquitto]:
    """One broker for all tests that use topics and client ids of their own and leave it running."""
    with Mosquitto(persistence=False) as broker:
        yield broker
