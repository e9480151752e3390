"""`Authenticate`: nothing passes that does not prove who sent it.

Brokers authenticate connections, and tell nobody behind them. Where senders share a broker that is not trusted to keep
them apart, each message has to bring its own proof.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import SecretStr

from mqttapi.context import Context
from mqttapi.errors import ConfigurationError, Reject
from mqttapi.injection.functions import called
from mqttapi.middleware.builtin.find import Find, finder
from mqttapi.middleware.builtin.rules import is_number, require, require_clock, require_function

if TYPE_CHECKING:
    from mqttapi.injection import Endpoint

__all__ = ["JWT", "Authenticate", "Secret", "SharedSecret", "Signature", "sign"]

Secret: TypeAlias = str | bytes | SecretStr
Key: TypeAlias = Secret | Callable[[Context], Secret | Awaitable[Secret | None] | None]
"""A secret, or a function that gives that of the sender: None for one that is unknown."""

IDENTITY: Final = "identity"
"""What the identity is called in the context."""


class Authenticate:
    """Rejects what does not prove who sent it, and puts the identity into the context, as `context["identity"]`.

        app.add_middleware(Authenticate(JWT(public_key, algorithms=["ES256"], subject="device_id")))

    Args:
        check: A `SharedSecret`, a `Signature`, a `JWT`, or a function of the context, `async` or not, that gives the
            identity: None or False reject the message. It may raise `Reject` itself.

    Raises:
        ConfigurationError: When `check` is none of these.
    """

    def __init__(self, check: Callable[[Context], Any]) -> None:
        given: Any = check
        if not callable(given) or isinstance(given, type):
            raise ConfigurationError(
                f"Authenticate takes a SharedSecret(...), a Signature(...), a JWT(...) or a function of the context, "
                f"not {'the class ' + given.__name__ if isinstance(given, type) else f'a {type(given).__name__}'}"
            )
        require_function("Authenticate", check)
        self._check = check

    async def handle(self, context: Context, next_handler: Endpoint, /) -> Any:
        """Let the message through if it is what it says."""
        identity = self._check(context)
        if inspect.isawaitable(identity):
            identity = await identity
        if identity is None or identity is False:
            raise Reject("the sender is not authenticated")
        context[IDENTITY] = identity
        return await next_handler(context)

    def __repr__(self) -> str:
        check = self._check
        return f"Authenticate({check!r})" if isinstance(check, _CHECKS) else f"Authenticate({called(check)})"


@dataclass(frozen=True, kw_only=True)
class SharedSecret:
    """The message brings the secret itself: as good as the transport is, so use TLS.

    The identity is what `identity` finds, and True without it.
    """

    secret: Key = field(repr=False)
    """The secret, or a function of the context that gives that of the sender."""
    token: Find = "property.token"  # noqa: S105  it is where one is
    """Where the message has it."""
    identity: Find | None = None
    """Such as `device_id`: who it is, once the secret is the right one."""

    def __post_init__(self) -> None:
        _check_key(self.secret, "SharedSecret")
        for find in _finds(self.token, self.identity):
            finder(find, "SharedSecret")

    async def __call__(self, context: Context) -> Any:
        given = _text(finder(self.token, "SharedSecret")(context), self.token)
        secret = await _key(self.secret, context, "SharedSecret")
        if secret is None or not hmac.compare_digest(given.encode(errors="surrogatepass"), secret):
            raise Reject(f"the secret in {_name(self.token)} is wrong")
        return _identity(self.identity, context, "SharedSecret")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The message is signed with HMAC-SHA256: topic, time and payload, as `sign` does. MQTT 5: in user properties.

    The identity is what `identity` finds, and True without it.
    """

    secret: Key = field(repr=False)
    """The secret, or a function of the context that gives that of the sender."""
    signature: Find = "property.signature"
    """Where the message has its signature, in hexadecimal."""
    timestamp: Find = "property.timestamp"
    """Where it has the seconds since 1970 that were signed with it."""
    window: float | None = 300.0
    """Seconds by which its time may differ from ours. So long it can be sent once more by whoever has seen it (but
    `Deduplicate("property.signature")` notices), and so long may it wait while the app is away. None: there is no time,
    and it can be sent again for ever."""
    identity: Find | None = None
    """Such as `device_id`: who it is, once the signature is the right one."""
    clock: Callable[[], float] = field(default=time.time, repr=False)
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        _check_key(self.secret, "Signature")
        for find in _finds(self.signature, self.timestamp, self.identity):
            finder(find, "Signature")
        require_clock("Signature", self.clock)
        if self.window is not None:
            require("Signature", "window", self.window, lambda seconds: is_number(seconds, 1), "at least 1 s, or None")

    async def __call__(self, context: Context) -> Any:
        given = _text(finder(self.signature, "Signature")(context), self.signature)
        timestamp = None
        if self.window is not None:
            timestamp = _text(finder(self.timestamp, "Signature")(context), self.timestamp)
        secret = await _key(self.secret, context, "Signature")
        message = context.message
        expected = "" if secret is None else _signature(secret, message.topic, message.payload, timestamp or "")
        if not hmac.compare_digest(given.lower().encode(errors="surrogatepass"), expected.encode()):
            raise Reject(f"the signature in {_name(self.signature)} is wrong")
        if timestamp is not None:
            self._check_time(timestamp)
        return _identity(self.identity, context, "Signature")

    def _check_time(self, timestamp: str) -> None:
        try:
            seconds = float(timestamp)
        except ValueError:
            raise Reject(f"the time in {_name(self.timestamp)} is no number of seconds") from None
        if not abs(self.clock() - seconds) <= (self.window or 0):
            raise Reject(f"the time in {_name(self.timestamp)} is not within {self.window:g} s of now")


def sign(secret: Secret, topic: str, payload: bytes, timestamp: float | str | None = None) -> str:
    """The signature that `Signature` expects: HMAC-SHA256 in hexadecimal of topic, NUL, timestamp, NUL, payload.

        now = str(int(time.time()))
        properties = {"timestamp": now, "signature": sign(secret, topic, payload, now)}

    Args:
        secret: As the app has it.
        topic: As it is published to.
        payload: As it is published.
        timestamp: Seconds since 1970, as the message has them; None with `Signature(window=None)`.
    """
    return _signature(_bytes(secret), topic, payload, "" if timestamp is None else str(timestamp))


def _signature(secret: bytes, topic: str, payload: bytes, timestamp: str) -> str:
    signed = b"\0".join((topic.encode(), timestamp.encode(errors="surrogatepass"), payload))  # no topic has a NUL
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True)
class JWT:
    """The message brings a JSON Web Token [RFC 7519]. The identity is a dict: its claims.

    Needs PyJWT, the extra `jwt`.
    """

    key: Key = field(repr=False)
    """The secret, or the public key in PEM; or a function of the context that gives that of the sender."""
    algorithms: Sequence[str]
    """The algorithms that are accepted, such as `["HS256"]` or `["ES256"]`: nothing that the token says."""
    token: Find = "property.authorization"  # noqa: S105  it is where one is
    """Where the message has it; `Bearer ` may stand before it."""
    subject: Find | None = None
    """What the claim `sub` has to be, such as `device_id`: else a sender could speak for another one."""
    audience: str | None = None
    """What the claim `aud` has to hold."""
    issuer: str | None = None
    """What the claim `iss` has to be."""
    leeway: float = 0.0
    """Seconds by which clocks may differ."""

    def __post_init__(self) -> None:
        try:
            import jwt  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "JWT needs PyJWT, which is not installed: pip install 'mqttapi-framework[jwt]'"
            ) from None
        _check_key(self.key, "JWT")
        for find in _finds(self.token, self.subject):
            finder(find, "JWT")
        require("JWT", "leeway", self.leeway, lambda seconds: is_number(seconds, 0), "0 s or more")
        require(
            "JWT",
            "algorithms",
            self.algorithms,
            _are_algorithms,
            "a list of algorithms, such as ['ES256'], without 'none'",
        )
        for claim in ("audience", "issuer"):
            require(
                "JWT",
                claim,
                getattr(self, claim),
                lambda text: text is None or isinstance(text, str),
                "a text, or None",
            )
        problem = next(filter(None, (_key_problem(name, self.key) for name in self.algorithms)), None)
        if problem is not None:
            raise ConfigurationError(f"JWT: {problem}")

    async def __call__(self, context: Context) -> Mapping[str, Any]:
        import jwt

        token = _text(finder(self.token, "JWT")(context), self.token)
        key = await _key(self.key, context, "JWT")
        required = ["exp", *(["sub"] if self.subject is not None else ())]
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token[7:] if token[:7].lower() == "bearer " else token,
                key or b"",
                algorithms=list(self.algorithms),
                audience=self.audience,
                issuer=self.issuer,
                leeway=self.leeway,
                options={"require": required, "verify_aud": self.audience is not None},
            )
        except jwt.PyJWTError as error:
            reason = next((text for kind, text in _jwt_reasons() if isinstance(error, kind)), "is not valid")
        else:
            if self.subject is None or claims["sub"] == str(finder(self.subject, "JWT")(context)):
                return claims
            reason = f"is that of another one than {_name(self.subject)} says"
        raise Reject(f"the token in {_name(self.token)} {reason}")  # outside of `except`: the cause may hold the token


_CHECKS: Final = (SharedSecret, Signature, JWT)


def _are_algorithms(names: object) -> bool:
    if not isinstance(names, Collection) or isinstance(names, str | bytes):
        return False
    return bool(names) and all(isinstance(name, str) and name.lower() != "none" for name in names)


def _key_problem(name: str, key: Key) -> str | None:
    """Why no token could ever be right: found here, since it would look as if all of them were wrong."""
    import jwt

    try:
        algorithm = jwt.get_algorithm_by_name(name)
    except NotImplementedError:
        return f"there is no algorithm {name!r}, or it needs the package cryptography, which is not installed"
    try:
        if not callable(key):
            algorithm.prepare_key(_bytes(key))
    except (jwt.PyJWTError, ValueError, TypeError):  # what it says may hold the key
        needed = "a secret, and no key in PEM" if name.startswith("HS") else "a public key in PEM"
        return f"the key is none for {name}, which takes {needed}"
    return None


def _jwt_reasons() -> list[tuple[type[Exception], str]]:
    import jwt

    return [
        (jwt.ExpiredSignatureError, "has expired"),
        (jwt.ImmatureSignatureError, "is not valid yet"),
        (jwt.InvalidAudienceError, "is for another audience"),
        (jwt.InvalidIssuerError, "comes from another issuer"),
        (jwt.MissingRequiredClaimError, "lacks a claim: it needs an expiry, and all that is checked"),
    ]


def _finds(*finds: Find | None) -> list[Find]:
    return [find for find in finds if find is not None]


def _check_key(key: object, owner: str) -> None:
    if isinstance(key, str | bytes | SecretStr):
        if not _bytes(key):
            raise ConfigurationError(f"{owner}: the secret is empty")
    elif callable(key):
        require_function(owner, key)
    else:
        raise ConfigurationError(f"{owner}: the secret must be a text, bytes, a SecretStr or a function of the context")


async def _key(key: Key, context: Context, owner: str) -> bytes | None:
    if not callable(key):
        return _bytes(key)
    found: Any = key(context)
    if inspect.isawaitable(found):
        found = await found
    if found is None:
        return None
    if not isinstance(found, str | bytes | SecretStr):
        raise ConfigurationError(
            f"{owner}: {called(key)}, which gives the secret of the sender, must return a text, bytes, a SecretStr or "
            f"None (an unknown sender), but has returned a {type(found).__name__}"  # not what it is: it may be secret
        )
    return _bytes(found) or None


def _bytes(secret: Secret) -> bytes:
    if isinstance(secret, SecretStr):
        secret = secret.get_secret_value()
    return secret.encode() if isinstance(secret, str) else secret


def _text(value: object, where: Find) -> str:
    if not isinstance(value, str | int | float) or not value:
        raise Reject(f"there is nothing in {_name(where)}")
    return str(value)


def _identity(find: Find | None, context: Context, owner: str) -> Any:
    return True if find is None else finder(find, owner)(context)


def _name(where: Find) -> str:
    return where if isinstance(where, str) else called(where)
