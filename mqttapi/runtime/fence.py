"""The fence: a message of a session to itself, which tells that everything before it has come.

What a broker keeps for a session is a queue. So once nothing is subscribed any more but a topic of the session's own, a
message to that topic comes last. (The specification promises an order only within a topic [MQTT-4.6.0-5], but brokers
have one queue per session. A cluster may still be passing on what another of its nodes took a moment before.)
"""

from __future__ import annotations

from typing import Final

__all__ = ["FENCE_PREFIX", "fence_topic"]

FENCE_PREFIX: Final = "mqttapi/fence/"
"""What such topics begin with. Messages to them are for no route, whoever sent them."""


def fence_topic(client_id: str) -> str:
    """The topic that only this client subscribes to."""
    return FENCE_PREFIX + client_id
