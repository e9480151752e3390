"""`Service`: an app that runs. It opens what the app needs, in order, and closes it in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

from mqttapi.arguments import check_yielded
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
from mqttapi.ending import Ending
from mqttapi.errors import ConfigurationError
from mqttapi.hooks import Hooks
from mqttapi.opening import Opening
from mqttapi.remarks import remark
from mqttapi.reporting import IDLE, LEAVING, STARTING, STOPPING
from mqttapi.resources.backends import Backends
from mqttapi.resources.inbox import through_outbox
from mqttapi.runners import make_controllers, make_runners
from mqttapi.runtime.dead_letters import DeadLetters
from mqttapi.runtime.dispatcher import Dispatcher
from mqttapi.runtime.echo import Echo
from mqttapi.runtime.lanes import Workers
from mqttapi.runtime.links import subscriptions
from mqttapi.runtime.policy import Policy
from mqttapi.runtime.spool import Spool
from mqttapi.runtime.watchdog import Watchdog
from mqttapi.workers.plan import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Iterator, Sequence

    from mqttapi.app import App
    from mqttapi.config import Broker
    from mqttapi.consumer import Consumer
    from mqttapi.injection import Signature
    from mqttapi.publisher import Outgoing
    from mqttapi.routing import Route
    from mqttapi.runtime.links import Subscribed
    from mqttapi.runtime.quarantine import Quarantine
    from mqttapi.runtime.runs import Run, Runner
    from mqttapi.transport.connection import ConnectionOptions
    from mqttapi.transport.publishing import PublishingConnection

__all__ = ["Service", "Stopped", "session_of"]

log = logging.getLogger("mqttapi")

_T = TypeVar("_T")


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
        self.phase = ""
        """What it does when that is not its work."""
        self.runners: Sequence[Runner] = ()
        self.group = self.settings.group_name or app.name
        self.opened: dict[type, Any] = {}
        """What is open, by type."""
        self.backends = Backends(self.settings, redis_optional=app.redis == "optional", name=f"mqttapi[{app.name}]")
        self.echo = self._echo()
        self._pauses = pauses
        self._served = served
        self._on_change = on_change

    # -- without a broker -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self, outgoing: Outgoing) -> AsyncIterator[None]:
        """Lifespan, resources, plans and workers; what is still running at the end is cancelled."""
        app = self.app
        if app._service is not None:
            raise ConfigurationError(f"the app {app.name!r} is running already: one App object runs once at a time")
        app._service = self
        app.publisher.outgoing = outgoing
        if self.echo is not None and self.publishing is not None and outgoing is self.publishing.sender:
            app.publisher.mark = self.echo.marked
        try:
            async with contextlib.AsyncExitStack() as stack:
                signatures = [self._signature(route) for route in app.routes]
                stack.push_async_callback(self.backends.close)
                opening = Opening(app, self.backends, signatures)
                self.opened = opened = await opening.backends()
                if app.lifespan is not None:
                    check_yielded(app.name, await stack.enter_async_context(app.lifespan(app)))
                await opening.resources(stack, opened)
                if self.phase == IDLE:
                    yield
                    return
                await opening.relay(opened, session_expiry=self._session().expiry)
                context = contextvars.copy_context()
                context.run(make_controllers, app, opened)
                self.runners = make_runners(app, signatures, self.settings, opened, echo=self.echo, pauses=self._pauses)
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
        self.phase = IDLE
        return self.started(outgoing)

    def opened_as(self, kind: type[_T]) -> _T:
        """See `App.opened`."""
        found: _T | None = self.opened[kind] if kind in self.opened else self.backends.make(kind)
        if found is None:
            raise ConfigurationError(f"opened({kind.__name__}): the app has opened no {kind.__name__}")
        return found

    def _signature(self, route: Route) -> Signature:
        if route.inbox is None:
            return route.signature
        send = lambda run, outbox, result: self.policy.into_outbox(run, outbox, result)  # noqa: E731, PLW0108  made later
        return through_outbox(route.signature, send)

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
        ending = Ending(settings.grace, publishing)
        self.phase = STARTING
        async with contextlib.AsyncExitStack() as stack:
            with self._interruptible():
                await stack.enter_async_context(lock)
                await stack.enter_async_context(publishing.running())
                stack.push_async_exit(ending.confirm)
                await stack.enter_async_context(ending.in_time())
                await stack.enter_async_context(self.started(publishing.sender))
            hooks = Hooks(self.app)
            stack.push_async_callback(hooks.stop)
            self.consumer = consumer = Consumer(
                self,
                options,
                protocol_fallback=fallback,
                on_change=lambda: self._changed(hooks),
                quarantine=self.quarantine,
            )
            self.phase = ""
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
                self.phase = STOPPING
                await ending.drain(self, consumer, hooks)
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
        self.phase = LEAVING
        leaving = asyncio.create_task(self.consumer.leave(timeout=timeout, rescue=rescue))
        try:
            await asyncio.wait((leaving, self.failure, self.stopping), return_when=asyncio.FIRST_COMPLETED)
            return leaving.done() and leaving.result()
        finally:
            leaving.cancel()

    def _session(self) -> Session:
        if self.rescues is not None:
            return Session(expiry=self.settings.session_expiry or Session().expiry)
        return session_of(self.app, self.settings)
