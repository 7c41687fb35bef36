"""What a person sees of a job. Nothing that happens to the screen costs a result: the report is written before."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedray.llm.catalogue import shortening
from fedray.text import printable

WIDTH = 120  # of lines that no terminal receives


class Screen:
    """Writes to standard output; every title says which zoo the figures come from."""

    def __init__(self, zoo: str, console: Console | None = None, *, members: Iterable[str] = ()) -> None:
        """members: whose folders and files are named as short as tells them apart."""
        self.zoo, self.short = zoo, shortening(members)
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)

    def line(self, text: str | Text) -> None:
        """Print one line, as long as it needs to be."""
        self.console.print(Text(self.short(text)) if isinstance(text, str) else text, soft_wrap=True)

    def table(self, title: str, headings: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Print a table under its title, if it has rows. Without headings it is a list of facts."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
        for heading in headings:
            table.add_column(self.short(heading), overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(printable(self.short(cell))) for cell in row))
        if table.row_count:
            self.console.print(Text(f"{title} (zoo={self.zoo})", "bold"))
            self.console.print(table)

    def passed_over(self, problems: Mapping[Path, str]) -> None:
        """Name versions in a registry that do not hold."""
        for problem in problems.values():
            self.line(f"passed over: {problem}")

    def bars(self, running: bool = True) -> Progress:
        """Make live bars: description, steps done, time gone and left and, with `running`, a field of that name."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        more = [TimeRemainingColumn(), TextColumn("{task.fields[running]}")] if running else []
        return Progress(*columns, *more, console=self.console)
