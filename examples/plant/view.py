"""What the plant does at this moment: a live table in a terminal, else a line now and then."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from examples.plant.app import Counts

_LINE_SECONDS = 5.0
_FRAME_SECONDS = 0.25
_WINDOW = 8  # frames over which the rate is taken


async def show(counts: Counts, published: Callable[[], int], *, title: str) -> None:
    """Show the counts until cancelled."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            ended = deque([(time.monotonic(), counts.ended)], maxlen=_WINDOW)
            while True:
                await asyncio.sleep(_FRAME_SECONDS)
                ended.append((time.monotonic(), counts.ended))
                (before, first), (now, last) = ended[0], ended[-1]
                live.update(_table(counts, published(), (last - first) / (now - before), title), refresh=True)
    began = time.monotonic()
    while True:
        await asyncio.sleep(_LINE_SECONDS)
        print(
            f"{time.monotonic() - began:4.0f} s: published {published():,}, handled {counts.handled:,}, "
            f"rejected {counts.rejected:,}, in flight {counts.in_flight:,}, alerts {counts.alerts:,}",
            flush=True,
        )


def _table(counts: Counts, published: int, rate: float, title: str) -> Panel:
    numbers = Table.grid(padding=(0, 2))
    numbers.add_column()
    numbers.add_column(justify="right", min_width=10)
    for name, value in (
        ("messages per second", f"{rate:,.0f}"),
        ("published", f"{published:,}"),
        ("handled", f"[green]{counts.handled:,}"),
        ("in flight", f"{counts.in_flight:,}"),
        ("alerts", f"[red]{counts.alerts:,}"),
        ("rejected", f"[yellow]{counts.rejected:,}"),
    ):
        numbers.add_row(name, value)
    for reason, number in counts.reasons.most_common(5):
        numbers.add_row(f"  [dim]{_short(reason)}", f"[dim]{number:,}")
    return Panel(numbers, title=title, subtitle="Ctrl-C drains and ends", expand=False)


def _short(reason: str) -> str:
    text = reason if len(reason) <= 60 else f"{reason[:59]}…"
    return text.replace("[", r"\[")
