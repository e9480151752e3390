"""What is subscribed to, and on which link: pure decisions, made once when an app starts.

A broker that names the subscription of each copy lets one link hold all filters. Any other may send one copy for
several overlapping filters, or one for each, and nothing tells which [MQTT5 §3.3.4]. Then no two filters on one link
overlap, so that a link gets each message at most once and knows what it is for:

- A filter that another one covers entirely is not subscribed to: its routes are served with the cover's messages.
  Groups are left out of that: a member gets a share of the messages, never all.
- What is left is coloured, greedily and in the order of the texts: a filter goes to the first link where it overlaps
  nothing. So a filter that overlaps none of them changes no other's place, and client ids stay the same over versions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mqttapi.errors import ConfigurationError
from mqttapi.topics import TopicTree, covers, split_share

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from mqttapi.routing import Retained, Route
    from mqttapi.runtime.runs import Runner

__all__ = [
    "LinkPlan",
    "Subscribed",
    "filter_with_id",
    "overlapping_routes",
    "plan",
    "subscription_id",
    "subscriptions",
]

_EXCLUSIVE: Final = ("no_local", "retain_as_published", "retained", "isolate")
"""What routes on one subscription cannot disagree on."""
_MAX_LEVELS: Final = 12


def subscription_id(filter: str) -> int:
    """The identifier of a subscription: 1 to 2^28 - 1, from the full filter, `$share/<group>/` included.

    It stays the same over versions of the app, because messages that wait in a session carry the identifiers of the
    version that subscribed.
    """
    digest = hashlib.blake2b(filter.encode(), digest_size=4).digest()
    return 1 + int.from_bytes(digest, "big") % 0x0FFF_FFFF


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One subscription: a filter, `$share/<group>/` included, and the routes that it serves."""

    filter: str
    qos: int
    runners: tuple[Runner, ...] = ()
    no_local: bool = False
    retain_as_published: bool = False
    retained: Retained = "all"
    isolated: bool = False

    @property
    def key(self) -> Hashable:
        """What tells it from others: an isolated route may have the same filter as another one."""
        return self.filter, self.runners

    @property
    def routes(self) -> str:
        """The names of the routes, for people."""
        return ", ".join(runner.route.name for runner in self.runners)

    @property
    def shared(self) -> bool:
        return split_share(self.filter)[0] is not None


class LinkPlan(NamedTuple):
    """One link: what it adds to the client id, what it subscribes to, and what it serves beside that."""

    suffix: str
    subscribed: tuple[Subscribed, ...]
    covered: tuple[Subscribed, ...] = ()


def subscriptions(runners: Iterable[Runner], group: str) -> list[Subscribed]:
    """One subscription per full filter, with the highest QoS of its routes. `group` is the default group's name.

    An isolated route that is not shared has subscriptions of its own: its client gets its own copies.

    Raises:
        ConfigurationError: Two routes on one subscription want what it can have only once.
    """
    found: defaultdict[tuple[str, Runner | None], list[Runner]] = defaultdict(list)
    for runner in runners:
        route = runner.route
        alone = runner if route.isolate and route.group(group) is None else None
        for full in route.filters(group):
            found[full, alone].append(runner)
    return [_subscribed(full, serving) for (full, _), serving in found.items()]


def _subscribed(full: str, runners: Sequence[Runner]) -> Subscribed:
    first, *others = (runner.route for runner in runners)
    wanted = _exclusive(first)
    for other in others:
        for name, ours, theirs in zip(_EXCLUSIVE, wanted, _exclusive(other), strict=True):
            if ours != theirs:
                raise ConfigurationError(
                    f"{first.name!r} and {other.name!r} share the subscription {full!r}, but {name} is {ours!r} for the "
                    f"one and {theirs!r} for the other: a subscription has one of each. Give both the same"
                )
    return Subscribed(full, max(runner.route.qos for runner in runners), tuple(runners), *wanted)


def _exclusive(route: Route) -> tuple[Any, ...]:
    options = route.options
    return (bool(options.no_local), bool(options.retain_as_published), route.retained, route.isolate)


def plan(subscribed: Sequence[Subscribed], *, by_id: bool) -> list[LinkPlan]:
    """The links of an app; the first one, with no suffix, is always there.

    Args:
        subscribed: All subscriptions.
        by_id: Whether the broker tells for which subscription a copy was sent.
    """
    together = [each for each in subscribed if not each.isolated]
    links = [LinkPlan("", tuple(together))] if by_id else list(_coloured(together))
    return links + list(_isolated(each for each in subscribed if each.isolated))


def _isolated(subscribed: Iterable[Subscribed]) -> Iterator[LinkPlan]:
    """A link for each isolated route. Its name is made of the filters, so that it stays when others come and go."""
    by_route: defaultdict[Runner, list[Subscribed]] = defaultdict(list)
    for each in subscribed:
        by_route[each.runners[0]].append(each)
    taken: set[str] = set()
    for several in by_route.values():
        text = "\n".join(each.filter for each in several)
        suffix = _suffix(text)
        while suffix in taken:  # two isolated routes on one filter
            text += "\n"
            suffix = _suffix(text)
        taken.add(suffix)
        yield LinkPlan(suffix, tuple(several))


def _suffix(text: str) -> str:
    return f"-i{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def _coloured(subscribed: Sequence[Subscribed]) -> Iterator[LinkPlan]:
    """Links on none of which two filters overlap; see above."""
    cover_of = _covers(subscribed)
    covered: defaultdict[str, list[Subscribed]] = defaultdict(list)
    for each in subscribed:
        if each.filter in cover_of:
            covered[cover_of[each.filter]].append(each)
    roots = [
        replace(each, qos=max(each.qos, *(under.qos for under in covered[each.filter]), 0))
        for each in sorted(subscribed, key=lambda each: (each.shared, each.filter))
        if each.filter not in cover_of
    ]
    tree = _tree(roots)
    colours: dict[str, int] = {}
    for each in roots:
        near = {colours.get(other.filter) for other in tree.overlapping(each.filter)}
        colours[each.filter] = next(colour for colour in range(len(roots)) if colour not in near)
    for colour in range(max(colours.values(), default=0) + 1):
        chosen = [each for each in roots if colours[each.filter] == colour]
        served = [under for each in chosen for under in covered[each.filter]]
        yield LinkPlan(f"-l{colour}" if colour else "", tuple(chosen), tuple(served))


def _covers(subscribed: Sequence[Subscribed]) -> dict[str, str]:
    """From each filter that needs no subscription to the one whose messages contain its own."""
    plain = [each for each in subscribed if not each.shared]
    tree = _tree(plain)
    found: dict[str, str] = {}
    for each in plain:
        wider = [other for other in tree.overlapping(each.filter) if _serves(other, each)]
        widest = [other for other in wider if not any(_serves(another, other) for another in wider)]
        if widest:
            found[each.filter] = min(other.filter for other in widest)
    return found


def _serves(cover: Subscribed, other: Subscribed) -> bool:
    """Whether `other` needs no subscription of its own beside `cover`; of two equal ones, one needs none."""
    alike = (cover.no_local, cover.retain_as_published, cover.retained)
    if alike != (other.no_local, other.retain_as_published, other.retained) or not covers(cover.filter, other.filter):
        return False
    return not covers(other.filter, cover.filter) or cover.filter < other.filter


def _tree(subscribed: Iterable[Subscribed]) -> TopicTree[Subscribed]:
    tree: TopicTree[Subscribed] = TopicTree()
    for each in subscribed:
        tree.add(each.filter, each)
    return tree


def overlapping_routes(subscribed: Iterable[Subscribed]) -> Iterator[tuple[Route, Route]]:
    """Each pair of routes whose filters have topics in common, once, in order of registration."""
    tree: TopicTree[Runner] = TopicTree()
    runners: dict[Runner, list[str]] = {}
    for each in subscribed:
        for runner in each.runners:
            if not runner.route.fallback:
                runners.setdefault(runner, []).append(each.filter)
                tree.add(each.filter, runner)
    for runner in sorted(runners, key=lambda runner: runner.index):
        near = {other for filter in runners[runner] for other in tree.overlapping(filter)}
        for other in sorted(near, key=lambda runner: runner.index):
            if other.index > runner.index:
                yield runner.route, other.route


def filter_with_id(number: int, topic: str, groups: Iterable[str]) -> str | None:
    """The filter that has the subscription identifier `number` and matches `topic`; None where none can be found.

    Identifiers are hashes: every filter that matches is tried, alone and in each of the groups. There are about
    2^(levels + 1) of them, so that topics of more than 12 levels are given up.
    """
    if topic.count("/") >= _MAX_LEVELS:
        return None
    prefixes = ["", *(f"$share/{group}/" for group in groups)]
    for text in _matching_filters(topic):
        for prefix in prefixes:
            if subscription_id(prefix + text) == number:
                return prefix + text
    return None


def _matching_filters(topic: str) -> Iterator[str]:
    """Every filter that matches a topic."""
    begun = [""]
    for position, level in enumerate(topic.split("/")):
        wild = () if position == 0 and level[:1] == "$" else ("#", "+")
        between = "/" if position else ""
        if wild or position:
            yield from (f"{start}{between}#" for start in begun)
        begun = [f"{start}{between}{each}" for start in begun for each in (level, *wild[1:])]
    for start in begun:
        yield start
        yield f"{start}/#"
