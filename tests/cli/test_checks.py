"""What `mqttapi check` looks for: each check with an app that has it to say, and with one that has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from mqttapi import App, Retry, RouteOptions, Session
from mqttapi.cli.checks import CHECKS, Finding, Subject, look_at, sessions
from mqttapi.config import Settings
from mqttapi.middleware import CircuitBreaker, Deduplicate, RateLimit
from mqttapi.resources.inbox import Inbox
from mqttapi.testing import TestClient
from mqttapi.transport import dialer
from mqttapi.workers import slot


class Reading(BaseModel):
    temperature: float


class Anything(BaseModel):
    note: str = ""


@dataclass
class Command:
    kind: str


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def found(app: App, check: str, **settings: Any) -> list[Finding]:
    return list(CHECKS[check](Subject(app, Settings(**settings))))


def levels(app: App, check: str, **settings: Any) -> list[str]:
    return [finding.level for finding in found(app, check, **settings)]


def names(finding: Finding) -> list[str]:
    return [route.name for route in finding.routes]


def app_of(*templates: str, app: App | None = None, **options: Any) -> App:
    """An app with a route for each template, called as it."""
    app = app or App("plant")
    for template in templates:

        async def handle() -> None: ...

        app.on(template, handle, name=template, **options)
    return app


# ----------------------------------------------------------------------------------------------------------- the start


def test_what_the_start_would_refuse_is_an_error() -> None:
    app = app_of("a/<id>", shared=True, options=RouteOptions(retain_as_published=True))
    app_of("a/<other>", app=app, shared=True)
    (finding,) = found(app, "refused-at-start")
    assert finding.level == "error"
    assert "share the subscription '$share/plant/a/+', but retain_as_published is True for the one" in finding.what


def test_middleware_on_a_route_that_it_is_not_for_is_an_error() -> None:
    (finding,) = found(app_of("a", middleware=[CircuitBreaker()]), "refused-at-start")
    assert (finding.level, names(finding)) == ("error", ["a"])
    assert not found(app_of("a", middleware=[CircuitBreaker()], isolate=True), "refused-at-start")


def test_an_inbox_that_forgets_before_the_session_ends_is_an_error() -> None:
    def app(ttl: float) -> App:
        return app_of("a", app=App("plant", session=Session(expiry=100)), inbox=Inbox(key="id", ttl=ttl))

    (finding,) = found(app(100), "refused-at-start")
    assert finding.what == (
        "a: Inbox(ttl=100) must be more than the session's expiry (100 s): a message may come again as long as the session "
        "lasts"
    )
    assert not found(app(101), "refused-at-start")


# ------------------------------------------------------------------------------------------------------------ overlaps


def test_routes_with_topics_in_common_are_told_with_what_happens() -> None:
    (finding,) = found(app_of("a/<id>", "a/b", "c"), "overlapping-routes")
    assert finding.level == "note"
    assert names(finding) == ["a/<id>", "a/b"]
    assert finding.what == "'a/<id>' has topics in common with 'a/b' of 'a/b'"
    assert "goes to all of them, each once" in finding.why


def test_of_overlapping_routes_the_first_is_told_where_it_runs_alone() -> None:
    (finding,) = found(app_of("a/b", "a/<id>", app=App(dispatch="first")), "overlapping-routes")
    assert "goes to the first registered alone" in finding.why


def test_a_wide_route_is_told_once_wherever_it_was_registered() -> None:
    (finding,) = found(app_of("a", "b", "c", "#"), "overlapping-routes")
    assert names(finding) == ["#", "a", "b", "c"]


def test_every_overlapping_pair_is_told_once() -> None:
    told = {
        frozenset({names(finding)[0], other})
        for finding in found(app_of("a/<x>", "<y>/b", "a/b"), "overlapping-routes")
        for other in names(finding)[1:]
    }
    assert told == {frozenset({"a/<x>", "<y>/b"}), frozenset({"a/<x>", "a/b"}), frozenset({"<y>/b", "a/b"})}


def test_routes_without_common_topics_are_not_told() -> None:
    assert not found(app_of("a/<id>", "b/<id>", "a/<id>/c"), "overlapping-routes")


def test_a_route_that_an_earlier_one_covers_never_runs() -> None:
    (finding,) = found(app_of("a/<id>", "a/b", app=App(dispatch="first")), "shadowed-route")
    assert finding.level == "error"
    assert names(finding) == ["a/b"]
    assert finding.what.startswith("'a/b' never runs: 'a/<id>' (test_checks.py:")


def test_a_shadowed_route_is_not_told_as_an_overlap_too() -> None:
    assert not found(app_of("a/<id>", "a/b", app=App(dispatch="first")), "overlapping-routes")


def test_the_same_template_twice_shadows_the_second() -> None:
    assert len(found(app_of("a/<id:int>", "a/<n:int>", app=App(dispatch="first")), "shadowed-route")) == 1


@pytest.mark.parametrize(
    "templates",
    [("a/b", "a/<id>"), ("a/<id:int>", "a/<id>"), ("dev-<id>", "<x>"), ("a/<id>", "a/+"), ("a/<id>", "a/<id>/c")],
)
def test_a_route_that_has_messages_of_its_own_is_not_shadowed(templates: tuple[str, str]) -> None:
    assert not found(app_of(*templates, app=App(dispatch="first")), "shadowed-route")


def test_where_all_routes_run_none_is_shadowed() -> None:
    assert not found(app_of("a/<id>", "a/b"), "shadowed-route")


def test_a_route_that_takes_what_is_retained_is_not_shadowed_by_one_that_does_not() -> None:
    app = app_of("a/<id>", app=App(dispatch="first"), retained="skip")
    assert not found(app_of("a/b", app=app), "shadowed-route")
    app = app_of("a/<id>", app=App(dispatch="first"), retained="skip")
    assert found(app_of("a/b", app=app, retained="skip"), "shadowed-route")


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("template", ["#", "+/#", "<all:path>"])
def test_a_subscription_to_everything_is_a_warning(template: str) -> None:
    assert levels(app_of(template), "bare-wildcard") == ["warning"]
    assert levels(app_of(template), "leading-wildcard") == []


def test_a_fallback_that_subscribes_to_everything_is_one_too() -> None:
    app = App()

    @app.fallback(filter="#")
    async def unknown() -> None: ...

    assert levels(app, "bare-wildcard") == ["warning"]


def test_a_fallback_that_subscribes_to_nothing_is_none() -> None:
    app = app_of("a")

    @app.fallback
    async def unknown() -> None: ...

    assert levels(app, "bare-wildcard") == []


def test_a_first_level_that_is_a_wildcard_is_a_note() -> None:
    assert levels(app_of("<tenant>/state"), "leading-wildcard") == ["note"]
    assert levels(app_of("tenants/<tenant>/state", "a/#"), "leading-wildcard") == []


def test_first_levels_that_are_wildcards_are_told_once() -> None:
    (finding,) = found(app_of("<tenant>/a", "<tenant>/b", "c"), "leading-wildcard")
    assert names(finding) == ["<tenant>/a", "<tenant>/b"]
    assert finding.what == "filters that begin with a wildcard: '+/a', '+/b'"


def test_a_wildcard_behind_a_first_level_is_no_bare_one() -> None:
    assert levels(app_of("a/#"), "bare-wildcard") == []


def test_retained_messages_of_a_group_are_a_warning_and_nothing_else_an_error() -> None:
    assert levels(app_of("a", shared=True, retained="all"), "retained-under-shared") == ["warning"]
    assert levels(app_of("a", shared=True, retained="only"), "retained-under-shared") == ["error"]
    assert levels(app_of("a", shared=True), "retained-under-shared") == []
    assert levels(app_of("a", retained="only"), "retained-under-shared") == []


# ----------------------------------------------------------------------------------------- at the same time, in order


def test_order_is_not_kept_among_workers() -> None:
    (finding,) = found(app_of("a/<id>", shared=True, workers=3), "order-across-processes")
    assert finding.level == "note"
    assert finding.what == "ordered_by='topic' holds within each of 3 workers, not among them"


def test_the_order_that_is_the_default_is_told_once() -> None:
    app = app_of("b", app=app_of("a", shared=True, workers=2), shared=True, workers=4)
    (finding,) = found(app, "order-across-processes")
    assert names(finding) == ["a", "b"]
    assert "within each of 4 workers" in finding.what


def test_an_order_that_was_asked_for_is_a_warning_among_workers() -> None:
    assert levels(app_of("a/<id>", shared=True, workers=2, ordered_by="id"), "order-across-processes") == ["warning"]
    assert levels(app_of("a", shared=True, workers=2, ordered_by=lambda m: 1), "order-across-processes") == ["warning"]


def test_the_workers_of_the_settings_count_for_shared_routes_alone() -> None:
    assert levels(app_of("a", shared=True), "order-across-processes", worker_count=2) == ["note"]
    assert levels(app_of("a"), "order-across-processes", worker_count=2) == []


def test_one_worker_or_no_order_is_no_finding() -> None:
    assert levels(app_of("a", shared=True, workers=1), "order-across-processes") == []
    assert levels(app_of("a", shared=True, workers=2, ordered_by=None), "order-across-processes") == []


def test_a_concurrency_above_the_window_is_never_reached() -> None:
    (finding,) = found(app_of("a/<x>", concurrency=101), "concurrency-above-window", max_in_flight=100)
    assert finding.what == "concurrency=101 is never reached: a link holds 100 messages at most"
    assert levels(app_of("a/<x>", concurrency=100), "concurrency-above-window", max_in_flight=100) == []


def test_a_concurrency_above_what_mosquitto_sends_is_a_note() -> None:
    (finding,) = found(app_of("a/<x>", "b/<x>", concurrency=50), "narrow-broker-window")
    assert finding.level == "note"
    assert finding.what.startswith("concurrency up to 50: a mosquitto with its defaults lets 20 messages")
    assert names(finding) == ["a/<x>", "b/<x>"]
    assert levels(app_of("a/<x>", concurrency=20), "narrow-broker-window") == []
    assert levels(app_of("a/<x>", concurrency=50, qos=0), "narrow-broker-window") == []


def test_a_concurrency_of_one_topic_in_order_is_never_reached() -> None:
    assert levels(app_of("a/b", concurrency=5), "concurrency-of-one-key") == ["warning"]
    assert levels(app_of("a/b", concurrency=5, ordered_by=None), "concurrency-of-one-key") == []
    assert levels(app_of("a/<id>", concurrency=5), "concurrency-of-one-key") == []
    assert levels(app_of("a/b", concurrency=1), "concurrency-of-one-key") == []


# ------------------------------------------------------------------------------------------------------------ payloads


def taking(hint: Any) -> App:
    app = App()

    async def ingest(payload: Any) -> None: ...

    ingest.__annotations__["payload"] = hint
    app.on("a", ingest, name="a")
    return app


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Reading | dict, "what is no Reading arrives as dict, and is not rejected"),
        (Reading | dict[str, Any] | None, "what is no Reading arrives as dict[str, Any], and is not rejected"),
        (
            dict | Reading,
            "what is no Reading arrives as dict, and is not rejected; as dict stands first, even a valid one does",
        ),
        (Reading | Anything, "what is no Reading arrives as Anything, and is not rejected"),
        (Anything | Reading, "what is no Reading arrives as Anything, and is not rejected"),
        (Command | dict, "what is no Command arrives as dict, and is not rejected"),
        (list[Reading] | list, "what is no list[Reading] arrives as list, and is not rejected"),
        (int | str, "what is no int arrives as str, and is not rejected"),
        (
            str | int,
            "what is no int arrives as str, and is not rejected; as str stands first, even a valid one does",
        ),
        (UUID | str, "what is no UUID arrives as str, and is not rejected"),
        (Reading | Any, "what is no Reading arrives as Any, and is not rejected"),
    ],
    ids=str,
)
def test_a_member_that_takes_everything_swallows_the_errors_of_another(hint: Any, said: str) -> None:
    (finding,) = found(taking(hint), "tolerant-union")
    assert finding.level == "warning"
    assert finding.what.startswith("ingest(): 'payload: ")
    assert finding.what.endswith(f"': {said}")


@pytest.mark.parametrize(
    ("hint", "valid", "invalid"),
    [
        (dict | Reading, b'{"temperature": 1}', b"{}"),
        (str | int, b"1", b"x"),
        (Any | Reading, b'{"temperature": 1}', b"1"),
    ],
    ids=str,
)
async def test_of_a_member_that_takes_everything_and_stands_first_that_is_true(
    hint: Any, valid: bytes, invalid: bytes
) -> None:
    app = App()
    received: list[Any] = []

    async def ingest(payload: Any) -> None:
        received.append(payload)

    ingest.__annotations__["payload"] = hint
    app.on("a", ingest)
    async with TestClient(app) as client:
        assert (await client.publish("a", valid)).outcome == (await client.publish("a", invalid)).outcome == "done"
    assert not any(isinstance(payload, Reading) or payload == 1 for payload in received[:1])


@pytest.mark.parametrize(
    "hint",
    [
        Reading,
        Reading | None,
        dict,
        Any,
        Reading | Command,
        Reading | list[Reading],
        dict | list,
        dict | list[Reading],
        int | float,
        dict[str, int] | Reading,
        Annotated[Cat | Dog, Field(discriminator="kind")],
        Reading | bytes,
    ],
    ids=str,
)
def test_members_that_refuse_what_they_are_not_swallow_nothing(hint: Any) -> None:
    assert not found(taking(hint), "tolerant-union")


def test_bytes_in_a_union_are_not_the_payload_as_it_came() -> None:
    assert levels(taking(Reading | bytes), "bytes-in-union") == ["warning"]
    assert levels(taking(bytes), "bytes-in-union") == []
    assert levels(taking(bytes | None), "bytes-in-union") == []


# --------------------------------------------------------------------------------------------------------------- rates


def limited(*limiters: RateLimit, **options: Any) -> App:
    return app_of("a/<id>", middleware=list(limiters), **options)


def test_a_turn_that_comes_later_than_anybody_waits() -> None:
    (finding,) = found(limited(RateLimit(5, excess="wait")), "rate-wait-too-short")
    assert finding.level == "warning"
    assert finding.what == (
        "RateLimit(5, seconds=60, excess='wait'): waiting rarely helps: one message may pass each 12 s, and none waits "
        "longer than 5 s"
    )
    assert not found(limited(RateLimit(12, excess="wait")), "rate-wait-too-short")
    assert not found(limited(RateLimit(5, excess="drop")), "rate-wait-too-short")


def test_a_wait_that_the_time_out_ends() -> None:
    rate = RateLimit(100, seconds=10, excess="wait")
    assert levels(limited(rate, timeout=5), "rate-wait-cut-off") == ["warning"]
    assert levels(limited(rate), "rate-wait-cut-off", max_hold=4) == ["warning"]
    assert levels(limited(rate, timeout=6), "rate-wait-cut-off") == []
    assert levels(limited(rate, timeout=None), "rate-wait-cut-off") == []


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (RateLimit(10), RateLimit(10)),
        (RateLimit(10, by=None), RateLimit(20, by="id")),
        (RateLimit(10, 1), RateLimit(50, 5)),
        (RateLimit(10, name="all"), RateLimit(10, name="all")),
        (RateLimit(10, strategy="token_bucket", burst=5), RateLimit(15)),
        (RateLimit(10), RateLimit(10, strategy="token_bucket")),
        (RateLimit(10, strategy="token_bucket", burst=2), RateLimit(10, strategy="token_bucket", burst=3)),
    ],
    ids=str,
)
def test_a_limiter_behind_a_stricter_one_stops_nothing(outer: RateLimit, inner: RateLimit) -> None:
    assert levels(limited(outer, inner), "rate-behind-stricter") == ["warning"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (RateLimit(20), RateLimit(10)),
        (RateLimit(10, 1), RateLimit(49, 5)),
        (RateLimit(10, by="id"), RateLimit(20, by=None)),
        (RateLimit(10, by="id"), RateLimit(20, by="topic")),
        (RateLimit(10), RateLimit(20, name="all")),
        (RateLimit(10, strategy="token_bucket", burst=5), RateLimit(14)),
        (RateLimit(10), RateLimit(20, strategy="token_bucket", burst=9)),
        (RateLimit(20), RateLimit(10, strategy="token_bucket", burst=30)),
    ],
    ids=str,
)
def test_a_limiter_that_counts_something_else_or_less_has_its_use(outer: RateLimit, inner: RateLimit) -> None:
    assert levels(limited(outer, inner), "rate-behind-stricter") == []


def test_the_limiters_of_app_and_route_are_looked_at_together() -> None:
    app = limited(RateLimit(20), app=App(middleware=[RateLimit(10)]))
    assert levels(app, "rate-behind-stricter") == ["warning"]


def test_a_limiter_in_memory_counts_in_each_worker() -> None:
    (finding,) = found(limited(RateLimit(10), shared=True, workers=3), "rate-per-process")
    assert "so up to 30 messages pass" in finding.what
    assert found(
        limited(RateLimit(10, store="memory"), shared=True, workers=3), "rate-per-process", redis_url="redis://x"
    )
    assert not found(limited(RateLimit(10), shared=True, workers=3), "rate-per-process", redis_url="redis://x")
    assert not found(limited(RateLimit(10)), "rate-per-process")


# ------------------------------------------------------------------------------------------------------------ sessions


def test_a_session_that_ends_before_the_app_is_back_is_a_warning_with_both_numbers() -> None:
    (finding,) = found(app_of("a"), "short-session", session_expiry=59)
    assert finding.level == "warning"
    assert finding.what == "the session expires after 59 s, and a restart may take 60 s"
    assert levels(app_of("a"), "short-session", session_expiry=60) == []
    assert levels(app_of("a"), "short-session") == []
    assert levels(app_of("a"), "short-session", session_expiry=59, protocol="3.1.1") == []
    assert levels(app_of("a", app=App(session=Session(expiry=10))), "short-session") == ["warning"]


def test_a_restart_takes_as_long_as_both_pauses() -> None:
    assert sessions.RESTART >= slot._MAX_PAUSE + dialer.MAX_DELAY


def test_a_clean_start_forgets_what_was_kept() -> None:
    assert levels(app_of("a", app=App(session=Session(clean_start=True))), "short-session") == ["warning"]
    assert levels(app_of("a", app=App(session=Session.transient())), "short-session") == []


def test_quality_of_service_without_a_session_is_a_note() -> None:
    assert levels(app_of("a", app=App(session=Session.transient())), "session-of-nothing") == ["note"]
    assert levels(app_of("a", qos=0), "session-of-nothing") == []
    assert levels(app_of("a"), "session-of-nothing") == []


def test_deduplicate_has_to_know_a_message_as_long_as_the_session_does() -> None:
    app = app_of("a", middleware=[Deduplicate("property.id", ttl=600)])
    assert levels(app, "deduplicate-forgets") == ["warning"]
    assert levels(app, "deduplicate-forgets", session_expiry=600) == []


# ------------------------------------------------------------------------------------------------------------ failures


def test_an_app_that_puts_nothing_aside_is_a_note() -> None:
    assert levels(app_of("a", "b"), "no-dead-letter") == ["note"]
    assert levels(app_of("b", app=app_of("a", dead_letter="dead/<topic>")), "no-dead-letter") == []
    assert levels(app_of("a", qos=0), "no-dead-letter") == []


def test_what_is_done_against_the_loss_of_qos_0_is_a_note() -> None:
    assert levels(app_of("a", qos=0, retry=3), "qos-0-kept") == ["note"]
    assert levels(app_of("a", qos=0, dead_letter="dead/a"), "qos-0-kept") == ["note"]
    assert levels(app_of("a", qos=0), "qos-0-kept") == []
    assert levels(app_of("a", retry=3, dead_letter="dead/a"), "qos-0-kept") == []


def test_a_time_out_above_what_a_message_is_held() -> None:
    (finding,) = found(app_of("a", timeout=120), "timeout-above-hold")
    assert finding.what == "timeout=120 is never reached: a message is held for 60 s at most"
    assert levels(app_of("a", timeout=120), "timeout-above-hold", max_hold=120) == []
    assert levels(app_of("a", timeout=None), "timeout-above-hold") == []
    assert levels(app_of("a"), "timeout-above-hold", max_hold=5) == []


def test_attempts_that_are_never_made() -> None:
    (finding,) = found(app_of("a", retry=Retry(10, delay=10, max_delay=100, jitter=False)), "retry-above-hold")
    assert finding.what == "of 10 attempts at most 3 are made: a message is held for 60 s"
    assert levels(app_of("a", retry=10), "retry-above-hold") == []
    assert levels(app_of("a", retry=3), "retry-above-hold", max_hold=0.5) == ["warning"]
    assert levels(app_of("a"), "retry-above-hold", max_hold=0.5) == []


# --------------------------------------------------------------------------------------------------------------- loops


def test_a_route_that_gets_its_own_dead_letters_is_a_warning() -> None:
    (finding,) = found(app_of("#", dead_letter="dead/<topic>"), "dead-letter-comes-back")
    assert finding.level == "warning"
    assert finding.what == "'#' gets dead letters: its own"


def test_a_route_that_gets_the_dead_letters_of_another_is_a_warning() -> None:
    app = app_of("<tenant>/<id>", app=app_of("a", dead_letter="dead/<topic>"))
    (finding,) = found(app, "dead-letter-comes-back")
    assert names(finding) == ["<tenant>/<id>", "a"]
    assert finding.what == "'<tenant>/<id>' gets dead letters: those of 'a'"


@pytest.mark.parametrize("template", ["dead/#", "dead/<topic:path>", "dead/a", "a/<id>"])
def test_a_route_for_dead_letters_and_one_that_gets_none_are_no_finding(template: str) -> None:
    assert levels(app_of(template, app=app_of("a", dead_letter="dead/<topic>")), "dead-letter-comes-back") == []


def test_a_route_that_gets_what_it_publishes_is_an_error() -> None:
    (finding,) = found(app_of("a/<id>", publish_to="a/out"), "publish-loop")
    assert (finding.level, names(finding)) == ("error", ["a/<id>"])
    assert finding.what == "what it publishes to 'a/out' comes back: 'a/<id>' → 'a/<id>'"


def test_a_circle_of_routes_is_told_once() -> None:
    app = app_of("b/<id>", app=app_of("a/<id>", publish_to="b/<id>"), publish_to="a/<id>")
    (finding,) = found(app, "publish-loop")
    assert (finding.level, names(finding)) == ("error", ["a/<id>", "b/<id>"])


def test_a_message_that_is_republished_to_where_it_came_from_is_an_error() -> None:
    app = App()
    app.republish("a/<id>", "a/<id>")
    assert levels(app, "publish-loop") == ["error"]


@pytest.mark.parametrize(
    ("template", "to"),
    [("a/<x>/c", "a/b/<x>"), ("a/<id:int>", "a/<id>"), ("a/<x:path>", "a/<x:path>")],
)
def test_what_may_come_back_is_a_warning_unless_it_always_does(template: str, to: str) -> None:
    expected = "error" if template == "a/<x:path>" else "warning"
    assert levels(app_of(template, publish_to=to), "publish-loop") == [expected]


def test_no_local_ends_a_loop() -> None:
    app = app_of("a/<id>", publish_to="a/out", options=RouteOptions(no_local=True))
    assert levels(app, "publish-loop") == []
    assert levels(app, "publish-loop", protocol="3.1.1") == ["error"]


def test_a_chain_that_ends_is_no_loop() -> None:
    app = app_of("b/<id>", app=app_of("a/<id>", publish_to="b/<id>"), publish_to="c/<id>")
    assert levels(app, "publish-loop") == []


def test_a_constraint_that_refuses_the_one_topic_ends_a_loop() -> None:
    assert levels(app_of("a/<id:int>", publish_to="a/out"), "publish-loop") == []


# ----------------------------------------------------------------------------------------------------------- together


def test_findings_come_with_the_worst_first_and_without_what_is_left_out() -> None:
    app = app_of("<x>", "a", app=App(dispatch="first", session=Session(expiry=5)))
    found = look_at(Subject(app, Settings()))
    assert [each.check for each in found] == ["shadowed-route", "short-session", "leading-wildcard", "no-dead-letter"]
    rest = look_at(Subject(app, Settings()), without=["short-session", "no-dead-letter"])
    assert [each.check for each in rest] == ["shadowed-route", "leading-wildcard"]


def test_every_finding_says_why_and_the_way_out() -> None:
    app = app_of("#", "a/<x>", app=App(session=Session(expiry=5)), dead_letter="a/x", qos=0, retry=3, publish_to="a/x")
    for _, finding in look_at(Subject(app, Settings())):
        assert all(text.endswith(".") for text in (finding.why, finding.way_out)), finding


def test_an_app_as_it_should_be_has_nothing_to_say() -> None:
    app = app_of("a/<id>", "b/<id:int>", app=App(dead_letter="dead/<topic>"), concurrency=10)
    assert look_at(Subject(app, Settings())) == []
