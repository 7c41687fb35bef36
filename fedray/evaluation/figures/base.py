"""Figures of a run, each labelled with the zoo, the task and the number of questions behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.evaluation.metrics import Comparison
from fedray.reporting.report import Evaluated, Report, Spread, unwritable

ALONE, FEDERATED = "#9aa5b1", "#1f6feb"
COLORS = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
TOTAL = "total"  # the wall-clock phase: members work side by side, so phases may add up to more


def emptied(output: Path) -> Path:
    """The folder for a run's figures, without those of another run that wrote there before."""
    folder = output / "figures"
    for old in folder.glob("*.png"):
        old.unlink()
    return folder


def label(zoo: str, task: str | None, n: int) -> str:
    """What stands in every figure's title: where its figures come from."""
    return f"zoo={zoo}, task={Path(task).name if task else 'prompt'}, n={n}"


def by_task(report: Report, rows: Sequence[Evaluated]) -> Iterator[tuple[list[Evaluated], str, str]]:
    """List each task's rows, with the end of a figure's file name (nothing for the first task) and its label."""
    for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
        own = [row for row in rows if row.task == task]
        end = f"-{Path(task).stem}" if number else ""
        yield own, end, label(report.zoo, task, max(row.found.n for row in own))


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of one plot; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def accuracy(groups: Mapping[str, Comparison], path: Path, receiver: str, label: str) -> Path:
    """Bars of the receiver alone beside the federation, per group, with one standard error."""
    figure, axes = sheet(max(5.0, 1.5 * len(groups) + 2.0), 4.2)
    x = np.arange(len(groups))
    found = list(groups.values())
    alone = [(c.accuracy_alone, c.stderr_alone) for c in found]
    federated = [(c.accuracy, c.stderr) for c in found]
    for offset, name, bars, color in (
        (-0.2, f"{receiver} alone", alone, ALONE),
        (0.2, "federated", federated, FEDERATED),
    ):
        heights, errors = zip(*bars, strict=True)
        drawn = axes.bar(x + offset, heights, 0.38, yerr=errors, capsize=3, label=name, color=color, ecolor="#24292f")
        axes.bar_label(drawn, labels=[f"{h:.2f}" for h in heights], padding=2, fontsize=8)
    axes.set_xticks(x, [f"{name}\nn={c.n}" for name, c in groups.items()])
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("accuracy (share right, ± stderr)")
    axes.set_title(f"The receiver alone and federated\n{label}", fontsize=11)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return save(figure, path)


def latency(seconds: Mapping[str, Spread], path: Path, *, label: str) -> Path:
    """Stacked bars of the seconds per phase of a request, at p50 and at p95, with the wall clock beside them."""
    figure, axes = sheet(8.0, 3.6)
    starts = np.zeros(2)
    phases = {phase: (p.p50, p.p95) for phase, p in seconds.items() if phase != TOTAL}
    for i, (phase, widths) in enumerate(phases.items()):
        color = COLORS[i % len(COLORS)]
        axes.barh([1, 0], widths, 0.5, left=starts, label=phase, color=color, edgecolor="white", linewidth=0.5)
        starts += widths
    if TOTAL in seconds:
        wall = [seconds[TOTAL].p50, seconds[TOTAL].p95]
        axes.plot(wall, [1, 0], "D", color="#24292f", markersize=6, label="wall clock", zorder=3)
    axes.set_yticks([1, 0], ["p50", "p95"])
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlabel("seconds of work per request, each phase at its own percentile")
    axes.set_title(f"Where a request spends its time\n{label}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return save(figure, path)


def save(figure: Figure, path: Path, *, grid: bool = True) -> Path:
    """Write a figure in the common style; its folder is made. Raises FedrayError when it cannot be written."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if grid:
            axes.set_axisbelow(True)
            axes.grid(alpha=0.25)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise unwritable(path, error) from error
    return path
