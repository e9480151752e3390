"""Tables on the terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["print_table", "show", "table"]


def table(columns: Sequence[str], rows: Iterable[Mapping[str, str]], *, text: Collection[str] = ()) -> Table:
    """Columns of numbers, to the right, but for those in `text`."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", justify="left" if column in text else "right")
    for row in rows:
        made.add_row(*(Text(row[column]) for column in columns))
    return made


def show(renderable: RenderableType) -> None:
    """Print it, folded to the width of the terminal; no line ends with a space."""
    from rich.console import Console

    # What is not a terminal has no width: nothing is to be wrapped for it.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    with console.capture() as captured:
        console.print(renderable)
    # Cells are padded, the last ones too, within the codes for their style.
    print(re.sub(r" +((?:\x1b\[[0-9;]*m)*)$", r"\1", captured.get(), flags=re.MULTILINE), end="")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts; no line ends with a space."""
    show(table(columns, (dict(zip(columns, row, strict=True)) for row in rows), text=columns))
