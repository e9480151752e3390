"""`mqttapi pub` and `mqttapi sub`: a publisher and a subscriber for the terminal."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mqttapi.cli.options import BrokerUrl, Debug, Qos
from mqttapi.errors import BrokerError, ConfigurationError
from mqttapi.message import Message, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqttapi.config import Broker, Settings

__all__ = ["pub", "sub"]


def pub(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Such as sensors/7/data.")],
    payload: Annotated[
        str | None, typer.Argument(metavar="[PAYLOAD]", help="Text; empty when not given.", show_default=False)
    ] = None,
    broker: BrokerUrl = None,
    qos: Qos = 1,
    retain: Annotated[bool, typer.Option("--retain", help="The broker keeps it for later subscribers.")] = False,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read the payload from a file; - is standard input.")
    ] = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="A user property; may be repeated.")
    ] = None,
    content_type: Annotated[str | None, typer.Option(help="Such as application/json.")] = None,
    expiry: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="How long the broker may keep it, 0 to 4,294,967,295.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Publish one message and wait until the broker has it."""
    import asyncio

    from mqttapi.publisher import Publish
    from mqttapi.transport import console

    message = Publish(
        topic,
        _payload(payload, file),
        qos,
        retain,
        expiry,
        content_type,
        [_pair(text) for text in properties or ()],
    )
    asyncio.run(console.publish(*_broker(broker), message))


def sub(
    filters: Annotated[list[str], typer.Argument(metavar="FILTER...", help="Such as 'sensors/+/data' or '#'.")],
    broker: BrokerUrl = None,
    qos: Qos = 1,
    count: Annotated[int | None, typer.Option(min=1, help="Leave after so many messages.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Leave after so long; with 1 if --count is not reached by then."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    debug: Debug = False,
) -> None:
    """Show messages, one per line, until Ctrl-C."""
    import asyncio

    from mqttapi.topics import validate_filter

    for filter in filters:
        validate_filter(filter)
    described = _as_json if as_json else _as_text
    received = 0

    def show(message: Message) -> bool:
        nonlocal received
        received += 1
        print(described(message), flush=True)
        return received != count

    try:
        asyncio.run(_subscribe(*_broker(broker), filters, qos, timeout, show))
    except KeyboardInterrupt:  # the usual way out
        pass
    except TimeoutError:
        if count is not None:
            raise BrokerError(f"received {received} of {count} messages in {timeout:g} s") from None


async def _subscribe(
    broker: Broker,
    settings: Settings,
    filters: Sequence[str],
    qos: Literal[0, 1, 2],
    timeout: float | None,
    show: Callable[[Message], bool],
) -> None:
    import asyncio

    from mqttapi.cli.problems import tell
    from mqttapi.transport import console

    def ready() -> None:
        tell(f"subscribed to {' '.join(filters)} on {broker}")

    async with asyncio.timeout(timeout):
        await console.subscribe(broker, settings, filters, qos=qos, ready=ready, show=show)


def _as_text(message: Message) -> str:
    """One line: the topic, a space, the payload; what a terminal could take for a command is escaped."""
    return f"{printable(message.topic)} {printable(message.payload.decode(errors='backslashreplace'))}".rstrip()


def _as_json(message: Message) -> str:
    """One line of ASCII; `payload` is text, or else `payload_base64` is there instead."""
    properties = message.properties
    described: dict[str, Any] = {"topic": message.topic, "qos": message.qos, "retain": message.retain}
    try:
        described["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        described["payload_base64"] = b64encode(message.payload).decode()
    if properties.content_type is not None:
        described["content_type"] = properties.content_type
    if properties.response_topic is not None:
        described["response_topic"] = properties.response_topic
    if properties.user_properties:
        described["user_properties"] = properties.user_properties
    return json.dumps(described)


def _broker(url: str | None) -> tuple[Broker, Settings]:
    from mqttapi.config import Settings, resolve_broker

    settings = Settings()
    return resolve_broker(url, None, settings, None), settings


def _payload(text: str | None, file: Path | None) -> bytes:
    if file is None:
        return (text or "").encode()
    if text is not None:
        raise ConfigurationError("give the payload as an argument or with --file, not both")
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--file: cannot read {str(file)!r}: {error.strerror}") from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--property must be KEY=VALUE, got {text!r}")
    return key, value
