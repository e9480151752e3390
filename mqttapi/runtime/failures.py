"""What is said of a failure: in the log, and in a dead letter. Input values of validation errors are left out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pydantic_core import ValidationError

from mqttapi.errors import Drop, MessageError, PoisonMessage
from mqttapi.logs import RateLimited
from mqttapi.message import printable
from mqttapi.runtime.outcome import Outcome

if TYPE_CHECKING:
    from mqttapi.runtime.runs import Run

__all__ = ["Reports", "outcome_of", "reason_of"]

logger = logging.getLogger("mqttapi.handlers")

_REASON_BYTES = 1024


def outcome_of(error: BaseException) -> Outcome:
    """How a run ended that raised `error`."""
    match error:
        case Drop():
            return Outcome("dropped", error.reason, error)
        case MessageError():
            return Outcome("rejected", error.reason, error)
        case asyncio.CancelledError():
            return Outcome("failed", "was cancelled, though not by mqttapi", error)
        case PoisonMessage():
            return Outcome("failed", f"was not run: it has killed its process {error.deaths} times", error)
    return Outcome("failed", f"raised {type(error).__name__}", error)


def reason_of(error: BaseException) -> str:
    """The text of an error for whoever reads the dead letter: one line, at most 1 KiB."""
    return printable(_text(error).strip().replace("\n", "; ")).encode()[:_REASON_BYTES].decode(errors="ignore")


class Reports:
    """Logs how runs ended: per route, exception and minute the first ten in full, of the rest the number."""

    def __init__(self) -> None:
        self._limit: RateLimited[tuple[str, str, str]] = RateLimited()

    def report(self, run: Run, outcome: Outcome) -> None:
        """Log how a run ended. Texts of the sender are escaped, values of the payload left out."""
        error, route = outcome.error, run.route.name
        if outcome.kind == "dropped":
            logger.debug("%s dropped a message on %s: %s", route, printable(run.message.topic), outcome.reason)
            return
        if error is None or not self._limit.allows((route, outcome.kind, type(error).__name__)):
            return
        where = (route, printable(run.message.topic), printable(outcome.reason), _became(run, outcome))
        if outcome.kind == "rejected":
            logger.warning("%s rejected a message on %s: %s%s", *where)
        else:
            logger.error("%s failed on %s: %s%s", *where, exc_info=_loggable(error))

    def reply_failed(self, run: Run, error: BaseException) -> None:
        """Log that a reply could not be sent."""
        if self._limit.allows((run.route.name, "could not reply to", type(error).__name__)):
            where = (run.route.name, printable(run.message.response_topic or ""), reason_of(error))
            logger.warning("%s could not reply to %s: %s", *where)

    def summaries(self, *, at_end: bool = False) -> None:
        """Log what was not logged in full; call it regularly."""
        for (route, kind, error), count in self._limit.summaries(at_end=at_end):
            logger.warning("%s %s %d more messages (%s) than were logged", route, kind, count, error)


def _became(run: Run, outcome: Outcome) -> str:
    if outcome.dead_letter is not None:
        on = printable(outcome.dead_letter) or "the disk, see 'mqttapi dead list'"
        return f" (dead letter on {on})"
    return f" (after {run.attempt} attempts)" if run.attempt > 1 else ""


class _Loggable(Exception):
    """Stands for an exception whose text holds input values."""


def _loggable(error: BaseException) -> BaseException:
    """`error`, or where its traceback would show a validation error, a likeness of it without input values."""
    shown: dict[int, BaseException] = {}
    todo = [error]
    while todo:
        each = todo.pop()
        if id(each) not in shown:  # what is equal, if it can be compared at all, may have another cause
            shown[id(each)] = each
            todo += _shown_with(each)
    has_values = any(isinstance(each, ValidationError) for each in shown.values())
    return _likeness(error, frozenset()) if has_values else error


def _shown_with(error: BaseException) -> list[BaseException]:
    """What else a traceback of `error` shows: its cause, and the members of a group."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return [*members, *filter(None, [cause])]


def _likeness(error: BaseException, above: frozenset[int]) -> BaseException:
    above |= {id(error)}  # there may be circles
    copies = [_Loggable("as above") if id(each) in above else _likeness(each, above) for each in _shown_with(error)]
    kind = type(error)
    copy: BaseException
    if isinstance(error, BaseExceptionGroup):
        like = type(kind.__name__, (BaseExceptionGroup,), {"__module__": kind.__module__})
        copy = like(error.message, copies[: len(error.exceptions)])
        del copies[: len(error.exceptions)]
    else:
        copy = type(kind.__name__, (_Loggable,), {"__module__": kind.__module__})(_text(error))
    copy.__cause__ = copies[0] if copies else None
    return copy.with_traceback(error.__traceback__)


def _text(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return _without_values(error)
    try:
        return str(error)
    except Exception as raised:  # noqa: BLE001  it is anybody's code
        return f"<its text raised {type(raised).__name__}>"


def _without_values(error: ValidationError) -> str:
    """What pydantic says, but for the values."""
    found = [
        f"{'.'.join(map(str, each['loc'])) or 'value'}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return f"{len(found)} validation errors for {error.title}: " + "; ".join(found)
