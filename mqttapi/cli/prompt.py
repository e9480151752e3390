"""A Python prompt beside an event loop: the loop runs in a thread of its own, the prompt in the main thread.

So Ctrl-C reaches the prompt while it waits for a line, and whatever is awaited while something runs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import signal
from code import InteractiveConsole
from typing import TYPE_CHECKING, Any, Final

from mqttapi.cli.problems import TYPED, Verbosity, show_error
from mqttapi.resources.access import OPENED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

    from anyio.from_thread import BlockingPortal

__all__ = ["Evaluator", "Prompt", "compiled"]

_AWAIT: Final = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def compiled(text: str) -> CodeType:
    """A whole program, in which `await` may stand outside of functions; tracebacks show its lines.

    Raises:
        SyntaxError: It is no Python.
    """
    linecache.cache[TYPED] = len(text), None, text.splitlines(keepends=True), TYPED
    code: CodeType = compile(text, TYPED, "exec", flags=_AWAIT, dont_inherit=True)
    return code


class Evaluator:
    """Runs code on the loop, one piece at a time.

    Args:
        portal: To the loop.
        names: What the code sees, and adds to.
        opened: The resources of the app, for controllers and middleware that are used from the prompt.
    """

    def __init__(self, portal: BlockingPortal, names: dict[str, Any], opened: Mapping[Any, Any]) -> None:
        self.names = names
        self._portal = portal
        self._opened = opened
        self._loop = portal.call(asyncio.get_running_loop)
        # On the loop:
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False
        self._asked = False  # and the loop has not heard of it yet

    def __call__(self, code: CodeType) -> BaseException | None:
        """Run it to its end; gives what it raised. Ctrl-C cancels what it awaits, and is a KeyboardInterrupt then."""
        self._interrupted = self._asked = False
        former = signal.signal(signal.SIGINT, self._ask)
        try:
            return self._portal.call(self._evaluate, code)
        except KeyboardInterrupt as error:
            return error
        finally:
            signal.signal(signal.SIGINT, former)

    def _ask(self, *_: object) -> None:
        """Ctrl-C: no exception here, where it could be lost; a second one leaves behind a loop that hears nothing."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        self._asked, self._interrupted = False, True
        if self._task is not None:
            self._task.cancel()

    async def _evaluate(self, code: CodeType) -> BaseException | None:
        OPENED.set(self._opened)
        self._task = asyncio.current_task()
        try:
            if self._interrupted:
                return KeyboardInterrupt()
            result = eval(code, self.names)  # noqa: S307  that is what a prompt is for
            if inspect.CO_COROUTINE & code.co_flags:
                await result
        except asyncio.CancelledError as error:
            return KeyboardInterrupt() if self._interrupted else error
        except BaseException as error:  # noqa: BLE001  what it raises is an answer: the loop goes on
            return error
        finally:
            self._task = None
        return None


class Prompt(InteractiveConsole):
    """The prompt, until the end of the input or `exit()`."""

    def __init__(self, evaluate: Evaluator, verbosity: Verbosity) -> None:
        super().__init__(evaluate.names, TYPED)
        self.compile.compiler.flags |= _AWAIT
        self._evaluate = evaluate
        self._verbosity = verbosity
        _complete(evaluate.names)

    def runcode(self, code: CodeType) -> None:
        """Run what was typed, and show what it raises."""
        error = self._evaluate(code)
        if isinstance(error, SystemExit):
            raise error
        if isinstance(error, KeyboardInterrupt):
            self.write("\nKeyboardInterrupt\n")
        elif error is not None:
            show_error(error, self._verbosity)


def _complete(names: dict[str, Any]) -> None:
    """Lines can be edited, where Python can do that, and Tab completes names."""
    try:
        import readline
        from rlcompleter import Completer
    except ImportError:
        return
    readline.set_completer(Completer(names).complete)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
