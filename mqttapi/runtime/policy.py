"""What becomes of a run: of what its handler returned, and of what it raised when no attempt was left.

    returned ──► publish_to, Publish objects ──► reply ──► done
                        │ cannot be sent
                        ▼
    raised ──► exception handler ──► done
                        │ none, or it raised
                        ▼
               dead letter, confirmed or on the disk ──► dropped, rejected, failed

A plain `def` that took too long leaves its thread behind: its message ends in none of these ways, and the process has
to end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import CoroutineType
from typing import TYPE_CHECKING

from mqttapi.errors import BrokerError, ConfigurationError, HandlerStuck
from mqttapi.message import printable
from mqttapi.publisher import NO_REPLY, Publish
from mqttapi.runtime.attempts import left_thread
from mqttapi.runtime.exception_handlers import handler_for
from mqttapi.runtime.failures import Reports, outcome_of
from mqttapi.runtime.outcome import DONE, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttapi.context import Context
    from mqttapi.middleware import Endpoint
    from mqttapi.publisher import Publisher
    from mqttapi.resources.outbox import Outbox
    from mqttapi.runtime.dead_letters import DeadLetters
    from mqttapi.runtime.exception_handlers import ExceptionHandler
    from mqttapi.runtime.runs import Run

__all__ = ["Policy", "noting_return"]

log = logging.getLogger("mqttapi")


def noting_return(endpoint: Endpoint) -> Endpoint:
    """For routes with `publish_to`: what a middleware returns in place of the handler is not published."""

    async def noting(context: Context) -> object:
        result = await endpoint(context)
        context.returned = True  # type: ignore[attr-defined]  # it is a Run
        return result

    return noting


class Policy:
    """Settles runs.

    Args:
        publisher: Sends what handlers return.
        handlers: The app's exception handlers.
        dead_letters: Takes what has failed for good.
        replies: Whether the run's route is the one that answers, of several that got the message.
        fatal: Called with what should end the process.
        max_hold: Seconds to wait for the broker to take what a handler returned.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        handlers: Mapping[type[Exception], ExceptionHandler],
        dead_letters: DeadLetters,
        replies: Callable[[Run], bool],
        fatal: Callable[[BaseException], None],
        max_hold: float,
    ) -> None:
        self.stuck_threads = 0
        """Threads of plain `def` handlers that took too long."""
        self._publisher = publisher
        self._handlers = handlers
        self._dead_letters = dead_letters
        self._replies = replies
        self._fatal = fatal
        self._max_hold = max_hold
        self._reports = Reports()

    async def finish(self, run: Run, result: object) -> Outcome:
        """Send what the handler returned: `Publish` objects as they are, else to `publish_to` and as a reply.

        Raises:
            Exception: It could not be published. A reply that cannot be sent is counted and logged.
        """
        publishes, is_answer = self._sent_for(run, result)
        if publishes:
            async with asyncio.timeout(self._max_hold):
                for publish in publishes:
                    await self._publisher.send(publish)
        if is_answer:
            await self._reply(run, result)
        return DONE

    async def into_outbox(self, run: Run, outbox: Outbox, result: object) -> None:
        """`finish` within the transaction of the handler, for routes with an inbox."""
        run.returned = True
        publishes, is_answer = self._sent_for(run, result)
        for publish in publishes:
            await outbox.send(publish)
        message = run.message
        if is_answer and message.response_topic is not None:
            try:
                await outbox.publish(
                    message.response_topic, result, qos=message.qos, correlation_data=message.correlation_data
                )
            except ConfigurationError as error:  # the sender has chosen the topic: that is no failure of the handler
                self._reply_failed(run, error)

    def _sent_for(self, run: Run, result: object) -> tuple[list[Publish], bool]:
        """What is to be published for a result, and whether the Response Topic gets it as an answer."""
        if type(result) is CoroutineType:
            result.close()
            raise TypeError(
                f"{run.route.name}: a coroutine came out of it that nobody has awaited, so what it is to do was not done. "
                "An 'await' is missing, in the handler or in a middleware: 'return await call_next(context)'"
            )
        publishes = _publishes(result)
        is_answer = not publishes and result is not NO_REPLY
        to = run.route.publish_to
        if to is not None and is_answer and result is not None and getattr(run, "returned", False):
            publishes = [Publish(to.topic(run.values_, run.message.topic), result)]
        return publishes, is_answer and run.message.response_topic is not None and self._replies(run)

    async def _reply(self, run: Run, result: object) -> None:
        try:
            async with asyncio.timeout(self._max_hold):
                await run.reply(result)
        except (BrokerError, ConfigurationError, TimeoutError) as error:
            self._reply_failed(run, error)

    def _reply_failed(self, run: Run, error: Exception) -> None:
        run.runner.counts["replies_failed"] += 1
        self._reports.reply_failed(run, error)

    async def fail(self, run: Run, error: BaseException) -> Outcome | None:
        """Say how a run ended that raised `error`, once that is dealt with, and log it. None: it has not ended."""
        try:
            return await self._settled(run, error)
        except Exception as bug:
            log.exception("%s: cannot deal with a failure: this is a bug in mqttapi", run.route.name)
            return Outcome("failed", f"raised {type(error).__name__}", bug)

    async def _settled(self, run: Run, error: BaseException) -> Outcome | None:
        if left_thread(error):
            self._give_up(run)
            return None
        handler = handler_for(self._handlers, error)
        if handler is not None:
            try:
                return await self._handled(run, error, handler)
            except Exception as raised:  # noqa: BLE001  an exception handler may raise anything
                error = raised
            except (SystemExit, KeyboardInterrupt) as stop:
                self._fatal(stop)
                return None
        outcome = outcome_of(error)
        if outcome.kind != "dropped":
            outcome = replace(outcome, dead_letter=await self._dead_letters.take(run, outcome))
        self._reports.report(run, outcome)
        return outcome

    async def _handled(self, run: Run, error: BaseException, handler: ExceptionHandler) -> Outcome:
        async with asyncio.timeout(self._max_hold):
            result = await handler(run, error)
        run.returned = False
        return await self.finish(run, result)

    def _give_up(self, run: Run) -> None:
        self.stuck_threads += 1
        self._fatal(
            HandlerStuck(
                f"{run.route.name} ({run.route.source}) took longer than {run.runner.timeout:g} s on "
                f"{printable(run.message.topic)}, in a thread that nothing can stop: this process has to end, and the "
                "message comes again. Make the handler an 'async def', or give what it waits for a time-out of its own"
            )
        )

    def look_after(self) -> None:
        """Log what is due; call it every second or so."""
        self._reports.summaries()
        self._dead_letters.remind()

    def close(self) -> None:
        """Log what has not been logged."""
        self._reports.summaries(at_end=True)


def _publishes(result: object) -> list[Publish]:
    """The messages in a handler's result: one `Publish`, or a list or tuple of nothing else.

    Raises:
        TypeError: There is something else among them: as a payload they would be sent nowhere they are meant for.
    """
    if isinstance(result, Publish):
        return [result]
    if not isinstance(result, list | tuple) or not any(isinstance(item, Publish) for item in result):
        return []
    if others := [type(item).__name__ for item in result if not isinstance(item, Publish)]:
        raise TypeError(
            f"a {type(result).__name__} of Publish objects has a {others[0]} among them: return nothing but Publish "
            "objects, or publish them by 'await context.publish(...)'"
        )
    return list(result)
