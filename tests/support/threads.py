"""What runs in a test's loop, for tests that have none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from anyio.from_thread import BlockingPortal

__all__ = ["threaded"]

_T = TypeVar("_T")


@contextmanager
def threaded(manager: AbstractAsyncContextManager[_T]) -> Iterator[tuple[_T, BlockingPortal]]:
    """Enter `manager` in the event loop of a new thread.

    Its methods, plain ones too, are called in that thread:

        with threaded(Proxy(broker.port)) as (proxy, portal):
            portal.call(proxy.reset)
    """
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(manager) as entered:
        yield entered, portal
