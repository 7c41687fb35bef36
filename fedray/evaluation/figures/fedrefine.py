"""FedRefine's figure 3 (arXiv 2603.28772), drawn from an evaluation's rows: accuracy against senders, each sender on
its own, and seconds. A figure whose rows are not there is left out; a second task has its name in the file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fedray.evaluation.figures import base
from fedray.evaluation.figures.base import ALONE, save, sheet
from fedray.evaluation.table import STARS, stars
from fedray.reporting.report import Evaluated, Report, SenderOrder

INK = "#24292f"
# protocol, rephrase -> the paper's word, color, line
LINES = {
    ("c2c", "none"): ("KV, original", "#1f6feb", "-"),
    ("c2c", "shared"): ("KV, rephrased", "#6cb0ff", "--"),
    ("c2c", "distinct"): ("KV, rephrased for each", "#a5b4d4", ":"),
    ("t2t", "none"): ("Token, original", "#d4660a", "-"),
    ("t2t", "shared"): ("Token, rephrased", "#f5b26b", "--"),
    ("t2t", "distinct"): ("Token, rephrased for each", "#dcc7ac", ":"),
}


def draw(report: Report, folder: Path) -> list[Path]:
    """figure3a.png, figure3b.png and figure3c.png, each if its rows are there."""
    drawn: list[Path | None] = []
    order = report.who.order or SenderOrder("given", report.who.senders)
    own = [r for r in report.evaluated if r.who.receiver == report.who.receiver and r.how.control == "none"]
    for rows, end, label in base.by_task(report, own):
        drawn += (
            accuracy_by_senders(rows, order, folder / f"figure3a{end}.png", label),
            accuracy_by_sender(rows, order.senders, folder / f"figure3b{end}.png", label),
            seconds_by_way(rows, folder / f"figure3c{end}.png", label),
        )
    return [path for path in drawn if path]


def accuracy_by_senders(rows: Sequence[Evaluated], order: SenderOrder, path: Path, label: str) -> Path | None:
    """(a) Accuracy against the number of senders, who join in a fixed order; bands of one standard error."""
    lines = {
        way: [r for r in rows if line(r) == way and r.who.senders == order.senders[: len(r.who.senders)]]
        for way in LINES
    }
    joined = {way: points for way, points in lines.items() if len({len(r.who.senders) for r in points}) > 1}
    lines = {way: sorted(points, key=lambda r: len(r.who.senders)) for way, points in joined.items()}
    alone = _alone(rows)
    if not lines or alone is None:
        return None
    figure, axes = sheet(7.2, 4.8)
    _receiver_line(axes, alone)
    for way, points in lines.items():
        name, color, style = LINES[way]
        x = [len(r.who.senders) for r in points]
        y, error = (np.array([getattr(r, field) for r in points]) for field in ("accuracy", "stderr"))
        axes.fill_between(x, y - error, y + error, color=color, alpha=0.18, linewidth=0)
        axes.plot(x, y, style, marker="o", markersize=5, color=color, label=f"{name}  ({y[-1]:.1%} with {x[-1]})")
    most = max(len(points) for points in lines.values())
    joining = [f"{i}\n+{name}" for i, name in enumerate(order.senders[:most], 1)]
    axes.set_xticks(range(1, most + 1), joining, fontsize=8.5)
    axes.set_xlim(0.75, most + 0.25)
    axes.set_xlabel(f"senders, joining in the order {'fixed on validation questions' if order.n else 'given'}")
    _share(axes, min(r.accuracy - r.stderr for points in (*lines.values(), [alone]) for r in points))
    axes.set_title(f"Accuracy against the number of senders\n{label}", fontsize=11)
    axes.legend(frameon=False, fontsize=8.5, loc="best")
    return save(figure, path)


def accuracy_by_sender(rows: Sequence[Evaluated], order: Sequence[str], path: Path, label: str) -> Path | None:
    """(b) Point to point: each sender as the only one, by cache and by text."""
    bars = {
        way: {r.who.senders[0]: r for r in rows if line(r) == way and len(r.who.senders) == 1}
        for way in (("c2c", "none"), ("t2t", "none"))
    }
    names = [name for name in order if any(name in found for found in bars.values())]
    alone = _alone(rows)
    if len(names) < 2 or alone is None or not all(bars.values()):
        return None
    figure, axes = sheet(7.2, 4.4)
    _receiver_line(axes, alone)
    for offset, (way, found) in zip((-0.2, 0.2), bars.items(), strict=True):
        name, color, _ = LINES[way]
        x = [i + offset for i, sender in enumerate(names) if sender in found]
        own = [found[sender] for sender in names if sender in found]
        heights, errors = [r.accuracy for r in own], [r.stderr for r in own]
        drawn = axes.bar(x, heights, 0.38, yerr=errors, capsize=3, color=color, ecolor=INK, label=name.split(",")[0])
        axes.bar_label(drawn, [f"{r.accuracy:.1%}\n{stars(r.p_value)}" for r in own], padding=2, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    _share(axes)
    axes.set_title(f"One sender at a time\n{label}", fontsize=11)
    axes.legend(frameon=False, ncols=3, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.09))
    figure.supxlabel(STARS, fontsize=7.5, color=INK)
    return save(figure, path)


def seconds_by_way(rows: Sequence[Evaluated], path: Path, label: str) -> Path | None:
    """(c) Mean inference seconds of every way of answering with all senders, with p50 and p95."""
    most = max((len(r.who.senders) for r in rows), default=0)
    timed = [r for r in rows if r.seconds is not None and len(r.who.senders) in (0, most)]
    if len(timed) < 3:
        return None
    figure, axes = sheet(7.6, 0.5 * len(timed) + 1.7)
    y = np.arange(len(timed))[::-1]
    means, p50, p95 = (np.array([getattr(r.seconds, q) for r in timed]) for q in ("mean", "p50", "p95"))
    colors = [LINES[key][1] if (key := (r.how.protocol.name, r.how.rephrase)) in LINES else ALONE for r in timed]
    axes.barh(y, means, 0.62, color=colors)
    axes.hlines(y, p50, p95, color=INK, linewidth=1)
    axes.plot(p50, y, "D", color=INK, markersize=4.5, label="p50")
    axes.plot(p95, y, "|", color=INK, markersize=8, label="p95")
    for place, mean, reach in zip(y, means, np.maximum(means, p95), strict=True):
        said = f"{mean:.3f} s"
        axes.annotate(said, (reach, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(y, [seconds_label(r) for r in timed])
    axes.set_xlim(0, 1.16 * max(means.max(), p95.max()))
    axes.set_xlabel(f"mean seconds per question, asked one at a time ({max(r.cost.requests for r in timed)} each)")
    axes.set_title(f"Seconds per question, {most} senders\n{label}", fontsize=11)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    return save(figure, path)


def seconds_label(row: Evaluated) -> str:
    """A way of answering in the paper's words."""
    if not row.who.senders:
        return "receiver alone" if row.is_alone else f"receiver alone, {row.how.protocol.name}"
    how = row.how
    if (how.protocol.name, how.rephrase) not in LINES:
        return row.way
    name = LINES[how.protocol.name, how.rephrase][0]
    extras = ["gated"] * (how.t2t.gate != "none") + ["full hint budget"] * how.t2t.full
    extras += [f"gate {how.gate.kind}"] * (how.protocol.fuses and how.gate.kind != "learned")
    return f"{name} ({', '.join(extras)})" if extras else name


def line(row: Evaluated) -> tuple[str, str] | None:
    """Which of the figure's lines a row belongs to: as published, with the learned gate for caches."""
    how = row.how
    gated = not how.protocol.fuses or how.gate.kind == "learned"
    return (how.protocol.name, how.rephrase) if row.who.senders and how.published and gated else None


def _alone(rows: Sequence[Evaluated]) -> Evaluated | None:
    return next((row for row in rows if row.is_alone), None)


def _receiver_line(axes: Axes, alone: Evaluated) -> None:
    share, error = alone.accuracy, alone.stderr
    axes.axhspan(share - error, share + error, color=ALONE, alpha=0.2, linewidth=0)
    axes.axhline(share, color=ALONE, linewidth=1.6, label=f"{alone.who.receiver} alone  ({share:.1%})")


def _share(axes: Axes, lowest: float = 0.0) -> None:
    """An axis of shares, from a tenth below the lowest; bars start at 0."""
    low = max(0.0, np.floor(10 * lowest - 1) / 10) if lowest > 0 else 0.0
    axes.set_yticks(np.arange(0, 1.01, 0.1 if low else 0.2))
    axes.set_ylim(low, 1.02 if low else 1.12)
    axes.set_ylabel("accuracy (share right, ± stderr)")
