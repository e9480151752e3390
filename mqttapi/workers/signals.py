"""What signals tell the supervisor.

SIGTERM, SIGINT     drain all workers at the same time, within their `grace`; a second one stops them at once
SIGQUIT             the same, but however often it comes
SIGHUP              replace one worker after the other by a new process with the code as it is now
SIGTTIN, SIGTTOU    one worker more, one worker less
SIGUSR1             log the state of every worker
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.workers.description import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from mqttapi.workers.supervisor import Supervisor

__all__ = ["obeying_signals"]

log = logging.getLogger("mqttapi.workers")


@contextlib.contextmanager
def obeying_signals(supervisor: Supervisor) -> Iterator[None]:
    """Obey them, in the main thread, as long as the block lasts. After it they mean nothing any more."""
    had_terminal = _has_terminal()
    loop = asyncio.get_running_loop()
    told = False

    def tell_to_stop(name: str) -> None:
        nonlocal told
        if not told:
            told = True
            log.info("%s: finishing what was accepted; a second signal stops at once", name)
            supervisor.stop()
        elif not supervisor.cut_short:
            log.warning("%s again: stopping at once", name)
            supervisor.cancel()

    actions: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: lambda: tell_to_stop("SIGTERM"),
        signal.SIGINT: lambda: tell_to_stop("SIGINT"),
        signal.SIGQUIT: supervisor.stop,
        signal.SIGHUP: lambda: _hung_up(supervisor, had_terminal=had_terminal),
        signal.SIGTTIN: lambda: _change(supervisor, lambda: supervisor.scale(supervisor.size + 1)),
        signal.SIGTTOU: lambda: _change(supervisor, lambda: supervisor.scale(supervisor.size - 1)),
        signal.SIGUSR1: lambda: _log_state(supervisor),
    }
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        del actions[signal.SIGHUP]
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    # Workers inherit this: who has not come so far as to write its stack when it is asked to does not die of the question.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        for number in actions:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # the process is about to end, with the code that it has


def _hung_up(supervisor: Supervisor, *, had_terminal: bool) -> None:
    """A service is asked to reload; who lost the terminal is asked to end."""
    if had_terminal and not _has_terminal():
        supervisor.stop()
    else:
        _change(supervisor, supervisor.reload)


def _change(supervisor: Supervisor, change: Callable[[], Coroutine[Any, Any, str]]) -> None:
    async def go() -> None:
        try:
            log.info("%s", await change())
        except ConfigurationError as error:
            log.error("%s", error)

    supervisor.in_background(go())


def _log_state(supervisor: Supervisor) -> None:
    for line in describe(supervisor.state()):
        log.info("%s", line)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
