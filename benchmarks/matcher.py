"""What it costs to find the route of a topic, with 10 to 100,000 routes.

A known topic is answered by the cache in front of the tree; a new one by the tree and the template, as the dispatcher
does. Topics come off the wire as new strings, so each is looked up once here: their hash is part of the price.

New topics are measured twice: all for ten of the routes, which shows what the number of routes costs by itself, and
spread over all routes, where the processor's caches have their say too.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from statistics import median

from mqttapi.topics import TopicCache, TopicTemplate, TopicTree

ROUTES = (10, 1_000, 100_000)
IN_USE = 10
KNOWN_TOPICS = 1_000
ROUNDS = 7

Match = tuple[TopicTemplate, tuple[object, ...]]


def tree_of(routes: int) -> TopicTree[TopicTemplate]:
    tree: TopicTree[TopicTemplate] = TopicTree()
    for number in range(routes):
        template = TopicTemplate(f"plant-{number}/sensors/<device_id>/data")
        for filter in template.filters:
            tree.add(filter, template)
    return tree


def topics_of(routes: int, used: int, count: int, seed: int) -> list[str]:
    """`count` different topics for `used` of the routes."""
    choose = random.Random(seed)
    plants = choose.sample(range(routes), used)
    return [f"plant-{choose.choice(plants)}/sensors/{seed}-{number}/data" for number in range(count)]


def finder(tree: TopicTree[TopicTemplate]) -> Callable[[str], list[Match]]:
    def find(topic: str) -> list[Match]:
        found = []
        for template in tree.match(topic):
            values = template.match(topic)
            if values is not None:
                found.append((template, values))
        return found

    return find


def cost(look_up: Callable[[str], object], topics: Sequence[str]) -> float:
    """µs of CPU per topic."""
    began = time.process_time()
    for topic in topics:
        look_up(topic)
    return (time.process_time() - began) / len(topics) * 1e6


def fresh(topics: Sequence[str]) -> list[str]:
    """The same topics as new strings, whose hashes have not been computed yet."""
    return [topic.encode().decode() for topic in topics]


def measure(count: int) -> list[dict[str, float]]:
    finders = {routes: finder(tree_of(routes)) for routes in ROUTES}
    rounds = [[_round(routes, find, count, number) for routes, find in finders.items()] for number in range(ROUNDS)]
    return [
        {name: round(median(it[place][name] for it in rounds), 3) for name in rounds[0][place]}
        for place in range(len(ROUTES))
    ]


def _round(routes: int, find: Callable[[str], list[Match]], count: int, seed: int) -> dict[str, float]:
    cache: TopicCache[list[Match]] = TopicCache(2 * KNOWN_TOPICS + 2)
    known = topics_of(routes, IN_USE, KNOWN_TOPICS, seed)
    for topic in known:
        cache.put(topic, find(topic))
    return {
        "routes": routes,
        "known_us": cost(cache.hot.get, fresh(known * (count // KNOWN_TOPICS))),
        "new_us": cost(find, topics_of(routes, IN_USE, count, seed)),
        "spread_us": cost(find, topics_of(routes, routes, count, seed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(10_000 if options.quick else 50_000)
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(
            f"{row['routes']:>7,} routes: known topic {row['known_us']:.3f} µs, new topic {row['new_us']:.3f} µs, "
            f"new topic of any route {row['spread_us']:.3f} µs"
        )


if __name__ == "__main__":
    main()
