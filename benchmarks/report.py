"""The figures as Markdown, for the terminal and for the page between its markers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

Row = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---" if number == 0 else "---:" for number in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _cells(summary: Row | None) -> list[str]:
    """CPU time with its spread, wall time, ratio."""
    if summary is None:
        return ["", "", ""]
    if "absent" in summary:
        return [f"not measured: {summary['absent']}", "", ""]
    low, high = summary["spread"]
    ratio = f"{summary['ratio']:.2f}" if "ratio" in summary else ""
    cpu = f"**{_number(summary['cpu_us'])}** ({_number(low)} to {_number(high)})"
    return [cpu, _number(summary["wall_us"]), ratio]


def _comparison(rows: Sequence[Row]) -> str:
    qos = [number for number in (0, 1) if any(f"qos{number}" in row for row in rows)]
    head = [""]
    for number in qos:
        head += [f"QoS {number}: CPU µs", "wall µs", "×"]
    works = any(row["work"] for row in rows)
    body = []
    for row in rows:
        line = [row["title"]]
        for number in qos:
            line += _cells(row.get(f"qos{number}"))
        body.append([*line, row["work"]] if works else line)
    return table([*head, "what it does"] if works else head, body)


def _matcher(rows: Sequence[Row]) -> str:
    names = ("known_us", "new_us", "spread_us")
    body = [[f"{row['routes']:,}", *(_number(row[name]) for name in names)] for row in rows]
    return table(["routes", "known topic, µs", "new topic of ten routes, µs", "new topic of any route, µs"], body)


def _latency(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        if "absent" in row:
            body.append([row["title"], f"not measured: {row['absent']}", "", "", ""])
            continue
        figures = [f"{row['capacity']:,}", f"{row['p50_us'] / 1000:.2f}", f"{row['p99_us'] / 1000:.2f}"]
        body.append([row["title"], *figures, _number(row["full_cpu_us"])])
    return table(["", "messages a second at most", "p50, ms", "p99, ms", "CPU µs at full load"], body)


def _memory(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        size = f"{row['payload']:,} B"
        if "absent" in row:
            body.append([row["title"], size, f"not measured: {row['absent']}", ""])
            continue
        handled = "all" if row["handled_all"] else f"stopped after {row['seconds']:.0f} s"
        body.append([row["title"], size, f"{row['growth_mib']:.0f}", f"{handled} of {row['messages']:,}"])
    return table(["", "payload", "growth, MiB", "handled"], body)


_PARTS = {"matcher": _matcher, "latency": _latency, "memory": _memory}

_HEADINGS = {
    "consume": ("Consuming", "Per message. × is the CPU time in units of {reference}'s, taken in the same round."),
    "publish": ("Publishing", "Per message, 64 in flight. × as above."),
    "costs": (
        "What costs what",
        "The same application of MQTTAPI with one thing changed. × is in units of the first line.",
    ),
    "matcher": ("Finding the route", "CPU time per topic."),
    "latency": (
        "From publish to handler",
        "QoS 1 through mosquitto at its defaults, at half of what the two can carry. The publisher shares its core.",
    ),
    "memory": (
        "Memory in a flood",
        "QoS 1 from a broker that ignores Receive Maximum, into a handler that sleeps for a millisecond.",
    ),
}


def _sections(results: Row) -> Iterator[str]:
    reference = ""
    for suite, (heading, text) in _HEADINGS.items():
        found = results.get(suite)
        if not found:
            continue
        if suite in _PARTS:
            body = f"Not measured: {found['absent']}\n" if "absent" in found else _PARTS[suite](found["rows"])
        else:
            titles = {row["name"]: row["title"] for row in found}
            reference = titles.get(found[0]["reference"], found[0]["reference"])
            body = _comparison(found)
        yield f"## {heading}\n\n{text.format(reference=reference)}\n\n{body}"


def markdown(results: Row) -> str:
    setup = results["setup"]
    broker = f", fake broker with `{' '.join(setup['broker'])}`" if setup["broker"] else ""
    about = (
        f"{setup['repeat']} rounds, median and range; {setup['messages']:,} messages a round for the fastest, "
        f"fewer for the slow; payload {setup['payload']} B of JSON; Python {setup['python']}{broker}.\n"
    )
    return "\n".join([about, *_sections(results)])


def write(results: Row, page: Path) -> None:
    """Replace what stands between the page's markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} must have the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n![CPU time per message](benchmarks.svg)\n\n{markdown(results)}\n{END}{after}")
