"""Tables, lines and bars on a terminal, or in a log: rich shows what it is given as text.

Whatever brackets are in it, it is no markup; whatever bytes, they do not act on the terminal. Nobody else
imports rich.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as Console
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from diffbase.line import printable

WIDEST = 1_000_000
"""Columns of a plain table."""


def _text(words: str) -> Text:
    """Words for rich that are shown as they are."""
    return Text(printable(words))


def say(console: Console, words: str) -> None:
    """One line, uncoloured."""
    console.print(_text(words))


def progress() -> Progress:
    """A bar on stderr: a task's description, how much is done, its field ``words``, and the time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class TextTable:
    """Columns of text are aligned left, those of figures right."""

    def __init__(self, title: str, *headings: str, text: Collection[int] = (0,), plain: bool = False) -> None:
        """``text``: numbers of the columns that hold no figures.

        ``plain``: no lines around it, and a row is one line, however wide: paths are for copying.
        """
        self.plain = plain
        self.table = Table(
            title=Text(printable(title), style="table.title") if title else None,
            box=None if plain else Table().box,
            show_header=any(headings),
            pad_edge=not plain,
            padding=(0, 2, 0, 0) if plain else (0, 1),
        )
        for i, heading in enumerate(headings):
            self.table.add_column(
                _text(heading),
                justify="left" if i in text else "right",
                overflow="fold" if plain else "ellipsis",
            )

    def add_row(self, *cells: str, bold: bool = False) -> None:
        """One row of text; ``bold`` for a sum."""
        self.table.add_row(*map(_text, cells), style="bold" if bold else None)

    def add_section(self) -> None:
        """A line below the last row."""
        self.table.add_section()

    def lines(self) -> list[str]:
        """Its rows, each whole and without spaces behind it."""
        text = io.StringIO()
        Console(file=text, width=WIDEST, color_system=None).print(self.table, soft_wrap=False)
        return [line.rstrip() for line in text.getvalue().splitlines()]

    def print(self, console: Console | None = None, width: int | None = None) -> None:
        """On the terminal; a pipe has no width of its own and gets ``width``."""
        if self.plain and console is None:
            for line in self.lines():
                print(printable(line))
            return
        (console or Console(width=None if sys.stdout.isatty() else width)).print(self.table)


Block = TextTable | str
"""What a command shows: a table, or a line of text."""


def show(blocks: Sequence[Block]) -> None:
    """One below the other, with an empty line between."""
    for i, block in enumerate(blocks):
        if i:
            print()
        if isinstance(block, str):
            print(printable(block))
        else:
            block.print()


@contextmanager
def live() -> Iterator[Callable[[Sequence[Block]], None]]:
    """The whole terminal while this lasts. Yields what shows blocks in the place of the last ones."""
    with Live(console=Console(), screen=True, auto_refresh=False) as screen:
        yield lambda blocks: screen.update(
            Group(*(_text(block) if isinstance(block, str) else block.table for block in blocks)),
            refresh=True,
        )
