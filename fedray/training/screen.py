"""What a person sees of a training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table
from rich.text import Text

from fedray.report import Learned
from fedray.tracking import Tracker, browse
from fedray.training.crew import Tell

# Running figures beside the bar, in short.
_SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "right {:.0%}",
    "gain": "gain {:.3f}",
    "validation/loss": "validation {:.3f}",
    "validation/accuracy": "{:.0%}",
}


class Screen:
    """Writes to standard output; lines are as long as they need to be where that is a file."""

    def __init__(self, zoo: str, console: Console | None = None) -> None:
        self.zoo = zoo
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    @contextmanager
    def progress(self, name: str) -> Iterator[Tell]:
        """A live bar per phase; call what it yields as the training goes on."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
        )
        self.line(f"{name} (zoo={self.zoo})")
        with Progress(*columns, TextColumn("{task.fields[running]}"), console=self.console) as bars:
            shown: dict[str, TaskID] = {}
            seen: dict[str, float] = {}

            def tell(phase: str, step: int, of: int, running: Mapping[str, float]) -> None:
                if phase not in shown:
                    shown[phase] = bars.add_task(phase, total=of, running="")
                seen.update({key: running[key] for key in _SHOWN if key in running})
                figures = "  ".join(_SHOWN[key].format(value) for key, value in seen.items()) if running else ""
                bars.update(shown[phase], completed=step, running=figures)

            yield tell

    def learned(self, part: Learned, trust: Mapping[str, Mapping[str, float]], root: str) -> None:
        """What came of it."""
        shares = [(g, f"{part.validation_alone[g]:.1%}", f"{share:.1%}") for g, share in part.validation.items()]
        self._table("Validation questions, right answers", ("questions", "alone", "with the fuser, no gate"), shares)
        senders = tuple(next(iter(trust.values()), ()))
        weights = [(group, *(f"{row[sender]:.2f}" for sender in senders)) for group, row in trust.items()]
        self._table("Whom the gate trusts for what, mean weight", ("questions", *senders), weights)
        if part.hash:
            self.line(f"{part.name} {part.hash} is in {root}: use it with registry.path={root}")
        else:
            self.line(f"{part.name} is a control and was not registered")

    def _table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if rows:
            table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in rows:
                table.add_row(*row)
            self.console.print(Text(f"{title} (zoo={self.zoo})", "bold"))
            self.console.print(table)

    def tracked(self, tracker: Tracker, folder: str) -> None:
        """Where MLflow keeps the run, or why it does not."""
        where = tracker.run()
        if tracker.problem:
            self.line(f"{tracker.problem}; the figures wait, send them with `python -m fedray.tracking {folder}`")
        elif where:
            self.line(browse(*where))

    def passed_over(self, problems: Mapping[Path, str]) -> None:
        """Versions in the registry that do not hold."""
        for problem in problems.values():
            self.line(f"passed over: {problem}")

    def line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
