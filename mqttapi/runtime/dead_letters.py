"""Dead letters: messages that were rejected or have failed for good, put aside.

A dead letter is confirmed by the broker, or on the disk, before the message it is made of is acknowledged. As long as
it is neither, the message is held.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from mqttapi.errors import BrokerError, ConfigurationError, MQTTAPIError, NotConnected, PublishQueueFull
from mqttapi.message import printable
from mqttapi.publisher import Publish
from mqttapi.runtime.failures import reason_of
from mqttapi.runtime.spool import Letter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttapi.message import Message
    from mqttapi.publisher import Publisher
    from mqttapi.runtime.outcome import Outcome
    from mqttapi.runtime.runs import Run
    from mqttapi.runtime.spool import Spool

__all__ = ["DeadLetters", "is_dead_letter", "publish_of"]

log = logging.getLogger("mqttapi.dead_letters")

AGAIN: Final = 1.0
"""Seconds between two attempts to get rid of a letter that neither broker nor disk takes."""
OVERDUE: Final = 1.0
"""Seconds after which a letter that is not yet confirmed makes the app not ready."""
_EVERY: Final = 60.0  # seconds between two errors in the log
_NOBODY: Final = 0x10  # PUBACK: no matching subscribers
_MARK: Final = "mqttapi-topic"
_ENVELOPE: Final = b'{"mqttapi-topic":'


class DeadLetters:
    """Sends dead letters, and holds them where they cannot be sent.

    Args:
        publisher: Sends them; they may use its reserve.
        spool: Makes the spool, when the first letter has to go there.
        max_bytes: What the publisher may hold: a letter that finds it full, and is larger, goes to the spool.
    """

    def __init__(self, publisher: Publisher, spool: Callable[[], Spool], *, max_bytes: float = math.inf) -> None:
        self._publisher = publisher
        self._make_spool = spool
        self._spool: Spool | None = None
        self._max_bytes = max_bytes
        self._disk = asyncio.Lock()
        self._thread = CapacityLimiter(1)  # its own: those of handlers may all be taken, for long
        self._clock = asyncio.get_running_loop().time
        self._held: dict[Run, float] = {}
        self._problem = ""
        self._next_error = 0.0
        self._told: set[str] = set()

    @property
    def held(self) -> int:
        """Letters that are neither confirmed nor on the disk."""
        return len(self._held)

    async def take(self, run: Run, outcome: Outcome) -> str | None:
        """Make a dead letter of the message of a run, and return when it is safe.

        Gives its topic, which is empty where the letter is on the disk. None: there is none,
        because the route has no `dead_letter`, or because the message is a dead letter itself.
        """
        if run.route.dead_letter is None or outcome.error is None or is_dead_letter(run.message):
            return None
        self._held[run] = self._clock()
        try:
            return await self._safe(run, outcome.error)
        finally:
            del self._held[run]
            if not self._held:
                self._problem = ""

    def readiness(self) -> list[str]:
        """Why the app is not ready."""
        if not self._overdue():
            return []
        return [f"{len(self._held)} dead letters can neither be sent nor be kept: {self._problem or 'no answer yet'}"]

    def remind(self) -> None:
        """Log each minute that letters are held; call it regularly."""
        if self._overdue() and self._clock() >= self._next_error:
            self._next_error = self._clock() + _EVERY
            log.error("%s; their messages are held", *self.readiness())

    def _overdue(self) -> bool:
        oldest = next(iter(self._held.values()), None)
        return oldest is not None and self._clock() - oldest > OVERDUE

    async def _safe(self, run: Run, error: BaseException) -> str:
        letter = _letter(run, error)
        while True:
            why = await self._sent(letter)
            if not why or await self._kept(letter, why):
                run.runner.counts["dead_lettered"] += 1
                run.runner.counts["spooled"] += bool(why)
                return "" if why else letter.to
            await asyncio.sleep(AGAIN)

    async def _sent(self, letter: Letter) -> str:
        """Send a letter, however long that takes. Gives why the broker does not take it; empty: it has."""
        while letter.to:
            try:
                publish = publish_of(letter, properties=self._publisher.has_properties)
            except ConfigurationError as error:  # the sender has chosen the topic
                return str(error)
            try:
                result = await self._publisher.send(publish, reserved=True)
            except PublishQueueFull as error:
                if len(publish.payload) > self._max_bytes:  # there is never going to be room for it
                    return str(error)
                self._problem = str(error)
                await asyncio.sleep(AGAIN)
            except NotConnected as error:
                self._problem = str(error)
                await asyncio.sleep(AGAIN)
            except (BrokerError, ConfigurationError) as error:
                return str(error)
            else:
                return "nobody has subscribed to it" if result.reason_code == _NOBODY else ""
        return letter.why

    async def _kept(self, letter: Letter, why: str) -> bool:
        """Whether the letter is on the disk now."""
        try:
            async with self._disk:  # one thread, however many letters there are
                if self._spool is None:
                    self._spool = self._make_spool()
                await run_sync(self._spool.append, dataclasses.replace(letter, why=why), limiter=self._thread)
        except (OSError, RuntimeError, MQTTAPIError) as error:
            self._problem = f"{why}; {error}"
            return False
        if letter.route not in self._told:
            self._told.add(letter.route)
            log.warning(
                "dead letters of %s cannot be sent to %s (%s): they are in %s, see 'mqttapi dead list'",
                letter.route,
                printable(letter.to) or "any topic",
                why,
                self._spool.directory,
            )
        return True


def is_dead_letter(message: Message) -> bool:
    """Whether a message is a dead letter itself, of whatever app; it is never made one again."""
    return message.user_property(_MARK) is not None or message.payload.startswith(_ENVELOPE)


def publish_of(letter: Letter, *, properties: bool = True) -> Publish:
    """A letter as a message: the payload as it was, or where there are no properties (MQTT 3.1.1) in a JSON envelope."""
    about = {
        _MARK: letter.topic,
        "mqttapi-route": letter.route,
        "mqttapi-error": letter.error,
        "mqttapi-reason": letter.reason,
        "mqttapi-attempts": str(letter.attempts),
        "mqttapi-time": letter.time,
    }
    if not properties:
        return Publish(letter.to, _envelope(about, letter.payload))
    return Publish(
        letter.to,
        letter.payload,
        content_type=letter.content_type,
        correlation_data=letter.correlation_data,
        user_properties=(*letter.user_properties, *about.items()),
    )


def _envelope(about: dict[str, str], payload: bytes) -> bytes:
    try:
        content = {"payload": payload.decode()}
    except UnicodeDecodeError:
        content = {"payload_base64": b64encode(payload).decode()}
    return json.dumps(about | content, separators=(",", ":")).encode()


def _letter(run: Run, error: BaseException) -> Letter:
    message, destination = run.message, run.route.dead_letter
    to = why = ""
    try:
        to = destination.topic(run.values_, message.topic) if destination is not None else ""
    except ConfigurationError as problem:  # too long, say
        why = str(problem)
    return Letter(
        time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        to=to,
        why=why,
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        route=printable(run.route.name),
        error=type(error).__name__,
        reason=reason_of(error),
        attempts=run.attempt,
        content_type=message.content_type,
        correlation_data=message.correlation_data,
        user_properties=tuple(message.user_properties),
    )
