"""FedAttn's trade-off: accuracy and bytes against the sync interval, the participants, and the share exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedray.evaluation.figures import base
from fedray.evaluation.figures.base import ALONE
from fedray.methods.fedattn import FedAttn
from fedray.reporting.report import Evaluated, Report

AXES = {"sync_every": "sync interval H", "participants": "participants N", "exchange": "share of keys and values sent"}
WITHOUT = {"tiny-evidence-pooled": "tiny-evidence-question"}  # a task -> its questions without the documents
Line = list[Evaluated]


def draw(report: Report, folder: Path) -> list[Path]:
    """fedattn.png, if some setting of FedAttn varies; a second task has its name in the file's name."""
    drawn: list[Path] = []
    for task in dict.fromkeys(row.task for row in report.evaluated if isinstance(row.how.protocol, FedAttn)):
        own = [row for row in report.evaluated if row.who.receiver == report.who.receiver]
        rows = [row for row in own if row.task == task]
        joint = next((row for row in rows if row.is_alone), None)
        alone = next((row for row in own if row.task == WITHOUT.get(task) and row.is_alone), None)
        lines = {axis: _lines([row for row in rows if isinstance(row.how.protocol, FedAttn)], axis) for axis in AXES}
        lines = {axis: found for axis, found in lines.items() if found}
        if lines:
            end = f"-{Path(task).stem}" if drawn else ""
            label = f"{report.who.receiver}, {base.label(report.zoo, task, max(row.found.n for row in rows))}"
            drawn.append(_draw(lines, joint, alone, folder / f"fedattn{end}.png", label))
    return drawn


def _lines(rows: Sequence[Evaluated], axis: str) -> dict[str, Line]:
    """Rows that differ in `axis` alone, by what they have in common; whole exchanges belong to every score."""
    found: dict[FedAttn, Line] = {}
    for row in rows:
        how = row.how.of(FedAttn)
        scores = {r.how.of(FedAttn).score for r in rows} if how.exchange == 1 else {how.score}
        for score in scores if axis == "exchange" else (how.score,):
            common = replace(how, **{axis: getattr(FedAttn(), axis)}, score=score)
            found.setdefault(common, []).append(row)
    varied = {how: line for how, line in found.items() if len({_at(row, axis) for row in line}) > 1}
    return {_name(how, axis): sorted(line, key=lambda row: _at(row, axis)) for how, line in varied.items()}


def _at(row: Evaluated, axis: str) -> float:
    return float(getattr(row.how.protocol, axis))


def _name(how: FedAttn, axis: str) -> str:
    """What the rows of a line have in common."""
    gone = {"sync_every": "H=", "participants": "N="}.get(axis, "exchange")
    kept = [word for word in str(how).split(", ") if not word.startswith(gone)]
    return ", ".join([*kept, how.score] if axis == "exchange" else kept)


def _draw(
    lines: dict[str, dict[str, Line]], joint: Evaluated | None, alone: Evaluated | None, path: Path, label: str
) -> Path:
    figure = Figure(figsize=(4.6 * len(lines) + 0.6, 7.6), layout="constrained")
    grid = figure.subplots(2, len(lines), squeeze=False, sharey="row", sharex="col")
    for column, (axis, found) in enumerate(lines.items()):
        upper, lower = grid[0][column], grid[1][column]
        for row, name, style in ((joint, "joint attention", "-"), (alone, "publisher alone", ":")):
            if row is not None:
                upper.axhline(row.accuracy, color=ALONE, linestyle=style, label=f"{name}  ({row.accuracy:.1%})")
        for name, line in found.items():
            x = [_at(row, axis) for row in line]
            upper.errorbar(x, [r.accuracy for r in line], [r.stderr for r in line], marker="o", capsize=2, label=name)
            lower.plot(x, [r.cost.bytes_per_token for r in line], marker="o", label=name)
        lower.set_xlabel(AXES[axis])
        lower.set_ylim(bottom=0)
        upper.legend(frameon=False, fontsize=7.5)
        if axis != "exchange":
            lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylim(0, 1.02)
    grid[0][0].set_ylabel("accuracy (share right, ± stderr)")
    grid[1][0].set_ylabel("bytes on the wire per token of the prompt")
    figure.suptitle(f"FedAttn: accuracy and bytes\n{label}", fontsize=11)
    return base.save(figure, path)
