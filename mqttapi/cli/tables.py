"""Tables of numbers for the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["show", "table"]


def table(columns: Sequence[str], rows: Iterable[Mapping[str, str]], *, text: Collection[str] = ()) -> Table:
    """Columns of numbers, to the right, but for those in `text`; the last is one of numbers: no line ends in spaces."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", justify="left" if column in text else "right")
    for row in rows:
        made.add_row(*(Text(row[column]) for column in columns))
    return made


def show(renderable: RenderableType) -> None:
    """Print it. What is not a terminal has no width: nothing is to be wrapped for it."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 1000).print(renderable)
