"""Figures of whole tables: the ladder of all ways of answering, and the pairs of sender and receiver as a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedray.evaluation.figures import base
from fedray.evaluation.figures.base import ALONE, save, sheet
from fedray.evaluation.figures.fedrefine import INK
from fedray.evaluation.table import STARS, stars
from fedray.reporting.report import Evaluated, Report

COLORS = {"c2c": "#1f6feb", "t2t": "#d4660a", "route": "#8250df", "ensemble": "#bf8700", "self_refine": "#57606a"}


def draw(report: Report, folder: Path) -> list[Path]:
    """ladder.png and pairs.png, each if its rows are there; a second task has its name in the file's name."""
    drawn: list[Path | None] = []
    for rows, end, label in base.by_task(report, [r for r in report.evaluated if r.how.control == "none"]):
        drawn += (
            ladder(rows, report.who.receiver, folder / f"ladder{end}.png", label),
            pairs(rows, folder / f"pairs{end}.png", label),
        )
    return [path for path in drawn if path]


def ladder(rows: Sequence[Evaluated], receiver: str, path: Path, label: str) -> Path | None:
    """Every member alone, then every way in which all senders help the receiver, as bars."""
    most = max((len(r.who.senders) for r in rows), default=0)
    steps = [r for r in rows if not r.who.senders or (r.who.receiver == receiver and len(r.who.senders) == most)]
    if len({r.how.protocol.name for r in steps if not r.is_alone}) < 3 or most < 2:
        return None
    figure, axes = sheet(8.0, 0.38 * len(steps) + 1.6)
    y = np.arange(len(steps))[::-1]
    shares, errors = [r.accuracy for r in steps], [r.stderr for r in steps]
    colors = [COLORS.get(r.how.protocol.name, ALONE) for r in steps]
    axes.barh(y, shares, 0.7, xerr=errors, capsize=2.5, ecolor=INK, color=colors)
    for place, row in zip(y, steps, strict=True):
        said = f"{row.accuracy:.1%}" + (f" {stars(row.p_value)}" if not row.is_alone else "")
        said += f"  P {row.found.pairing_gain.points:+.1f} {row.found.read}" if row.found.pairing_gain else ""
        end = (row.accuracy + row.stderr, place)
        axes.annotate(said, end, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    alone = next((r.accuracy for r in steps if r.is_alone and r.who.receiver == receiver), None)
    if alone is not None:
        axes.axvline(alone, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(y, list(map(_step, steps)))
    axes.set_ylim(-0.7, len(steps) - 0.3)
    axes.set_xlim(0, 1.2)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel(f"accuracy (share right, ± stderr)\n{STARS}; P: pairing gain in points", fontsize=8.5)
    axes.set_title(f"The ladder, {most} senders\n{label}", fontsize=11)
    return save(figure, path)


def _step(row: Evaluated) -> str:
    """A rung's name: gates stand in it, the learned one too."""
    if not row.who.senders:
        return f"{row.who.receiver} {'alone' if row.is_alone else row.way}"
    plain = row.how.gate.kind == "learned" and row.way == row.how.protocol.name
    return f"{row.way} (gate learned)" if plain else row.way


def pairs(rows: Sequence[Evaluated], path: Path, label: str) -> Path | None:
    """What every single sender changes for every receiver, in points; the receivers alone on the diagonal."""
    found = {(r.who.receiver, r.who.senders[0]): r for r in rows if len(r.who.senders) == 1 and r.how.protocol.fuses}
    alone = {r.who.receiver: r for r in rows if r.is_alone}
    names = [name for name in alone if any(name == receiver for receiver, _ in found)]
    if len(names) < 2:
        return None
    points = np.full((len(names), len(names)), np.nan)
    for (receiver, sender), row in found.items():
        if receiver in names and sender in names:
            points[names.index(receiver), names.index(sender)] = row.gain_points
    most = max(float(np.nanmax(np.abs(points))), 1.0)
    figure, axes = sheet(1.35 * len(names) + 2.4, 0.95 * len(names) + 1.9)
    axes.set_facecolor("#eceff2")
    image = axes.imshow(points, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for i, receiver in enumerate(names):
        for j, sender in enumerate(names):
            row = found.get((receiver, sender))
            said = f"{row.gain_points:+.1f}\n{stars(row.p_value)}" if row else ""
            said = f"alone\n{alone[receiver].accuracy:.1%}" if i == j else said
            dark = row is not None and abs(row.gain_points) > 0.6 * most
            axes.text(j, i, said, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    axes.set_xticks(range(len(names)), names, fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlabel(f"sender   ({STARS})", fontsize=8.5)
    axes.set_ylabel("receiver")
    figure.colorbar(image, label="percentage points over the receiver alone")
    axes.set_title(f"Every directed pair, C2C\n{label}", fontsize=11)
    return save(figure, path, grid=False)
