"""A Python prompt beside an event loop: the loop runs in a thread of its own, the prompt in the main thread.

So Ctrl-C reaches the prompt while it waits for a line, and whatever is awaited while something runs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
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

    def __call__(self, code: CodeType) -> BaseException | None:
        """Run it to its end; gives what it raised.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed: what was awaited is cancelled.
        """
        task = self._portal.start_task_soon(self._evaluate, code, name="mqttapi.shell")
        try:
            return task.result()
        except KeyboardInterrupt:
            task.cancel()
            raise

    async def _evaluate(self, code: CodeType) -> BaseException | None:
        OPENED.set(self._opened)
        itself = asyncio.current_task()
        try:
            result = eval(code, self.names)  # noqa: S307  that is what a prompt is for
            if inspect.CO_COROUTINE & code.co_flags:
                await result
        except BaseException as error:  # what it raises is an answer: the loop goes on
            if isinstance(error, asyncio.CancelledError) and itself is not None and itself.cancelling():
                raise
            return error
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
        try:
            error = self._evaluate(code)
        except KeyboardInterrupt:
            self.write("\nKeyboardInterrupt\n")
            return
        if isinstance(error, SystemExit):
            raise error
        if error is not None:
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
