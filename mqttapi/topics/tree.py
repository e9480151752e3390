"""From a topic to the values of the filters it matches: a trie, and a cache in front of it."""

from __future__ import annotations

from typing import Generic, TypeVar

from mqttapi.topics.grammar import split_share

__all__ = ["TopicCache", "TopicTree"]

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("children", "deep", "exact", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}  # literal levels only: a '+' that arrives in a topic finds nothing
        self.plus: _Node[T] | None = None
        self.exact: list[T] = []  # filters that end here
        self.deep: list[T] = []  # filters that go on with '#': they match this level and all below

    def is_empty(self) -> bool:
        return not (self.children or self.plus or self.exact or self.deep)


class TopicTree(Generic[T]):
    """Topic filters, each with values. Matching costs what the topic's levels cost, however many filters there are."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, filter: str, value: T) -> None:
        """Add `value` under `filter` (without its `$share/<group>/`); raises `InvalidTopicFilter`."""
        node = self._root
        for level in split_share(filter)[1].split("/"):
            if level == "#":
                node.deep.append(value)
                return
            if level == "+":
                node.plus = node.plus or _Node()
                node = node.plus
            else:
                node = node.children.setdefault(level, _Node())
        node.exact.append(value)

    def remove(self, filter: str, value: T) -> None:
        """Undo one `add`; raises `KeyError` when there was none."""
        levels = split_share(filter)[1].split("/")
        deep = levels[-1] == "#"
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for level in levels[:-1] if deep else levels:
            child = node.plus if level == "+" else node.children.get(level)
            if child is None:
                raise KeyError(filter)
            path.append((node, level))
            node = child
        try:
            (node.deep if deep else node.exact).remove(value)
        except ValueError:
            raise KeyError(filter) from None
        self._prune(path, node)

    @staticmethod
    def _prune(path: list[tuple[_Node[T], str]], node: _Node[T]) -> None:
        for parent, level in reversed(path):
            if not node.is_empty():
                return
            if level == "+":
                parent.plus = None
            else:
                del parent.children[level]
            node = parent

    def match(self, topic: str) -> list[T]:
        """The values of all filters that match `topic`, in no particular order.

        A topic that starts with `$` matches no filter that starts with a wildcard [MQTT-4.7.2-1].
        """
        found: list[T] = []
        levels = topic.split("/")
        nodes = [self._root]
        if topic[:1] == "$":
            first = self._root.children.get(levels.pop(0))
            if first is None:
                return found
            nodes = [first]
        for level in levels:
            below: list[_Node[T]] = []
            for node in nodes:
                if node.deep:
                    found += node.deep
                child = node.children.get(level)
                if child is not None:
                    below.append(child)
                if node.plus is not None:
                    below.append(node.plus)
            if not below:
                return found
            nodes = below
        for node in nodes:
            found += node.exact
            found += node.deep
        return found

    def overlapping(self, filter: str) -> list[T]:
        """The values of all filters that share a topic with `filter`, in no particular order; see `overlaps`."""
        found: list[T] = []
        levels = split_share(filter)[1].split("/")
        below = [(self._root, 0)]
        while below:
            node, position = below.pop()
            at_start = node is self._root
            if not (at_start and levels[0][:1] == "$"):
                found += node.deep
            if position == len(levels):
                found += node.exact
                continue
            level, after = levels[position], position + 1
            if level == "#":
                found += node.exact
                after = position
            if level in {"+", "#"}:
                children = node.children.items()
                below += [(child, after) for name, child in children if not (at_start and name[:1] == "$")]
            elif level in node.children:
                below.append((node.children[level], after))
            if node.plus is not None and not (at_start and level[:1] == "$"):
                below.append((node.plus, after))
        return found


class TopicCache(Generic[T]):
    """At most `size` topics and what is known about them.

    Two generations: when the young one is full it becomes the old one, and the old one is forgotten. What is asked for
    again moves back to the young one. Unlike a strict LRU, a hit writes nothing.

    `hot` is the young generation, and stays the same object: `cache.hot.get(topic)` may be bound once, and `cache.get`
    asked when it gives None. Topics of more than 1,024 characters are not kept, so that strangers cannot fill memory.
    """

    __slots__ = ("_half", "_old", "hot")

    def __init__(self, size: int = 10_000) -> None:
        if size < 2:
            raise ValueError(f"size must be 2 or more topics, got {size}")
        self._half = size // 2
        self._old: dict[str, T] = {}
        self.hot: dict[str, T] = {}

    def get(self, topic: str) -> T | None:
        """What was put for `topic`, or None."""
        value = self.hot.get(topic)
        if value is None and topic in self._old:
            value = self._old.pop(topic)
            self.put(topic, value)
        return value

    def put(self, topic: str, value: T) -> None:
        """Remember `value`, which is not None."""
        if len(topic) > 1024:
            return
        if len(self.hot) >= self._half and topic not in self.hot:
            self._old = self.hot.copy()
            self.hot.clear()
        self.hot[topic] = value

    def clear(self) -> None:
        """Forget everything; needed when the routes change."""
        self.hot.clear()
        self._old.clear()

    def __len__(self) -> int:
        return len(self.hot) + len(self._old)
