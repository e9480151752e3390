"""`TestClient`: give messages to an app without a broker, through its own router, plans and lanes.

async with TestClient(app) as client:
    delivery = await client.publish("sensors/7/data", {"temperature": 90})
    assert delivery.outcome == "done"
    assert client.published[0].topic == "alerts/7"
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from mqttapi.app import App
from mqttapi.errors import ConfigurationError
from mqttapi.message import NO_PROPERTIES, Message, Properties
from mqttapi.payloads import encode_payload
from mqttapi.publisher import Publish, PublishResult
from mqttapi.runtime.runs import Run
from mqttapi.service import Service
from mqttapi.topics import TopicTemplate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from mqttapi.runtime.outcome import Outcome

__all__ = ["Delivery", "SyncTestClient", "TestClient"]

Kind = Literal["done", "dropped", "rejected", "failed", "unmatched"]
_UNMATCHED: Kind = "unmatched"
_WORST_LAST: tuple[Kind, ...] = ("unmatched", "done", "dropped", "rejected", "failed")


@dataclass(slots=True)
class Delivery:
    """What became of one message."""

    message: Message
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the name of each route that matched."""
    reply: Publish | None = None
    """What was sent to the message's Response Topic, if anything was."""

    @property
    def outcome(self) -> Kind:
        """`done`, `dropped`, `rejected` or `failed`; of several routes the worst; `unmatched` when there is none."""
        kinds: list[Kind] = [outcome.kind for outcome in self.outcomes.values()]
        return max(kinds or [_UNMATCHED], key=_WORST_LAST.index)

    @property
    def dead_letter(self) -> str | None:
        """The topic of the dead letter that was made of it; of several routes that of the first that made one."""
        return next((each.dead_letter for each in self.outcomes.values() if each.dead_letter is not None), None)

    @property
    def reason(self) -> str:
        """Why it is not `done`; of several routes that of the worst. Empty when there is nothing to say."""
        return next((each.reason for each in self.outcomes.values() if each.kind == self.outcome), "")


class _Pending:
    """One message on its way: the origin of its runs."""

    def __init__(self, message: Message, runs: int) -> None:
        self.delivery = Delivery(message)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runs = runs
        if not runs:
            self.done.set_result(None)

    def ended(self, run: Run, outcome: Outcome) -> None:
        self.delivery.outcomes[run.route.name] = outcome
        self._runs -= 1
        if not self._runs:
            self.done.set_result(None)


class TestClient:
    """An app in a test: the lifespan runs, resources are open (but for `app.dependency_overrides`), nothing is sent.

    Pauses between two attempts of a message are not waited for.

    Args:
        app: The app to run.
        raise_exceptions: Whether `publish` raises what a handler raised (not `Drop` nor what rejects a message).

    Raises:
        ConfigurationError: When it is given something else.
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(self, app: App, *, raise_exceptions: bool = True) -> None:
        if not isinstance(app, App):
            raise ConfigurationError(f"TestClient takes an App, got {app!r}: write TestClient(app)")
        self.app = app
        self.published: list[Publish] = []
        """What the app has published, in order; replies and dead letters too."""
        self.has_properties = True
        """False: as if the broker spoke MQTT 3.1.1; see `Outgoing`."""
        self._raise = raise_exceptions
        self._stack = contextlib.AsyncExitStack()
        self._service: Service | None = None

    async def __aenter__(self) -> Self:
        self._service = Service(self.app, pauses=False)
        await self._stack.enter_async_context(self._service.started(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._stack.__aexit__(kind, error, traceback)
        finally:
            self._service = None

    async def publish(
        self,
        topic: str,
        payload: Any = None,
        *,
        qos: Literal[0, 1, 2] = 1,
        retain: bool = False,
        dup: bool = False,
        params: Mapping[str, object] | None = None,
        content_type: str | None = None,
        user_properties: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        payload_format_indicator: Literal[0, 1] = 0,
        expiry: int | None = None,
    ) -> Delivery:
        """Give the app a message as if it came from the broker, and return when all its routes have ended.

        Args:
            topic: A topic name; with `params` a template.
            payload: As in `Publisher.publish`.
            qos: 0, 1 or 2, as delivered.
            retain: Whether it arrives as a retained message.
            dup: Whether it arrives as a second delivery.
            params: Values for the parameters of `topic`.
            content_type: As the sender would say it.
            user_properties: Names and values.
            response_topic: Where the answer goes: it is then in `Delivery.reply`, and in `published`.
            correlation_data: Comes back with the answer.
            payload_format_indicator: 1: the sender says that the payload is UTF-8 text.
            expiry: Seconds that the message has left, whole ones.

        Raises:
            InvalidTopic: The topic, or the Response Topic, is not valid.
            ConfigurationError: An option has a value that no broker sends.
            RuntimeError: The client's block has not begun, or has ended.
            Exception: What a handler raised, unless `raise_exceptions=False`.
        """
        service = self._running()
        if params is not None:
            topic = TopicTemplate(topic).render(params)
        for option, flag in (("retain", retain), ("dup", dup)):
            if not isinstance(flag, bool):
                raise ConfigurationError(f"{option} must be True or False, got {flag!r}")
        if expiry is not None and not isinstance(expiry, int):
            raise ConfigurationError(f"expiry must be a whole number of seconds, or None, got {expiry!r}")
        sendable = Publish(  # checks what it is given
            topic,
            qos=qos,
            expiry=expiry,
            content_type=content_type,
            user_properties=user_properties,
            response_topic=response_topic,
            correlation_data=correlation_data,
            payload_format_indicator=payload_format_indicator,
        )
        properties = Properties(
            content_type=content_type,
            response_topic=response_topic,
            correlation_data=correlation_data,
            user_properties=tuple(cast("Iterable[tuple[str, str]]", sendable.user_properties)),
            message_expiry_interval=expiry,
            payload_format_indicator=payload_format_indicator,
        )
        message = Message(
            topic,
            encode_payload(payload),
            qos,
            retain,
            dup,
            1 if qos else 0,
            properties if properties != NO_PROPERTIES else NO_PROPERTIES,
        )
        dispatcher = service.dispatcher
        targets = dispatcher.retained_targets(topic) if retain else dispatcher.targets(topic)
        pending = _Pending(message, len(targets))
        sent = len(self.published)
        for target in targets:
            service.workers.submit(Run(message, target, self.app, pending, None))
        service.workers.wake()
        await asyncio.wait((pending.done, service.failure), return_when=asyncio.FIRST_COMPLETED)
        if service.failure.done():
            raise service.failure.result()
        if service.backends.relay is not None:
            await service.backends.relay.flush()
        return self._settled(pending.delivery, sent)

    def _settled(self, delivery: Delivery, sent: int) -> Delivery:
        if self._raise:
            for outcome in delivery.outcomes.values():
                if outcome.kind == "failed" and outcome.error is not None:
                    raise outcome.error
        message = delivery.message
        if message.response_topic is not None:
            for publish in self.published[sent:]:
                if (publish.topic, publish.correlation_data) == (message.response_topic, message.correlation_data):
                    delivery.reply = publish
        return delivery

    def submit(self, publish: Publish, *, reserved: bool = False) -> asyncio.Future[PublishResult]:
        """The app publishes: see `Outgoing`."""
        self.published.append(publish)
        # The loop is that of the app: a plain `def` publishes from its thread.
        future: asyncio.Future[PublishResult] = asyncio.Future(loop=self._running().stopping.get_loop())
        future.set_result(PublishResult(publish.topic, publish.qos))
        return future

    def _running(self) -> Service:
        if self._service is None:
            raise RuntimeError("use the client inside `async with TestClient(app) as client:`")
        return self._service

    @contextlib.contextmanager
    def sync(self) -> Iterator[SyncTestClient]:
        """The same for tests that are plain functions: `with TestClient(app).sync() as client:`."""
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self):
            yield SyncTestClient(self, portal)


class SyncTestClient:
    """A `TestClient` for plain functions; the app runs in a thread of its own."""

    __test__ = False

    def __init__(self, client: TestClient, portal: Any) -> None:
        self._client = client
        self._portal = portal

    @property
    def published(self) -> list[Publish]:
        """See `TestClient.published`."""
        return self._client.published

    def publish(self, topic: str, payload: Any = None, **options: Any) -> Delivery:
        """See `TestClient.publish`."""

        async def call() -> Delivery:
            return await self._client.publish(topic, payload, **options)

        delivery: Delivery = self._portal.call(call)
        return delivery
