"""What jobs/build_zoo.py shows: a bar per part that is being trained, then what was built and how long it took."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedray.settings import BuildSettings
from fedray.zoo import build


def run(settings: BuildSettings, on_done: Callable[[build.Task, float], None]) -> None:
    """Build and show it; `on_done` hears of every part as soon as it is there."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        shown: dict[str, TaskID] = {}

        def follow(report: build.Progress) -> None:
            name = str(report.task)
            metrics = ", ".join(f"{key} {value:.3f}" for key, value in report.metrics.items())
            if name not in shown:
                shown[name] = bars.add_task(name, total=report.steps, metrics="")
            bars.update(shown[name], completed=report.step, metrics=metrics)

        seconds = build.build(
            settings.output,
            seed=settings.seed,
            everything=settings.everything,
            workers=settings.workers,
            shorten=settings.shorten,
            on_progress=follow,
            on_done=on_done,
        )
    table = Table(title=f"zoo=tiny, world seed {settings.seed}")
    table.add_column("built")
    table.add_column("seconds", justify="right")
    for name, spent in seconds.items():
        table.add_row(name, f"{spent:.0f}")
    console.print(table if seconds else "everything is there already")
