"""Whose message is read, and at which cost: the pairing gain of every way over its bytes per question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedray.evaluation.figures.base import COLORS, save
from fedray.evaluation.figures.fedrefine import INK
from fedray.reporting.report import Evaluated, Report

FEWEST = 3  # ways with a pairing gain that make a figure


def draw(report: Report, folder: Path) -> list[Path]:
    """channels.png, where several ways of a task have a pairing gain: a panel per task."""
    found = [r for r in report.evaluated if r.found.pairing_gain is not None and r.how.control == "none"]
    tasks = [task for task in dict.fromkeys(r.task for r in found) if len(_of(found, task)) >= FEWEST]
    if not tasks or len({r.how.fuser.kind for r in found}) < 2:
        return []
    ways = list(dict.fromkeys(r.way for r in found))
    figure = Figure(figsize=(3.1 * len(tasks) + 2.6, 3.9), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for row in _of(found, task):
            gain = row.found.pairing_gain
            assert gain is not None, "chosen for it"
            sent = max(row.cost.payload_bytes / max(row.found.n, 1), 1.0)
            low, high = (gain.points if end is None else end for end in (gain.low, gain.high))
            spread = [[gain.points - low], [high - gain.points]]
            axes.errorbar(
                sent, gain.points, spread, fmt="o", color=COLORS[ways.index(row.way) % len(COLORS)], capsize=3
            )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(f"{task}, n={max(r.found.n for r in _of(found, task))}", fontsize=10)
        axes.set_xlabel("bytes per question")
    panels[0].set_ylabel("pairing gain (points, 95 %)")
    dots = [panels[0].plot([], [], "o", color=COLORS[i % len(COLORS)], label=way)[0] for i, way in enumerate(ways)]
    figure.legend(handles=dots, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"What of the gain is the message, zoo={report.zoo}", fontsize=11)
    return [save(figure, folder / "channels.png")]


def _of(rows: Sequence[Evaluated], task: str) -> list[Evaluated]:
    return [row for row in rows if row.task == task]
