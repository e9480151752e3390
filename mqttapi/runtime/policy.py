"""What becomes of a run: of what its handler returned, and of what it raised."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from mqttapi.errors import Drop, MessageError, RetryLater
from mqttapi.message import printable
from mqttapi.publisher import NO_REPLY, Publish
from mqttapi.runtime.lanes import HandlerTimeout, Run
from mqttapi.runtime.outcome import DONE, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint

__all__ = ["Policy", "attempts"]

logger = logging.getLogger("mqttapi.handlers")


def attempts(endpoint: Endpoint, *, max_hold: float) -> Endpoint:
    """Around a route's own middleware and handler: run it again when it raises `RetryLater`.

    A message is held at most `max_hold` seconds; what would take longer is a failure. What is outside of this (the
    middleware of app and routers) sees one outcome.
    """

    async def attempt(context: Context) -> object:
        held = 0.0
        while True:
            try:
                return await endpoint(context)
            except RetryLater as later:
                held += later.seconds
                if held > max_hold:
                    raise _HeldTooLong(
                        f"RetryLater({later.seconds:g}) would hold the message for {held:g} s, "
                        f"longer than max_hold ({max_hold:g} s): {later.reason}"
                    ) from later
                await _pause(context, later.seconds)
                context.attempt += 1

    return attempt


class _HeldTooLong(Exception):
    pass


async def _pause(context: Context, seconds: float) -> None:
    """Wait between two attempts: the time does not count against the time-out, which is one attempt's."""
    if isinstance(context, Run):
        context.deadline = None
    await asyncio.sleep(seconds)
    if isinstance(context, Run) and context.runner.timeout is not None:
        context.deadline = asyncio.get_running_loop().time() + context.runner.timeout


class Policy:
    """Settles runs.

    Args:
        publish: Sends a message and returns when the broker has it.
        reply: Answers the Response Topic of a run with what its handler returned.
    """

    def __init__(
        self, *, publish: Callable[[Publish], Awaitable[object]], reply: Callable[[Run, object], Awaitable[object]]
    ) -> None:
        self._publish = publish
        self._reply = reply

    async def finish(self, run: Run, result: object) -> Outcome:
        """Send what the handler returned: `Publish` objects as they are, anything else to the Response Topic."""
        publishes = _publishes(result)
        for publish in publishes:
            await self._publish(publish)
        if not publishes and result is not NO_REPLY and run.message.response_topic is not None:
            await self._reply(run, result)
        return DONE

    async def fail(self, run: Run, error: BaseException) -> Outcome:
        """Say how a run ended that raised `error`, and log it."""
        outcome = _outcome(run, error)
        report(run, outcome)
        return outcome


def _publishes(result: object) -> list[Publish]:
    """The messages in a handler's result: one `Publish`, or a list of nothing else."""
    if isinstance(result, Publish):
        return [result]
    if isinstance(result, list) and result and all(isinstance(item, Publish) for item in result):
        return list(result)
    return []


def _outcome(run: Run, error: BaseException) -> Outcome:
    match error:
        case Drop():
            return Outcome("dropped", error.reason, error)
        case MessageError():
            return Outcome("rejected", error.reason, error)
        case HandlerTimeout():
            return Outcome("failed", f"took longer than timeout={run.runner.timeout:g} s", error)
        case asyncio.CancelledError():
            return Outcome("failed", "was cancelled, though not by mqttapi", error)
    return Outcome("failed", f"raised {type(error).__name__}", error)


def report(run: Run, outcome: Outcome) -> None:
    """Log how a run ended. Texts of the sender are escaped, values of the payload left out."""
    where: tuple[Any, ...] = (run.route.name, printable(run.message.topic), outcome.reason)
    if outcome.kind == "dropped":
        logger.debug("%s dropped a message on %s: %s", *where)
    elif outcome.kind == "rejected":
        logger.warning("%s rejected a message on %s: %s", *where)
    else:
        logger.error("%s failed on %s: %s", *where, exc_info=outcome.error)
