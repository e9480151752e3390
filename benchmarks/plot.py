"""Draws `results.json` as bars: `plot.py results.json benchmarks.svg`. Runs in an environment of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]
import matplotlib.pyplot as plt  # type: ignore[import-not-found]

mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file

INK, OURS, PEER = "#3b4a54", "#00796b", "#9fb0b8"


def cpu(row: dict[str, Any], qos: int) -> float:
    """µs; 0 when it was not measured."""
    figure: float = row.get(f"qos{qos}", {}).get("cpu_us", 0.0)
    return figure


def draw(axes: Any, rows: list[dict[str, Any]], qos: int) -> None:
    found = sorted(((cpu(row, qos), row) for row in rows if cpu(row, qos)), key=lambda it: -it[0])
    values = [value for value, _ in found]
    colours = [OURS if row["name"] == "mqttapi" else PEER for _, row in found]
    bars = axes.barh([row["title"] for _, row in found], values, color=colours, height=0.68)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=4, color=INK, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(values) * 3)
    axes.set_title(f"QoS {qos}", loc="left", color=INK, fontsize=11)
    axes.set_xlabel("CPU time per message, µs (logarithmic)", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="x", color="#e3e8ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    rows = json.loads(source.read_text()).get("consume", [])
    qos = [number for number in (0, 1) if any(cpu(row, number) for row in rows)]
    if not qos:
        raise SystemExit("nothing was measured")
    figure, axes = plt.subplots(1, len(qos), figsize=(5.4 * len(qos), 0.36 * len(rows) + 1.2), squeeze=False)
    for number, part in zip(qos, axes[0], strict=True):
        draw(part, rows, number)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None}, transparent=False, facecolor="white")


main()
