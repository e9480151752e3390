"""From a message to the routes it is for: each of them once, whatever the broker does with overlapping filters.

With MQTT 5 a broker says for which subscription a copy was sent [MQTT5 §3.3.2.3.8], so that two routes whose filters
overlap get one copy each. The identifier of a subscription is computed from its filter: it stays the same over
versions of the app, because messages that wait in a session carry the identifiers of the version that subscribed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mqttapi.errors import ConfigurationError
from mqttapi.topics import TopicCache, TopicTree, split_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mqttapi.runtime.lanes import Runner, Target

__all__ = ["ANY", "Dispatcher", "subscription_id"]

ANY: Final[tuple[int, ...]] = ()
"""In place of subscription identifiers: the message came without one."""

CACHED_TOPICS = 65_536
"""Topics whose targets are remembered, per generation."""


class _Match(NamedTuple):
    number: int
    runner: Runner
    values: tuple[object, ...]


def subscription_id(filter: str) -> int:
    """The identifier of a subscription: 1 to 2^28, from the full filter, `$share/<group>/` included."""
    digest = hashlib.blake2b(filter.encode(), digest_size=4).digest()
    return 1 + int.from_bytes(digest, "big") % 0x0FFF_FFFF


class Dispatcher:
    """Finds the targets of a message.

    Args:
        subscriptions: Per full filter (`$share/<group>/` included) the runners that it serves.
        mode: `all`: every route that matches. `first`: of those, the one that was registered first.

    Raises:
        ConfigurationError: When two filters have the same identifier.
    """

    def __init__(self, subscriptions: Mapping[str, Iterable[Runner]], *, mode: Literal["all", "first"] = "all") -> None:
        self._mode = mode
        self._tree: TopicTree[tuple[int, Runner]] = TopicTree()
        self._ids: dict[int, str] = {}
        self._cache: TopicCache[dict[tuple[int, ...], tuple[Target, ...]]] = TopicCache(CACHED_TOPICS)
        for full, runners in subscriptions.items():
            number = subscription_id(full)
            if self._ids.setdefault(number, full) != full:
                raise ConfigurationError(
                    f"the filters {full!r} and {self._ids[number]!r} have the same subscription identifier "
                    f"({number}): rename the group of one of them"
                )
            for runner in runners:
                self._tree.add(split_share(full)[1], (number, runner))

    def targets(self, topic: str, ids: tuple[int, ...] = ANY) -> tuple[Target, ...]:
        """What a message is for: the targets of its subscriptions, or with `ANY` of every route that matches.

        Identifiers none of which is ours, or whose filters do not match the topic, count as `ANY`: a message twice is
        allowed there, a message lost is not.
        """
        known = self._cache.hot.get(topic)
        if known is None:
            known = self._cache.get(topic)
            if known is None:
                known = {}
                self._cache.put(topic, known)
        found = known.get(ids)
        if found is None:
            found = known[ids] = self._find(topic, ids)
        return found

    def knows(self, number: int) -> bool:
        """Whether the identifier is one of ours."""
        return number in self._ids

    def _find(self, topic: str, ids: tuple[int, ...]) -> tuple[Target, ...]:
        matches = self._matches(topic)
        wanted = [match for match in matches if match.number in ids] or matches
        if self._mode == "first" and matches:
            winner = matches[0].runner
            wanted = [match for match in wanted if match.runner is winner]
        values = {match.runner: match.values for match in wanted}
        chosen = sorted(values, key=lambda runner: runner.route.template.specificity)
        return tuple(runner.target(topic, values[runner]) for runner in chosen)

    def _matches(self, topic: str) -> list[_Match]:
        """Every runner that the topic is for, in order of registration, once for each of its subscriptions."""
        levels = topic.split("/")
        found = []
        for number, runner in self._tree.match(topic):
            values = runner.route.template.values(levels, topic)
            if values is not None:
                found.append(_Match(number, runner, values))
        return sorted(found, key=lambda match: match.runner.index)
