from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from mqttapi.topics import converters
from tests.support.command_line import CommandLine
from tests.support.fake_broker import FakeBroker
from tests.support.mosquitto import Mosquitto
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path


signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, apps would go without theirs as well

# A busy machine is no failure; CI tries the same examples each time.
settings.register_profile(
    "mqttapi",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("mqttapi")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uvloop", action="store_true", help="run asynchronous tests on uvloop")


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.config.getoption("--uvloop")}


@pytest.fixture(scope="session", autouse=True)
def _runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Apps in tests leave their lock files there, and what they have subscribed to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MQTTAPI_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("MQTTAPI_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(autouse=True)
def _converters() -> Iterator[None]:
    """A converter that a test or an example registers is known to nobody else."""
    before = dict(converters._registered)
    yield
    converters._registered.clear()
    converters._registered.update(before)


@pytest.fixture
def mqttapi(tmp_path: Path) -> Iterator[CommandLine]:
    """The real command line; what it started ends with the test."""
    line = CommandLine(tmp_path)
    yield line
    line.dispose()


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


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A fresh Redis for one test."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def proxy() -> AsyncIterator[Callable[..., Awaitable[Proxy]]]:
    """Puts a proxy before a port: `link = await proxy(mosquitto.port)`."""
    async with AsyncExitStack() as stack:

        async def before(target: int, **options: Any) -> Proxy:
            return await stack.enter_async_context(Proxy(target, **options))

        yield before


@pytest.fixture
async def fake_broker() -> AsyncIterator[FakeBroker]:
    """A broker that the test scripts."""
    async with FakeBroker() as broker:
        yield broker
