"""`Service`: an app that runs. It opens what the app needs, in order, and closes it in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from anyio import CapacityLimiter

from mqttapi.config import (
    ClientLock,
    Session,
    Settings,
    client_id,
    default_instance,
    resolve_broker,
    runtime_dir,
    state_dir,
    tls_context,
)
from mqttapi.errors import ConfigurationError
from mqttapi.hooks import Hooks
from mqttapi.injection import compile_plan
from mqttapi.injection.functions import missing_methods
from mqttapi.injection.methods import Method
from mqttapi.message import printable
from mqttapi.middleware import compose
from mqttapi.opening import Opening
from mqttapi.remarks import remark
from mqttapi.resources.access import OPENED
from mqttapi.resources.backends import Backends
from mqttapi.resources.inbox import through_outbox
from mqttapi.runtime.attempts import Attempts
from mqttapi.runtime.dead_letters import DeadLetters
from mqttapi.runtime.dispatcher import Dispatcher
from mqttapi.runtime.echo import Echo
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.links import subscriptions
from mqttapi.runtime.overflow import Queue
from mqttapi.runtime.policy import Policy, noting_return
from mqttapi.runtime.runs import Runner
from mqttapi.runtime.spool import Spool
from mqttapi.runtime.stats import Stats, route_stats
from mqttapi.runtime.watchdog import Watchdog
from mqttapi.workers.plan import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence

    from mqttapi.app import App
    from mqttapi.config import Broker
    from mqttapi.consumer import Consumer
    from mqttapi.injection import Signature
    from mqttapi.publisher import Outgoing
    from mqttapi.routing import Route
    from mqttapi.runtime.links import Subscribed
    from mqttapi.runtime.quarantine import Quarantine
    from mqttapi.runtime.runs import Run
    from mqttapi.transport.connection import ConnectionOptions
    from mqttapi.transport.publishing import PublishingConnection

__all__ = ["Service", "Stopped", "session_of"]

log = logging.getLogger("mqttapi")

ISOLATED_THREADS: Final = 40
"""Threads that an isolated route has for itself, as many as all the others share: anyio's number."""
_STARTING: Final = "the app is starting"
_STOPPING: Final = "the app is stopping"
_IDLE: Final = "the app takes no messages"
_LEAVING: Final = "the app is leaving for good"
_FOR_MESSAGES: Final = 0.9
"""Share of the grace after which messages are cancelled: the rest is for connections and the end of the lifespan."""
_UNTIL_STUCK: Final = 5.0
"""Seconds beyond its time-out after which a handler is taken to stand still."""
_GOODBYE: Final = 2.0
"""Seconds that a broker has to answer a DISCONNECT, at most."""


def session_of(app: App, settings: Settings) -> Session:
    """The app's own, else one that lasts, where a route has QoS 1 or 2."""
    if app.session is not None:
        return app.session
    lasting = any(route.qos for route in app.routes)
    return Session(expiry=settings.session_expiry) if lasting else Session.transient()


class Stopped(Exception):
    """Raised when the app was told to stop before it had started."""


class Service:
    """One run of an app.

    Args:
        app: What to run.
        settings: In place of the app's, and of the environment's.
        pauses: Whether there are pauses between the attempts of a message.
        worker: Which process of a pool this is.
        served: The subscriptions that are this process's; None: all of them.
        on_change: Called when the app has been connected and subscribed, and when it is no longer.
        rescues: The client id of a session that somebody else has left behind: what waits in it is handled, and nothing
            is subscribed to.
        quarantine: Of a process whose predecessor has died.
    """

    def __init__(
        self,
        app: App,
        settings: Settings | None = None,
        *,
        pauses: bool = True,
        worker: Worker = Worker(),  # noqa: B008  a value
        served: Container[str] | None = None,
        on_change: Callable[[], None] = lambda: None,
        rescues: str | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        app.load()
        self.app = app
        self.worker = worker
        self.rescues = rescues
        self.settings = settings or app.settings or Settings()
        self.quarantine = quarantine
        """Where this process follows one that died."""
        self.consumer: Consumer | None = None
        self.publishing: PublishingConnection | None = None
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Done when the app cannot go on, with the reason."""
        self.stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the app was told to stop."""
        self.was_ready = False
        """Whether the app has ever been connected and subscribed."""
        self.runners: Sequence[Runner] = ()
        self.group = self.settings.group_name or app.name
        self.opened: dict[type, Any] = {}
        """What is open, by type."""
        self.backends = Backends(self.settings, redis_optional=app.redis == "optional", name=f"mqttapi[{app.name}]")
        self.echo = self._echo()
        self._pauses = pauses
        self._served = served
        self._on_change = on_change
        self._phase = ""  # what it does when that is not its work
        self._deadline = self._end = 0.0  # on the loop's clock: when messages, and when everything has to be done

    # -- without a broker -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self, outgoing: Outgoing) -> AsyncIterator[None]:
        """Lifespan, resources, plans and workers; what is still running at the end is cancelled."""
        app = self.app
        if app._service is not None:
            raise ConfigurationError(f"the app {app.name!r} is running already: one App object runs once at a time")
        app._service = self
        app.publisher.outgoing = outgoing
        if self.echo is not None and outgoing is self.publishing:
            app.publisher.mark = self.echo.marked
        try:
            async with contextlib.AsyncExitStack() as stack:
                signatures = [self._signature(route) for route in app.routes]
                stack.push_async_callback(self.backends.close)
                opening = Opening(app, self.backends, signatures)
                self.opened = opened = await opening.backends()
                if app.lifespan is not None:
                    await stack.enter_async_context(app.lifespan(app))
                await opening.resources(stack, opened)
                if self._phase == _IDLE:
                    yield
                    return
                await opening.relay(opened, session_expiry=self._session().expiry)
                context = contextvars.copy_context()
                context.run(self._make_controllers, opened)
                self.runners = [
                    self._runner(route, signature, index, opened)
                    for index, (route, signature) in enumerate(zip(app.routes, signatures, strict=True))
                ]
                self.subscribed = subscriptions(self.runners, self.group)
                self.own = [each for each in self.subscribed if self._served is None or each.filter in self._served]
                self.dispatcher = self.dispatcher_of(None)
                self.dead_letters = DeadLetters(app.publisher, self._spool, max_bytes=self.settings.max_outgoing_bytes)
                self.policy = Policy(
                    publisher=app.publisher,
                    handlers=app.exception_handlers,
                    dead_letters=self.dead_letters,
                    replies=self._replies,
                    fatal=self.fail,
                    max_hold=self.settings.max_hold,
                )
                stack.callback(self.policy.close)
                self.workers = Workers(
                    finish=self.policy.finish,
                    fail=self.policy.fail,
                    fatal=self.fail,
                    context=context,
                    name=f"mqttapi[{app.name}]",
                )
                stack.push_async_callback(self.workers.stop)
                for runner in self.runners:
                    if runner.queue is not None:
                        stack.callback(runner.queue.summarise)
                yield
        finally:
            app.publisher.outgoing = app.publisher.mark = None
            app._service = None

    def idle(self, outgoing: Outgoing) -> contextlib.AbstractAsyncContextManager[None]:
        """Lifespan and resources alone, for a prompt: the outbox is left to those that handle messages, too."""
        self._phase = _IDLE
        return self.started(outgoing)

    def _signature(self, route: Route) -> Signature:
        if route.inbox is None:
            return route.signature
        send = lambda run, outbox, result: self.policy.into_outbox(run, outbox, result)  # noqa: E731, PLW0108  made later
        return through_outbox(route.signature, send)

    def _make_controllers(self, opened: dict[type, object]) -> None:
        """One object of each controller whose constructor takes nothing, in the context that handlers will run in."""
        OPENED.set(opened)
        overrides = self.app.dependency_overrides
        for route in self.app.routes:
            method = route.handler
            if not isinstance(method, Method) or method.cls in (opened.keys() | overrides):
                continue
            if missing := missing_methods(method.cls):
                raise ConfigurationError(
                    f"the controller {method.cls.__name__} of {route.name!r} ({route.source}) is abstract: it lacks "
                    f"{missing}. Register a class that has it all"
                )
            if method.has_one_object:
                opened[method.cls] = method.cls()

    def _runner(self, route: Route, signature: Signature, index: int, opened: Mapping[type, object]) -> Runner:
        threads = CapacityLimiter(ISOLATED_THREADS) if route.isolate else None
        overrides = self.app.dependency_overrides
        plan = compile_plan(signature, overrides=overrides, resources=opened, threads=threads)
        queue = None
        if route.overflow != "block":
            settings = self.settings
            queue = Queue(route.name, route.overflow, limit=settings.max_queued, max_bytes=settings.max_in_flight_bytes)
        around, inner = self.app.table.middleware_of(route)
        one = compose(inner, noting_return(plan) if route.publish_to else plan)
        limit = self.settings.max_hold if route.timeout is None else min(route.timeout, self.settings.max_hold)
        attempts = Attempts(one, retry=route.retry, timeout=limit, max_hold=self.settings.max_hold, pauses=self._pauses)
        if around:
            runner = Runner(route, compose(around, attempts.layer()), index, queue=queue)
        else:
            runner = Runner(route, one, index, attempts.again, queue)
        if self.echo is not None and route.options.no_local:
            runner.endpoint = self.echo.around(runner.endpoint)
        runner.timeout = limit
        runner.max_hold = self.settings.max_hold
        return runner

    def _echo(self) -> Echo | None:
        """Where a route does not want what the app has published: what knows it again."""
        templates = [route.template for route in self.app.routes if route.options.no_local]
        if not templates:
            return None
        instance, stem = self.settings.instance or default_instance(), self.settings.client_id
        return Echo(client_id(self.app.name, instance, 0, stem=stem), templates)

    def _spool(self) -> Spool:
        directory = state_dir(self.app.name, self.settings.state_dir)
        return Spool(directory, self.settings.spool_max_bytes)

    def stats(self) -> Stats:
        """See `App.stats`."""
        if self._phase in {_STARTING, _IDLE}:
            return Stats()
        routes = {runner.route.name: route_stats(runner) for runner in self.runners}
        held = Stats(
            routes=MappingProxyType(routes),
            in_flight=sum(each.in_flight for each in routes.values()),
            dead_letters_held=self.dead_letters.held,
            stuck_threads=self.policy.stuck_threads,
        )
        if self.consumer is None or self.publishing is None:
            return held
        intakes = self.consumer.intakes
        return replace(
            held,
            received=sum(intake.received for intake in intakes),
            unmatched=sum(intake.unmatched for intake in intakes),
            unknown_ids=sum(intake.unknown_ids for intake in intakes),
            refused=sum(intake.refused for intake in intakes),
            violations=sum(intake.ledger.violations for intake in intakes),
            unacknowledged=sum(intake.ledger.held for intake in intakes),
            outgoing=self.publishing.messages,
        )

    def oldest(self) -> float:
        """Seconds since the oldest unacknowledged message came; 0 when there is none."""
        heads = [intake.ledger.head() for intake in (self.consumer.intakes if self.consumer else ())]
        now = asyncio.get_running_loop().time()
        return max((now - head.arrived for head in heads if head is not None), default=0.0)

    def standing_still(self) -> list[str]:
        """The routes whose handlers have not ended though they were cancelled for taking too long."""
        now = asyncio.get_running_loop().time()
        return [
            f"{run.route.name} has not ended for {now - run.began:.0f} s on {printable(run.message.topic)}, though its "
            f"timeout is {run.runner.timeout:g} s: it does not let itself be cancelled"
            for run in self.workers.waiting()
            if run.deadline is not None and run.deadline < 0 and now + run.deadline > _UNTIL_STUCK
        ]

    def readiness(self) -> Sequence[str]:
        """See `App.readiness`."""
        if self._phase in {_STARTING, _IDLE}:  # there is nothing else to ask
            return (self._phase,)
        link = self.consumer.state if self.consumer else ""
        publishing = f"publishing: {self.publishing.state}" if self.publishing and self.publishing.state else ""
        stuck = str(self.failure.result()) if self.failure.done() else ""
        return tuple(
            filter(
                None,
                (
                    *(self._phase, stuck, link, publishing),
                    *(*self.dead_letters.readiness(), *self.backends.problems, *self.standing_still()),
                ),
            )
        )

    def dispatcher_of(self, own: Sequence[Subscribed] | None, *, by_id: bool = True) -> Dispatcher:
        """A dispatcher for the messages of a link that serves `own`; None: everything."""
        fallbacks = [runner for runner in self.runners if runner.route.fallback]
        return Dispatcher(self.subscribed, own, by_id=by_id, mode=self.app.dispatch, fallbacks=fallbacks)

    @property
    def groups(self) -> set[str]:
        """The shared groups of the routes, and the default one."""
        return {self.group, *filter(None, (runner.route.group(self.group) for runner in self.runners))}

    def _replies(self, run: Run) -> bool:
        """Whether it is this route's answer that counts: of several the most specific one's."""
        message, dispatcher = run.message, self.dispatcher
        targets = (dispatcher.retained_targets if message.retain else dispatcher.targets)(message.topic)
        return not targets or targets[0].runner is run.runner

    def stop(self) -> None:
        """The app is to finish what it has accepted, and end."""
        if not self.stopping.done():
            self.stopping.set_result(None)

    def fail(self, error: BaseException) -> None:
        """The app cannot go on."""
        if not self.failure.done():
            self.failure.set_result(error)

    # -- with a broker ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def connected(self, broker: str | None, source: str = "--broker") -> AsyncIterator[None]:
        """The app with its connections: the body begins once it is subscribed, and what was accepted is handled.

        `source` is what error texts call `broker`.
        """
        from mqttapi.consumer import Consumer, main_client_id
        from mqttapi.transport.publishing import PublishingConnection

        settings = self.settings
        options = self._options(resolve_broker(None, broker, settings, self.app.broker, called=source))
        if not self.worker.slot:  # of a pool the first process says it
            remark(self, options)
        fallback = "protocol" not in settings.model_fields_set
        self.publishing = publishing = PublishingConnection(
            options,
            max_messages=settings.max_outgoing,
            max_bytes=settings.max_outgoing_bytes,
            protocol_fallback=fallback,
            fatal=self.fail,
        )
        lock = ClientLock(
            main_client_id(options.client_id),
            runtime_dir(settings.runtime_dir),
            wait=settings.grace,
            broker=options.broker.address,
            supervisor=None if self.worker.size is None else os.getppid(),
        )
        self._phase = _STARTING
        async with contextlib.AsyncExitStack() as stack:
            with self._interruptible():
                await stack.enter_async_context(lock)
                await stack.enter_async_context(publishing.running())
                stack.push_async_exit(self._confirm)
                limit = await stack.enter_async_context(self._ends_in_time())
                await stack.enter_async_context(self.started(publishing))
            hooks = Hooks(self.app)
            stack.push_async_callback(hooks.stop)
            self.consumer = consumer = Consumer(
                self,
                options,
                protocol_fallback=fallback,
                on_change=lambda: self._changed(hooks),
                quarantine=self.quarantine,
            )
            self._phase = ""
            consumer.start()
            care = asyncio.create_task(self._look_after(), name=f"mqttapi[{self.app.name}].care")
            watchdog = Watchdog(f"mqttapi[{self.app.name}].watchdog")
            watchdog.start()
            try:
                await asyncio.wait((consumer.ready, self.failure, self.stopping), return_when=asyncio.FIRST_COMPLETED)
                if self.failure.done():
                    raise self.failure.result()
                self.was_ready = consumer.ready.done()
                yield
                lock.draining()
                await self._drain(consumer, publishing, hooks)
                limit.reschedule(self._end - publishing.goodbye)
            finally:
                watchdog.stop()
                care.cancel()
                await asyncio.gather(care, consumer.cancel(), return_exceptions=True)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Nothing has been accepted yet: neither a failure nor a request to stop waits for the end of the block."""
        task, inside = asyncio.current_task(), True

        def interrupt(_: object) -> None:
            if inside and task is not None:
                task.cancel()

        for future in (self.failure, self.stopping):
            future.add_done_callback(interrupt)
        try:
            yield
        except asyncio.CancelledError:
            told = self.failure.done() or self.stopping.done()
            if not told or task is None or task.uncancel():
                raise
            raise (self.failure.result() if self.failure.done() else Stopped()) from None
        finally:
            inside = False

    async def _look_after(self) -> None:
        """Log what is due, and no timer for each message that could have something due."""
        while True:
            await asyncio.sleep(1)
            self.policy.look_after()
            if self.consumer is not None:
                self.consumer.watch()

    def _changed(self, hooks: Hooks) -> None:
        hooks.update(connected=self.consumer is not None and not self.consumer.state)
        self._on_change()

    @property
    def client_id(self) -> str:
        """Of the first link: `<app>-<instance>-<slot>`, or whose session is rescued."""
        instance = self.settings.instance or default_instance()
        return self.rescues or client_id(self.app.name, instance, self.worker.slot, stem=self.settings.client_id)

    def _options(self, address: Broker) -> ConnectionOptions:
        from mqttapi.transport.connection import ConnectionOptions

        settings, session = self.settings, self._session()
        return ConnectionOptions(
            broker=address,
            client_id=self.client_id,
            protocol=settings.protocol,
            clean_start=session.clean_start,
            session_expiry=session.expiry,
            receive_maximum=settings.max_in_flight,
            maximum_packet=settings.max_packet,
            keepalive=settings.keepalive,
            tls=tls_context(address, settings),
            ca_file=settings.tls_ca_file,
            credentials=self.app.credentials,
        )

    async def leave(self, timeout: float, *, rescue: str = "") -> bool:
        """Unsubscribe for good, and handle what is left, for `timeout` seconds at most; see `Consumer.leave`.

        The end of `connected` then ends the sessions in which nothing waits any more. Returns at once when the app was
        told to stop, or cannot go on.
        """
        if self.consumer is None:
            return False
        self._phase = _LEAVING
        leaving = asyncio.create_task(self.consumer.leave(timeout=timeout, rescue=rescue))
        try:
            await asyncio.wait((leaving, self.failure, self.stopping), return_when=asyncio.FIRST_COMPLETED)
            return leaving.done() and leaving.result()
        finally:
            leaving.cancel()

    async def _drain(self, consumer: Consumer, publishing: PublishingConnection, hooks: Hooks) -> None:
        """Run what was accepted, confirm what was published, acknowledge, and say goodbye, within `grace` seconds."""
        self._phase = _STOPPING
        now, grace = asyncio.get_running_loop().time(), self.settings.grace
        self._deadline, self._end = now + grace * _FOR_MESSAGES, now + grace
        consumer.stop_reading()
        try:
            async with asyncio.timeout_at(self._deadline):
                await consumer.drain()
                await self.workers.drain()
                if self.backends.relay is not None:
                    await self.backends.relay.flush()
                await publishing.flushed()
        except TimeoutError:
            log.warning(
                "the grace of %g s is nearly over: messages not done: %d (cancelled; those of QoS 1 and 2 come again), "
                "publishes not confirmed: %d",
                grace,
                self.workers.outstanding + consumer.waiting,
                publishing.messages,
            )
            await self.workers.stop()
            for run in self.workers.waiting():
                log.error(
                    "%s was cancelled on %s and goes on all the same: it is left behind. An 'except' that catches "
                    "everything is to let asyncio.CancelledError through",
                    run.route.name,
                    printable(run.message.topic),
                )
        publishing.goodbye = min(_GOODBYE, (self._end - asyncio.get_running_loop().time()) / 3)
        await consumer.close(timeout=publishing.goodbye)
        hooks.update(connected=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                await hooks.finished()

    @contextlib.asynccontextmanager
    async def _ends_in_time(self) -> AsyncIterator[asyncio.Timeout]:
        """What is given a time is cancelled then; the app ends well nevertheless."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                yield limit
        except TimeoutError:
            if not limit.expired():
                raise
            log.warning("the end of the lifespan was not done within the grace of %g s: cancelled", self.settings.grace)

    async def _confirm(self, kind: type[BaseException] | None, *_: object) -> None:
        """What the end of the lifespan has published goes out as well, unless the app was cut short."""
        if kind is None and self.publishing is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await self.publishing.flushed()

    def _session(self) -> Session:
        if self.rescues is not None:
            return Session(expiry=self.settings.session_expiry or Session().expiry)
        return session_of(self.app, self.settings)
