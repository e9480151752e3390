"""From a message to the routes it is for: each of them once, whatever the broker does with overlapping filters.

With MQTT 5 a broker says for which subscription a copy was sent [MQTT5 §3.3.2.3.8], so that two routes whose filters
overlap get one copy each. Where it does not say so, no two filters on one link overlap (see `runtime.links`), and a
link's copy is for all routes of the link that match.

A copy that no subscription of this version explains was asked for by a former one, whose messages waited in the
session. It goes to every route that matches: twice is allowed there, lost is not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mqttapi.errors import ConfigurationError
from mqttapi.message import printable
from mqttapi.runtime.fence import FENCE_PREFIX
from mqttapi.runtime.links import subscription_id
from mqttapi.topics import TopicCache, TopicTree, split_share

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from mqttapi.routing import Route
    from mqttapi.runtime.links import Subscribed
    from mqttapi.runtime.runs import Runner, Target

__all__ = ["ANY", "IGNORED", "Dispatcher"]

log = logging.getLogger("mqttapi.handlers")

ANY: Final[tuple[int, ...]] = ()
"""In place of subscription identifiers: the message came without one."""

CACHED_TOPICS = 131_072
"""Topics whose targets are remembered, some 400 bytes each: half as many that come in turn are always known."""

CACHED_LENGTH = 128
"""Characters of the longest topic that is remembered: what strangers can fill is some 100 MB at the most."""


class _Ignored(tuple["Target", ...]):
    __slots__ = ()


IGNORED: Final[tuple[Target, ...]] = _Ignored()
"""No targets, and that is right: the routes that match get copies of their own, or do not want this one; or it is a
fence."""


class _Hit(NamedTuple):
    """A subscription whose filter matches, and one of its routes."""

    number: int
    runner: Runner
    own: bool
    """Whether it is subscribed to on this link."""


class _Known:
    """What the messages of a topic are for that came for some subscriptions, and after it those that came for others.

    One object for most topics: what is remembered of a hundred thousand is work for the garbage collector.
    """

    __slots__ = ("key", "next", "targets")

    def __init__(self, key: Hashable, targets: tuple[Target, ...], next: _Known | None) -> None:
        self.key = key
        self.targets = targets
        self.next = next


class Dispatcher:
    """Finds the targets of the messages of one link.

    Args:
        subscribed: All subscriptions of the app.
        own: Those that this link serves; None: all.
        by_id: Whether the broker was asked to say for which subscription a copy is sent.
        mode: `all`: every route that matches. `first`: of those, the one that was registered first.
        fallbacks: Routes for what matches no other.

    Raises:
        ConfigurationError: Two filters have the same identifier.
    """

    def __init__(
        self,
        subscribed: Sequence[Subscribed],
        own: Sequence[Subscribed] | None = None,
        *,
        by_id: bool = True,
        mode: Literal["all", "first"] = "all",
        fallbacks: Sequence[Runner] = (),
    ) -> None:
        self.strays = 0
        """Messages that no subscription of this version explains."""
        self.on_left_behind: Callable[[str, int, str | None], None] | None = None
        """Called with a topic and a subscription that this link does not have: its identifier, and its filter where
        another link has it."""
        self.runners = {runner for each in subscribed for runner in each.runners} | {*fallbacks}
        """Every route that a message may be for."""
        self._filters: dict[int, str] = {}
        self._by_id = by_id
        self._mode = mode
        self._fallbacks = sorted(fallbacks, key=lambda runner: runner.route.template.specificity)
        self._tree: TopicTree[_Hit] = TopicTree()
        self._cache: TopicCache[_Known] = TopicCache(CACHED_TOPICS)
        self._told: set[Route] = set()  # whose converters have failed
        served = {each.key for each in (subscribed if own is None else own)}
        self.own = [each for each in subscribed if each.key in served]
        """What this link serves."""
        self._own_numbers = {subscription_id(each.filter) for each in self.own}
        for each in subscribed:
            number = subscription_id(each.filter)
            if self._filters.setdefault(number, each.filter) != each.filter:
                raise ConfigurationError(
                    f"the filters {each.filter!r} and {self._filters[number]!r} have the same subscription identifier "
                    f"({number}): rename the group of one of them"
                )
            for runner in each.runners:
                self._tree.add(split_share(each.filter)[1], _Hit(number, runner, each.key in served))

    def targets(self, topic: str, ids: tuple[int, ...] = ANY) -> tuple[Target, ...]:
        """What a message is for; empty: for nobody, where `IGNORED` means that this is as it should be."""
        known = self._cache.hot.get(topic)
        while known is not None:
            if known.key == ids:
                return known.targets
            known = known.next
        return self._look_up(ids, topic, ids, retain=False)

    def retained_targets(self, topic: str, ids: tuple[int, ...] = ANY) -> tuple[Target, ...]:
        """The same for a message with the retain flag."""
        return self._look_up((ids, "retain"), topic, ids, retain=True)

    def _look_up(self, key: Hashable, topic: str, ids: tuple[int, ...], *, retain: bool) -> tuple[Target, ...]:
        known = first = self._cache.get(topic)
        while known is not None:
            if known.key == key:
                return known.targets
            known = known.next
        if topic.startswith(FENCE_PREFIX):
            return IGNORED
        hits = self._tree.match(topic)
        sent_for = self._sent_for(hits, ids)
        found = self._find(topic, hits, sent_for, retain=retain)
        if sent_for and len(topic) <= CACHED_LENGTH:
            self._cache.put(topic, _Known(key, found, first))
        elif not sent_for:
            self.strays += 1  # not remembered, so that each is counted
        if self.on_left_behind is not None:
            for number in ids:
                if number not in self._own_numbers:
                    self.on_left_behind(topic, number, self._filters.get(number))
        return found

    def _sent_for(self, hits: Sequence[_Hit], ids: tuple[int, ...]) -> list[_Hit]:
        """The subscriptions that a copy was sent for, as far as can be told."""
        # One that has moved to another link since: what waits in this session waits nowhere else.
        named = [hit for hit in hits if hit.number in ids and (hit.own or hit.number not in self._own_numbers)]
        if ids and self._by_id:
            return named
        return list(dict.fromkeys([hit for hit in hits if hit.own] + named))

    def _find(self, topic: str, hits: Sequence[_Hit], sent_for: Sequence[_Hit], *, retain: bool) -> tuple[Target, ...]:
        levels = topic.split("/")
        matching: list[tuple[_Hit, tuple[object, ...]]] = []
        for hit in hits:
            route = hit.runner.route
            values = None if route.fallback else self._values(route, levels, topic)
            if values is not None:
                matching.append((hit, values))
        if not matching:
            return self._unrouted(topic, hits, sent_for)
        unwanted = "skip" if retain else "only"
        chosen = {
            hit.runner: values
            for hit, values in matching
            if (not sent_for or hit in sent_for) and hit.runner.route.retained != unwanted
        }
        if self._mode == "first":
            able = [hit.runner for hit, _ in matching if hit.runner.route.retained != unwanted]
            first = min(able, key=lambda runner: runner.index, default=None)
            chosen = {runner: values for runner, values in chosen.items() if runner is first}
        if not chosen:
            return IGNORED
        order = list(chosen)
        if len(order) > 1:
            order.sort(key=lambda runner: (runner.route.template.specificity, runner.index))
        return tuple([runner.target(topic, chosen[runner]) for runner in order])

    def _values(self, route: Route, levels: Sequence[str], topic: str) -> tuple[object, ...] | None:
        """Those of the path parameters; None: the route does not match, or a converter of the app's own has failed."""
        try:
            return route.template.values(levels, topic)
        except Exception:  # else the connection would end, and the broker send the message again and again
            if route not in self._told:
                self._told.add(route)
                log.exception(
                    "%s does not match %s, as a converter in %r failed. Where it cannot take a text, its 'parse' is to "
                    "raise ValueError. Further failures of this route are not logged",
                    route.name,
                    printable(topic),
                    route.template.text,
                )
            return None

    def _unrouted(self, topic: str, hits: Sequence[_Hit], sent_for: Sequence[_Hit]) -> tuple[Target, ...]:
        """The fallback for a topic that no route matches: once, for the copy of one of its subscriptions."""
        for runner in self._fallbacks:
            template = runner.route.template
            values = () if template.text == "#" else template.match(topic)  # even what begins with '$'
            if values is None:
                continue
            candidates = [hit for hit in hits if hit.runner is runner] or hits
            if sent_for and min(candidates, key=lambda hit: hit.number) not in sent_for:
                return IGNORED
            return (runner.target(topic, values),)
        return ()
