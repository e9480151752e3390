"""What a failed command says, and with which exit code it ends."""

from __future__ import annotations

import re
import site
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from mqttapi.config import ClientIdInUse
from mqttapi.errors import ConfigurationError, MQTTAPIError

__all__ = [
    "FAILED",
    "TAKEN_OVER",
    "TYPED",
    "WRONG",
    "TargetError",
    "Verbosity",
    "redacted",
    "report",
    "show_error",
    "tell",
    "user_traceback",
]

FAILED: Final = 1
WRONG: Final = 2
TAKEN_OVER: Final = 3

TYPED: Final = "<shell>"
"""In place of a file: what was typed at a prompt, or given to be run."""

_PACKAGE: Final = str(Path(__file__).parent.parent)
_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib")
_INSTALLED: Final = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages())


@dataclass(slots=True)
class Verbosity:
    """Set by `--debug`; shared by all levels of the command line."""

    debug: bool = False


class TargetError(ConfigurationError):
    """Raised when `module:app` does not lead to an App. Its cause is what the user's own code raised, if it did."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"cannot load {target!r}: {reason}")
        self.reason = reason


def report(error: Exception, verbosity: Verbosity) -> int:
    """Tell the user on stderr, and return the exit code."""
    if verbosity.debug:
        _show("".join(traceback.format_exception(error)))
    match error:
        case typer.TyperException():
            if said := error.format_message():  # nothing, where the help was the answer
                tell(said.replace(": Value error, ", ": "))  # pydantic's, by which typer looks for a choice
            return error.exit_code
        case TargetError(__cause__=ConfigurationError() as cause):
            tell(user_traceback(cause))
            return WRONG
        case TargetError(__cause__=BaseException() as cause):
            if not verbosity.debug:
                _show(user_traceback(cause))
            tell(str(error))
            return WRONG
        case ClientIdInUse():
            tell(str(error))
            return TAKEN_OVER
        case MQTTAPIError():
            tell(str(error))
            return WRONG if isinstance(error, ConfigurationError) else FAILED
        case _:
            if not verbosity.debug:
                _show(user_traceback(error))
            tell(f"failed with {type(error).__name__}; --debug shows the whole traceback")
            return FAILED


def show_error(error: BaseException, verbosity: Verbosity) -> None:
    """Print what the user's code has raised, and where: the user's frames, or with `--debug` all of them."""
    _show("".join(traceback.format_exception(error)) if verbosity.debug else user_traceback(error))


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of MQTTAPI, the standard library and, where others are left, of packages.

    A ConfigurationError is one line with the place in the user's code that led to it.
    """
    described = traceback.TracebackException.from_exception(error)
    _keep_user_frames(described, set())
    if isinstance(error, ConfigurationError):
        place = f"{described.stack[-1].filename}:{described.stack[-1].lineno}: " if described.stack else ""
        return f"{place}{error}"
    return "".join(described.format())


def _keep_user_frames(described: traceback.TracebackException, seen: set[int]) -> None:
    if id(described) in seen:
        return
    seen.add(id(described))
    relevant = [frame for frame in described.stack if not _is_machinery(frame.filename)]
    # An app that is itself installed has only frames there.
    described.stack[:] = [frame for frame in relevant if not _within(frame.filename, *_INSTALLED)] or relevant
    for linked in (described.__cause__, described.__context__, *(described.exceptions or ())):
        if linked is not None:
            _keep_user_frames(linked, seen)


def _is_machinery(filename: str) -> bool:
    """MQTTAPI, the standard library, and what is no file: frozen or compiled code."""
    if filename == TYPED:
        return False
    if _within(filename, _PACKAGE) or not Path(filename).is_absolute():
        return True
    return _within(filename, _STANDARD_LIBRARY) and not _within(filename, *_INSTALLED)


def _within(filename: str, *directories: str) -> bool:
    return any(filename.startswith(f"{directory}/") for directory in directories)


def redacted(text: str) -> str:
    """`text` without what stands between `://` and `@`: the user and password of a URL."""
    return re.sub(r"://\S*@", "://***@", text)


def _show(trace: str) -> None:
    print(redacted(trace.rstrip()), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Say something to the user: on stderr, as stdout is for results."""
    print(redacted(f"mqttapi: {text}"), file=sys.stderr, flush=True)
