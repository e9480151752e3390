from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from mqttapi import App, Context, Reject
from mqttapi.errors import ConfigurationError
from mqttapi.middleware import JWT, Authenticate, SharedSecret, Signature, sign
from mqttapi.testing import TestClient
from tests.middleware.builtin.support import Clock, fate, message

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "a secret of the plant that is long enough"
NOW = 1_700_000_000


def found(context: Context) -> Any:
    return context.get("identity")


async def identity(check: Callable[[Context], Any], context: Context) -> Any:
    """Who the message is from; else why it was rejected."""
    outcome = await fate(Authenticate(check), context)
    return context["identity"] if outcome == "passed" else outcome


# ------------------------------------------------------------------------------------------------------- shared secret


@pytest.mark.parametrize("secret", [SECRET, SECRET.encode(), SecretStr(SECRET), lambda context: SECRET])
async def test_the_secret_lets_a_message_pass(secret: Any) -> None:
    check = SharedSecret(secret=secret, identity="device_id")
    assert await identity(check, message(properties={"token": SECRET})) == "7"
    assert (
        await identity(check, message(properties={"token": "no"})) == "rejected: the secret in property.token is wrong"
    )
    assert await identity(check, message()) == "rejected: there is nothing in property.token"


async def test_the_secret_may_be_in_the_payload_or_wherever_a_function_finds_it() -> None:
    context = message(payload=b'{"auth": {"token": "' + SECRET.encode() + b'"}}')
    assert await identity(SharedSecret(secret=SECRET, token="payload.auth.token"), context) is True
    last = SharedSecret(secret=SECRET, token=lambda context: context.message.payload.decode().split('"')[-2])
    assert await identity(last, context) is True


async def test_each_sender_may_have_a_secret_of_its_own() -> None:
    async def secret_of(context: Context) -> str | None:
        return {"7": "seven", "8": "eight"}.get(context["device_id"])

    check = SharedSecret(secret=secret_of, identity="device_id")
    wrong = "rejected: the secret in property.token is wrong"
    for device, token, expected in [
        ("7", "seven", "7"), ("7", "eight", wrong), ("9", "nine", wrong), ("9", "None", wrong),
    ]:  # fmt: skip
        assert await identity(check, message(f"sensors/{device}/data", properties={"token": token})) == expected


def no_secret(context: Context) -> Any:
    return 5


@pytest.mark.parametrize(
    ("check", "owner"),
    [
        (SharedSecret(secret=no_secret), "SharedSecret"),
        (Signature(secret=no_secret, window=None, signature="property.token"), "Signature"),
        (JWT(key=no_secret, algorithms=["HS256"], token="property.token"), "JWT"),
    ],
)
async def test_a_function_that_gives_no_secret_is_the_programs_error(check: Any, owner: str) -> None:
    """The value is not in the text: it may be the secret, but for its type."""
    with pytest.raises(ConfigurationError) as caught:
        await identity(check, message(properties={"token": SECRET}))
    assert str(caught.value) == (
        f"{owner}: no_secret(), which gives the secret of the sender, must return a text, bytes, a SecretStr or None (an "
        "unknown sender), but has returned a int"
    )


@pytest.mark.parametrize("token", ["\\u00e9", "1", "{}", "[]", "null", "1e400"])
async def test_whatever_is_sent_in_place_of_the_secret_is_rejected(token: str) -> None:
    payload = b'{"token": "' + token.encode() + b'"}' if "u" in token else b'{"token": ' + token.encode() + b"}"
    outcome = await fate(Authenticate(SharedSecret(secret=SECRET, token="payload.token")), message(payload=payload))
    assert outcome.startswith("rejected: ")


# ------------------------------------------------------------------------------------------------------------ signature


def signed(payload: bytes = b"21", *, at: object = NOW, topic: str = "sensors/7/data", secret: Any = SECRET) -> Context:
    properties = {"timestamp": str(at), "signature": sign(secret, "sensors/7/data", b"21", str(at))}
    return message(topic, payload, properties=properties)


def signature(**given: Any) -> Signature:
    return Signature(secret=SECRET, identity="device_id", clock=Clock(NOW), **given)


def test_the_signature_is_what_other_programs_compute() -> None:
    """printf 'sensors/7/data\\0001700000000\\00021' | openssl dgst -sha256 -hmac key"""
    assert (
        sign("key", "sensors/7/data", b"21", NOW) == "0d5aadb516866eee2c9957502281fa76301c774b1032ac468d497f5bc5a6a328"
    )


async def test_a_signature_lets_a_message_pass() -> None:
    assert await identity(signature(), signed()) == "7"


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (signed(b"22"), "the signature in property.signature is wrong"),
        (signed(topic="sensors/8/data"), "the signature in property.signature is wrong"),
        (signed(secret="another"), "the signature in property.signature is wrong"),
        (signed(at=NOW - 301), "the time in property.timestamp is not within 300 s of now"),
        (signed(at=NOW + 301), "the time in property.timestamp is not within 300 s of now"),
        (signed(at="nan"), "the time in property.timestamp is not within 300 s of now"),
        (signed(at="soon"), "the time in property.timestamp is no number of seconds"),
        (message(properties={"timestamp": str(NOW)}), "there is nothing in property.signature"),
        (message(properties={"signature": "0"}), "there is nothing in property.timestamp"),
    ],
)
async def test_what_was_changed_or_is_old_is_rejected(context: Context, reason: str) -> None:
    assert await identity(signature(), context) == f"rejected: {reason}"


async def test_another_time_than_the_signed_one_is_rejected() -> None:
    properties = {"timestamp": str(NOW), "signature": sign(SECRET, "sensors/7/data", b"21", NOW - 1000)}
    outcome = await identity(signature(), message(payload=b"21", properties=properties))
    assert outcome == "rejected: the signature in property.signature is wrong"


async def test_without_a_window_there_is_no_time() -> None:
    properties = {"signature": sign(SECRET, "sensors/7/data", b"21").upper()}
    assert await identity(signature(window=None), message(payload=b"21", properties=properties)) == "7"


@given(st.tuples(st.text("ab1", min_size=1), st.binary(), st.text("ab1")), st.tuples(st.text("ab1", min_size=1), st.binary(), st.text("ab1")))  # fmt: skip
def test_no_two_messages_have_one_signature(first: tuple[str, bytes, str], second: tuple[str, bytes, str]) -> None:
    assert (sign(SECRET, *first) == sign(SECRET, *second)) == (first == second)


# ------------------------------------------------------------------------------------------------------------------ JWT


def token(key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    given_ = {"sub": "7", "exp": time.time() + 86_400, **claims}
    return jwt.encode({name: claim for name, claim in given_.items() if claim is not None}, key, algorithm)


def bearing(text: str, topic: str = "sensors/7/data") -> Context:
    return message(topic, properties={"authorization": text})


async def test_a_token_lets_a_message_pass_and_its_claims_are_the_identity() -> None:
    check = JWT(key=SECRET, algorithms=["HS256"], subject="device_id")
    assert (await identity(check, bearing(token(role="sensor"))))["role"] == "sensor"
    assert (await identity(check, bearing(f"Bearer {token()}")))["sub"] == "7"


async def test_a_public_key_is_enough() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    check = JWT(key=lambda context: _pem(private), algorithms=["ES256"])
    assert (await identity(check, bearing(token(private, "ES256"))))["sub"] == "7"
    assert await identity(check, bearing(token())) == "rejected: the token in property.authorization is not valid"


def _pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (token(exp=time.time() - 60), "has expired"),
        (token(nbf=time.time() + 86_400), "is not valid yet"),
        (token(exp=None), "lacks a claim: it needs an expiry, and all that is checked"),
        (token(sub=None), "lacks a claim: it needs an expiry, and all that is checked"),
        (token(sub="8"), "is that of another one than device_id says"),
        (token("another key, and that is long enough, too"), "is not valid"),
        pytest.param(token(None, "none"), "is not valid", id="no algorithm"),
        (token(aud="other", iss="us"), "is for another audience"),
        (token(aud="plant", iss="other"), "comes from another issuer"),
        ("no token", "is not valid"),
        ("é", "is not valid"),
    ],
)
async def test_a_token_that_is_not_right_is_rejected(text: str, reason: str) -> None:
    options: dict[str, Any] = (
        {"audience": "plant", "issuer": "us"} if "audience" in reason or "issuer" in reason else {}
    )
    check = JWT(key=SECRET, algorithms=["HS256"], subject="device_id", **options)
    assert await identity(check, bearing(text)) == f"rejected: the token in property.authorization {reason}"


async def test_an_unknown_sender_has_no_key() -> None:
    check = JWT(key=lambda context: None, algorithms=["HS256"])
    assert await identity(check, bearing(token())) == "rejected: the token in property.authorization is not valid"


def test_without_pyjwt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigurationError) as caught:
        JWT(key=SECRET, algorithms=["HS256"])
    assert str(caught.value) == "JWT needs PyJWT, which is not installed: pip install 'mqttapi-framework[jwt]'"


# ------------------------------------------------------------------------------------------------------------- function


async def test_a_function_gives_the_identity_or_nothing() -> None:
    async def later(context: Context) -> str | None:
        return "seven" if context["device_id"] == "7" else None

    def rejecting(context: Context) -> bool:
        raise Reject("not you")

    assert await identity(later, message()) == "seven"
    assert await identity(lambda context: "seven", message()) == "seven"
    assert await identity(later, message("sensors/8/data")) == "rejected: the sender is not authenticated"
    assert await identity(lambda context: False, message()) == "rejected: the sender is not authenticated"
    assert await identity(rejecting, message()) == "rejected: not you"


# --------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "check",
    [
        SharedSecret(secret=SECRET, token="property.authorization"),
        Signature(secret=SECRET, signature="property.authorization", window=None),
        JWT(key=SECRET, algorithms=["HS256"]),
    ],
)
async def test_no_text_that_is_shown_or_logged_holds_a_secret(check: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither ours, nor what the sender took for one."""
    caplog.set_level(logging.DEBUG)
    app = App("plant")
    app.add_middleware(Authenticate(check))
    wrong = token("another key, and that is long enough, too")
    shown = repr(check) + repr(Authenticate(check))

    @app.topic("t")
    async def handler() -> None: ...

    async with TestClient(app) as tester:
        delivery = await tester.publish("t", user_properties=[("authorization", wrong)])
    error = delivery.outcomes[handler.__module__ + "." + handler.__qualname__].error
    shown += caplog.text + delivery.reason + "".join(traceback.format_exception(error))
    assert delivery.outcome == "rejected"
    assert SECRET not in shown
    assert not [part for part in wrong.split(".") if part in shown]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SharedSecret(secret=""), "SharedSecret: the secret is empty"),
        (
            lambda: SharedSecret(secret=7),  # type: ignore[arg-type]
            "SharedSecret: the secret must be a text, bytes, a SecretStr or a function of the context",
        ),
        (
            lambda: SharedSecret(secret=SECRET, token=""),
            (
                "SharedSecret: where to look must be a name such as 'device_id', 'payload.id' or 'property.id', or a "
                "function of the context, got ''"
            ),
        ),
        (lambda: Signature(secret=SECRET, window=0), "Signature: window must be at least 1 s, or None, got 0"),
        (
            lambda: SharedSecret(secret=lambda: SECRET),  # type: ignore[arg-type, misc]
            "SharedSecret: <lambda>() must take one argument, the context",
        ),
        (
            lambda: Authenticate(lambda: True),  # type: ignore[arg-type, misc]
            "Authenticate: <lambda>() must take one argument, the context",
        ),
        (
            lambda: JWT(key=SECRET, algorithms=["ES265"]),
            "JWT: there is no algorithm 'ES265', or it needs the package cryptography, which is not installed",
        ),
        (
            lambda: JWT(key=SECRET, algorithms=["ES256"]),
            "JWT: the key is none for ES256, which takes a public key in PEM",
        ),
        (
            lambda: JWT(key=_pem(ec.generate_private_key(ec.SECP256R1())), algorithms=["ES256", "HS256"]),
            "JWT: the key is none for HS256, which takes a secret, and no key in PEM",
        ),
        (lambda: JWT(key=SECRET, algorithms=["HS256"], audience=7), "JWT: audience must be a text, or None, got 7"),  # type: ignore[arg-type]
        (
            lambda: JWT(key=SECRET, algorithms="HS256"),
            "JWT: algorithms must be a list of algorithms, such as ['ES256'], without 'none', got 'HS256'",
        ),
        (
            lambda: JWT(key=SECRET, algorithms=5),  # type: ignore[arg-type]
            "JWT: algorithms must be a list of algorithms, such as ['ES256'], without 'none', got 5",
        ),
        (
            lambda: JWT(key=SECRET, algorithms=[["HS256"]]),  # type: ignore[list-item]
            "JWT: algorithms must be a list of algorithms, such as ['ES256'], without 'none', got [['HS256']]",
        ),
        (
            lambda: Signature(secret=SECRET, clock=5),  # type: ignore[arg-type]
            "Signature: clock must be a function that gives seconds, got 5",
        ),
        (
            lambda: JWT(key=SECRET, algorithms=["none"]),
            "JWT: algorithms must be a list of algorithms, such as ['ES256'], without 'none', got ['none']",
        ),
        (
            lambda: Authenticate(SECRET),  # type: ignore[arg-type]
            "Authenticate takes a SharedSecret(...), a Signature(...), a JWT(...) or a function of the context, not a str",
        ),
        (
            lambda: Authenticate(JWT),  # type: ignore[arg-type]
            (
                "Authenticate takes a SharedSecret(...), a Signature(...), a JWT(...) or a function of the context, not the "
                "class JWT"
            ),
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == text
