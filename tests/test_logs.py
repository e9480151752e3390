from __future__ import annotations

import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttapi import logs
from mqttapi.logs import JSONFormatter, PlainFormatter, RateLimited

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "a\nCRITICAL root: \x1b[31mpwned\x7f\u2028\u202e\x85\ud800"
ESCAPED = r"a\nCRITICAL root: \x1b[31mpwned\x7f\u2028\u202e\x85\ud800"
FIRST_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) *[\w.]+: .*"


def record(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("mqttapi.link", logging.WARNING, __file__, 1, message, arguments, exc_info)
    made.created = 1_767_225_600.5
    vars(made).update(extra)
    return made


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield io.StringIO()
    root.setLevel(level)
    root.handlers[:] = handlers


class TestPlain:
    def test_one_line(self) -> None:
        assert PlainFormatter().format(record("topic %s", "a/b")) == (
            "2026-01-01 00:00:00.500Z WARNING mqttapi.link: topic a/b"
        )

    def test_what_is_not_printable_is_escaped(self) -> None:
        assert PlainFormatter().format(record("topic %s", HOSTILE)).endswith(f": topic {ESCAPED}")

    @given(st.text())
    @example("\r\n")
    def test_any_message_is_one_printable_line(self, text: str) -> None:
        assert PlainFormatter().format(record("%s", text)).isprintable()

    def test_tracebacks_are_readable(self) -> None:
        text = PlainFormatter().format(record("failed", error=raised(ValueError("no"), KeyError("k"))))
        assert re.fullmatch(
            r"""2026-01-01 00:00:00.500Z WARNING mqttapi.link: failed
    Traceback \(most recent call last\):
    KeyError: 'k'
    The above exception was the direct cause of:
    Traceback \(most recent call last\):
      File ".*test_logs.py", line \d+, in raised
        raise error from cause
    ValueError: no""",
            text,
        )

    @pytest.mark.parametrize(
        "error",
        [
            raised(ValueError(HOSTILE)),
            raised(ValueError("x"), ValueError(HOSTILE)),
            raised(ExceptionGroup(HOSTILE, [ValueError(HOSTILE)])),
            raised(SyntaxError(HOSTILE, (HOSTILE, 1, 1, HOSTILE))),
        ],
        ids=["text", "cause", "group", "syntax"],
    )
    def test_text_in_an_exception_cannot_pass_for_a_record(self, error: BaseException) -> None:
        first, *rest = PlainFormatter().format(record("failed", error=error)).split("\n")
        assert first.endswith(": failed")
        assert all(line.startswith("    ") and line.isprintable() for line in rest)
        assert not any("CRITICAL" in line and r"a\nCRITICAL" not in line for line in rest)

    def test_notes_and_stacks_are_indented_too(self) -> None:
        error = ValueError("x")
        error.add_note(HOSTILE)
        lines = PlainFormatter().format(record("failed", error=error, stack_info=HOSTILE)).split("\n")
        assert all(line.startswith("    ") and line.isprintable() for line in lines[1:])


class TestJSON:
    def test_one_object(self) -> None:
        assert json.loads(JSONFormatter().format(record("topic %s", HOSTILE, route="a/<id>", attempt=2))) == {
            "time": "2026-01-01T00:00:00.500Z",
            "level": "warning",
            "logger": "mqttapi.link",
            "message": f"topic {HOSTILE}",
            "route": "a/<id>",
            "attempt": 2,
        }

    @given(st.text(), st.text())
    @example("\x7f", "\u2028")
    def test_any_record_is_one_printable_ascii_line(self, text: str, extra: str) -> None:
        line = JSONFormatter().format(record("%s", text, error=ValueError(text), extra=extra))
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["message"] == text

    def test_a_traceback_is_a_field(self) -> None:
        line = JSONFormatter().format(record("failed", error=raised(ValueError(HOSTILE))))
        assert json.loads(line)["traceback"].endswith(f"\nValueError: {ESCAPED}")

    def test_what_json_cannot_say_is_text(self) -> None:
        circle: list[object] = []
        circle.append(circle)
        line = JSONFormatter().format(record("x", a=float("nan"), b=circle, c=object, d={(1, 2): 3}))
        assert json.loads(line)["a"] == "nan"

    def test_extra_fields_do_not_replace_those_of_the_record(self) -> None:
        assert json.loads(JSONFormatter().format(record("x", level="forged")))["level"] == "warning"


class TestConfigure:
    @pytest.mark.parametrize("format", ["plain", "json"])
    def test_every_record_is_one_line(self, format: Literal["plain", "json"], stream: io.StringIO) -> None:
        logs.configure("info", format, stream=stream)
        encodable = HOSTILE.encode(errors="ignore").decode()  # pytest reports it, too: to another process
        logging.getLogger("mqttapi.link").warning("topic %s", encodable)
        logging.getLogger("users.app").info("hello")
        first, second = stream.getvalue().splitlines()
        assert "pwned" in first
        assert "hello" in second
        if format == "plain":
            assert re.fullmatch(FIRST_LINE, first)

    def test_the_level(self, stream: io.StringIO) -> None:
        logs.configure("error", stream=stream)
        logging.getLogger("mqttapi").warning("unseen")
        logging.getLogger("mqttapi").error("seen")
        assert stream.getvalue().endswith("mqttapi: seen\n")
        assert "unseen" not in stream.getvalue()

    def test_again_replaces_its_own_handler_only(self, stream: io.StringIO) -> None:
        other = logging.NullHandler()
        logging.getLogger().addHandler(other)
        logs.configure(stream=io.StringIO())
        logs.configure(stream=stream)
        logging.getLogger().warning("once")
        assert stream.getvalue().count("once") == 1
        assert other in logging.getLogger().handlers


class TestRateLimited:
    def test_ten_in_full_and_then_a_summary(self) -> None:
        now = 0.0
        limit = RateLimited[str](clock=lambda: now)
        assert [limit.allows("r") for _ in range(13)] == [True] * 10 + [False] * 3
        assert limit.summaries() == []
        now = 60.0
        assert limit.summaries() == [("r", 3)]
        assert limit.summaries() == []
        assert limit.allows("r")

    def test_nothing_to_sum_up(self) -> None:
        now = 0.0
        limit = RateLimited[str](clock=lambda: now)
        limit.allows("r")
        now = 60.0
        assert limit.summaries() == []

    def test_keys_are_counted_apart(self) -> None:
        limit = RateLimited[tuple[str, type]](limit=1)
        assert limit.allows(("r", ValueError))
        assert limit.allows(("r", KeyError))
        assert not limit.allows(("r", ValueError))

    def test_at_the_end_nothing_is_left_unsaid(self) -> None:
        limit = RateLimited[str](limit=1)
        limit.allows("r")
        limit.allows("r")
        assert limit.summaries(at_end=True) == [("r", 1)]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=100))
    def test_every_event_is_logged_or_summed_up(self, events: list[tuple[str, int]]) -> None:
        now = 0.0
        limit = RateLimited[str](limit=2, clock=lambda: now)
        told = dict.fromkeys("abc", 0)
        for key, pause in events:
            now += pause
            for done, count in limit.summaries():
                told[done] += count
            told[key] += limit.allows(key)
        for done, count in limit.summaries(at_end=True):
            told[done] += count
        assert told == {name: sum(key == name for key, _ in events) for name in "abc"}
