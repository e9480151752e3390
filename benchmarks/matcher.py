"""What it costs to find the route of a topic, with 10 to 100,000 routes.

A known topic is answered by the cache in front of the tree; a new one by the tree and the template, as the dispatcher
does. Topics come off the wire as new strings, so each is looked up once here: their hash is part of the price.
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


def topics_of(routes: int, count: int, seed: int) -> list[str]:
    """`count` different topics, each for one of the routes."""
    choose = random.Random(seed)
    return [f"plant-{choose.randrange(routes)}/sensors/{seed}-{number}/data" for number in range(count)]


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
    trees = {routes: finder(tree_of(routes)) for routes in ROUTES}
    new: dict[int, list[float]] = {routes: [] for routes in ROUTES}
    known: dict[int, list[float]] = {routes: [] for routes in ROUTES}
    for round_number in range(ROUNDS):
        for routes, find in trees.items():
            new[routes].append(cost(find, topics_of(routes, count, round_number)))
            cache: TopicCache[list[Match]] = TopicCache(2 * KNOWN_TOPICS + 2)
            topics = topics_of(routes, KNOWN_TOPICS, round_number)
            for topic in topics:
                cache.put(topic, find(topic))
            known[routes].append(cost(cache.hot.get, fresh(topics * (count // KNOWN_TOPICS))))
    return [
        {"routes": routes, "known_us": round(median(known[routes]), 3), "new_us": round(median(new[routes]), 3)}
        for routes in ROUTES
    ]


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
        print(f"{row['routes']:>7,} routes: known topic {row['known_us']:.3f} µs, new topic {row['new_us']:.3f} µs")


if __name__ == "__main__":
    main()
