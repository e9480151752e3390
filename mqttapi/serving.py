"""An app as a program: signals, exit codes, the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mqttapi.config import ClientIdInUse
from mqttapi.errors import ConfigurationError, ConnectionRefused, HandlerStuck, MQTTAPIError
from mqttapi.runtime.lanes import LANE
from mqttapi.service import Service, Stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from mqttapi.app import App

__all__ = [
    "exit_code",
    "leave",
    "loop_factory",
    "run",
    "run_to_its_end",
    "running",
    "serve",
    "stopped_by_signals",
    "tune_garbage_collector",
]

log = logging.getLogger("mqttapi")

EXIT_FAILED: Final = 1
EXIT_TAKEN_OVER: Final = 3
_TAKEN_OVER: Final = 0x8E
_HANG_UP: Final = getattr(signal, "SIGHUP", None)  # not on Windows
_HANDLER_THREAD: Final = "AnyIO worker thread"  # in which plain functions run
_PATIENCE: Final = 0.2  # seconds for threads that have nothing to do any more


@contextlib.asynccontextmanager
async def running(app: App, broker: str | None) -> AsyncIterator[App]:
    """See `App.running`."""
    service = Service(app)
    async with service.connected(broker, "running(broker=)"):
        service.failure.add_done_callback(_log_failure)
        yield app


def _log_failure(failure: asyncio.Future[BaseException]) -> None:
    """Where the app is inside another program, that goes on: `readiness` and the log have to tell."""
    log.error("the app has stopped: %s", failure.result())


async def serve(app: App, broker: str | None, *, source: str = "serve(broker=)", whole_program: bool = False) -> None:
    """See `App.serve`. The garbage collector is ours to tune only where the app is the whole program.

    `source` is what error texts call `broker`.
    """
    service = Service(app)
    try:
        with stopped_by_signals(service):
            async with service.connected(broker, source):
                if whole_program:
                    tune_garbage_collector()
                await asyncio.wait((service.stopping, service.failure), return_when=asyncio.FIRST_COMPLETED)
    except Stopped:
        return
    if service.failure.done():
        raise service.failure.result()


@contextlib.contextmanager
def stopped_by_signals(service: Service) -> Iterator[None]:
    """Signals tell the service to stop, in the main thread; a second one cancels the current task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def signalled(number: int) -> None:
        name = signal.Signals(number).name
        if not service.stopping.done():
            log.info("%s: finishing what was accepted; a second signal stops at once", name)
            service.stop()
        elif task is not None and number != _HANG_UP:
            log.warning("%s again: stopping at once", name)
            task.cancel()

    watched = _signals() if threading.current_thread() is threading.main_thread() else ()
    for number in watched:
        loop.add_signal_handler(number, signalled, number)
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


def _signals() -> tuple[int, ...]:
    """What asks the app to stop. A hang-up (the terminal or the parent is gone) may come several times, as Linux sends
    one for each thread of a parent that dies; `nohup` has it ignored.
    """
    if _HANG_UP is None or signal.getsignal(_HANG_UP) == signal.SIG_IGN:
        return (signal.SIGTERM, signal.SIGINT)
    return (signal.SIGTERM, signal.SIGINT, _HANG_UP)


def tune_garbage_collector() -> None:
    """What stands at the start stays, so it is not looked at again; and messages are objects by the thousands, few of
    them in cycles, so the youngest generation may be larger.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def exit_code(error: MQTTAPIError) -> int:
    """3 where another app has the client id: starting again would only take it away from that one."""
    taken = isinstance(error, ConnectionRefused) and error.reason_code == _TAKEN_OVER
    return EXIT_TAKEN_OVER if taken or isinstance(error, ClientIdInUse) else EXIT_FAILED


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop of an app that is the whole program: uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(app: App, broker: str | None, *, source: str = "run(broker=)") -> None:
    """See `App.run`; `source` is what error texts call `broker`."""
    with contextlib.suppress(RuntimeError):  # it says that there is none
        asyncio.get_running_loop()
        raise ConfigurationError("app.run() is the whole program: where an event loop runs, write 'await app.serve()'")
    leave(run_to_its_end(serve(app, broker, source=source, whole_program=True)))


def run_to_its_end(program: Coroutine[Any, Any, int | None]) -> int:
    """Run what serves an app, as the whole program; gives the exit code, and has said why it is not 0.

    The program may give an exit code of its own. Where handlers do not let themselves be cancelled the process ends here:
    the loop would wait for them.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code = _exit_code_of(program, runner)
        if any(LANE in task.get_name() for task in asyncio.all_tasks(runner.get_loop())):
            _leave_behind("handlers run on that were cancelled", code)
        return code


def _exit_code_of(program: Coroutine[Any, Any, int | None], runner: asyncio.Runner) -> int:
    try:
        return runner.run(program) or 0
    except (ClientIdInUse, ConnectionRefused, HandlerStuck) as error:
        log.error("%s", error)
        return exit_code(error)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return EXIT_FAILED


def leave(code: int) -> NoReturn:
    """End the process, also where the thread of a handler does not end: the interpreter would wait for it."""
    stuck = [thread for thread in threading.enumerate() if thread.name == _HANDLER_THREAD]
    deadline = time.monotonic() + _PATIENCE
    for thread in stuck:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in stuck):
        _leave_behind("handlers run on in threads that nothing can stop", code)
    raise SystemExit(code)


def _leave_behind(what: str, code: int) -> NoReturn:
    log.warning("%s: leaving them behind", what)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
