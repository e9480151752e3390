"""The journey of one message through one route: what middleware reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from mqttapi.app import App
    from mqttapi.message import Message
    from mqttapi.publisher import PublishOptions, PublishResult
    from mqttapi.routing import Route

__all__ = ["Context"]

_WELL_KNOWN = ("topic", "payload", "params", "client")


class Context(MutableMapping[str, Any]):
    """A mapping that middleware writes and handlers read, with the message, its route and its app.

    A key is looked up among what was written, then the path parameters, then `topic`, `payload`, `params` and
    `client`. `context["payload"]` is the payload decoded (JSON, else bytes) on first access; assigning to it replaces
    what the handler validates.
    """

    _params: dict[str, Any]
    _decoded: Any
    __slots__ = ("_data", "_decoded", "_params", "app", "attempt", "message", "route", "values_")

    app: App
    """The app that runs the route."""
    attempt: int
    """1 for the first run of the handler, 2 for the first retry, and so on."""
    message: Message
    """What the wire said."""
    route: Route
    """The route that matched."""

    def __init__(self, message: Message, route: Route, values: tuple[object, ...], app: App) -> None:
        self.message = message
        self.route = route
        self.values_ = values  # of the path parameters, in the order of `route.template.names`
        self.app = app
        self.attempt = 1
        self._data: dict[str, Any] | None = None

    @property
    def params(self) -> Mapping[str, Any]:
        """The path parameters by name; an optional one that is absent is None."""
        try:
            return self._params
        except AttributeError:
            self._params = dict(zip(self.route.template.names, self.values_, strict=True))
            return self._params

    @property
    def replaced_payload(self) -> tuple[Any, ...]:
        """`(value,)` when middleware assigned `context["payload"]`, else `()`."""
        data = self._data
        return (data["payload"],) if data and "payload" in data else ()

    async def publish(
        self, topic: str, payload: Any = None, *, timeout: float | None = None, **options: Unpack[PublishOptions]
    ) -> PublishResult:
        """Publish from within the journey; see `Publisher.publish`."""
        return await self.app.publisher.answer(topic, payload, timeout, options)

    async def reply(self, payload: Any = None) -> None:
        """Answer the message's Response Topic with its correlation data; nothing happens where it has none."""
        message = self.message
        if message.response_topic is not None:
            await self.app.publish(
                message.response_topic, payload, qos=message.qos, correlation_data=message.correlation_data
            )

    def __getitem__(self, key: str) -> Any:
        if self._data is not None and key in self._data:
            return self._data[key]
        if key in self.route.template.names:
            return self.params[key]
        match key:
            case "topic":
                return self.message.topic
            case "payload":
                return self._decoded_payload()
            case "params":
                return self.params
            case "client":
                return self.app.publisher
        raise KeyError(key)

    def _decoded_payload(self) -> Any:
        try:
            return self._decoded
        except AttributeError:
            payload = self.message.payload
            try:
                self._decoded = from_json(payload)
            except ValueError:
                self._decoded = payload
            return self._decoded

    def __setitem__(self, key: str, value: Any) -> None:
        if self._data is None:
            self._data = {}
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        if self._data is None or key not in self._data:
            raise KeyError(key)
        del self._data[key]

    def copy(self) -> dict[str, Any]:
        """All of it in a dict, for comparing or keeping. It is no context: `call_next` takes the context itself."""
        return dict(self)

    def _keys(self) -> dict[str, None]:
        return dict.fromkeys((*(self._data or ()), *self.route.template.names, *_WELL_KNOWN))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __contains__(self, key: object) -> bool:
        return key in self._keys()

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<Context {self.route.name!r} attempt={self.attempt} {self.message!r}>"
