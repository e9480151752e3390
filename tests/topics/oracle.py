"""What §4.7 says, written as slowly and plainly as possible, and the texts to try it on."""

from __future__ import annotations

from hypothesis import strategies as st


def textbook_match(filter: str, topic: str) -> bool:
    """Recursive, level by level."""
    if topic.startswith("$") and filter[0] in "+#":
        return False
    return _match(filter.split("/"), topic.split("/"))


def _match(filter: list[str], topic: list[str]) -> bool:
    if not filter:
        return not topic
    if filter[0] == "#":
        return True  # also without a level left: '#' includes the parent
    if not topic:
        return False
    return filter[0] in ("+", topic[0]) and _match(filter[1:], topic[1:])


# Few different levels, so that random filters and topics meet often; '' makes empty levels, 'ab' shares a prefix.
LITERALS = ["a", "b", "ab", "", "$", "$a", "é", " "]

topics = st.lists(st.sampled_from(LITERALS), min_size=1, max_size=5).map("/".join).filter(bool)


@st.composite
def _filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from([*LITERALS, "+", "+"]), max_size=5))
    if not levels or draw(st.integers(0, 3)) == 0:
        levels.append("#")
    return "/".join(levels)


filters = _filters().filter(bool)
