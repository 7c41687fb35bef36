"""SpecFed's trade-offs (arXiv 2604.25777): what drafting and sending less bring and cost, with the paper's bounds.

Rows that were measured against whole distributions sent these beside: they tell Delta and |Delta alpha|, all others the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.evaluation.figures import base
from fedray.evaluation.figures.base import COLORS
from fedray.methods.specfed import SpecFed
from fedray.reporting.report import Evaluated, Report

Read = Callable[[Evaluated], float | None]
Lines = Mapping[tuple[float, str, str], list[Evaluated]]


def draw(report: Report, folder: Path) -> list[Path]:
    """specfed-gamma.png and specfed-top-k.png, each if its rows are there; a second task has its name in the file's."""
    drawn: list[Path] = []
    for rows, end, label in base.by_task(report, [row for row in report.evaluated if row.found.speculation]):
        for name, figure in (("gamma", by_gamma(rows, label)), ("top-k", by_top_k(rows, label))):
            if figure is not None:
                drawn.append(base.save(figure, folder / f"specfed-{name}{end}.png"))
    return drawn


def by_gamma(rows: Sequence[Evaluated], label: str) -> Figure | None:
    """Tokens per forward pass, acceptance, bytes and throughput against gamma, a line per temperature and K; a star is
    gamma=auto at what it drafted on average, a dashed line the same temperature without drafts."""
    plain = [row for row in rows if not _told(row).measure]
    lines: dict[tuple[float, str, str], list[Evaluated]] = {}
    for row in sorted((row for row in plain if _drafts(row)), key=_drafts):
        lines.setdefault(_but_gamma(row), []).append(row)
    lines = {key: line for key, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    paced = {_but_gamma(r): r for r in plain if _told(r).gamma == "auto"}
    baselines = {r.temperature or 0.0: r for r in plain if _told(r).gamma == 0 and _told(r).share == 1}
    panels: tuple[tuple[str, Read], ...] = (
        ("tokens per worker forward", _read("tokens_per_forward")),
        ("acceptance rate", _read("acceptance")),
        ("bytes up per token", _read("bytes_per_token")),
        ("tokens per second", lambda row: row.cost.tokens_per_s),
    )
    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (name, read) in zip(grid.flat, panels, strict=True):
        for number, (key, line) in enumerate(lines.items()):
            (temperature, _, how), color = key, COLORS[2 * number % 20]
            said = f"T {temperature:g}, K {_entries(line[0])}, {how}"
            _line(axes, [_drafts(r) for r in line], [read(r) for r in line], said, color)
            auto, baseline = paced.get(key), baselines.get(temperature)
            if auto and (drafted := auto.found.speculation["drafted_per_round"]) is not None:
                _line(axes, [drafted], [read(auto)], f"T {temperature:g}, auto", color, "*")
            if baseline and (value := read(baseline)) is not None:
                without = f"T {temperature:g}, no drafts, whole distributions"
                axes.axhline(value, color=color, linestyle="--", label=without)
        if name.startswith("bytes"):
            axes.set_yscale("log")
        axes.set_xlabel("gamma, tokens drafted per round")
        axes.set_ylabel(name)
    grid[1, 1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"SpecFed: what drafting brings\n{label}", fontsize=11)
    return figure


def by_top_k(rows: Sequence[Evaluated], label: str) -> Figure | None:
    """Acceptance, bytes, throughput and accuracy against K / V; Delta and |Delta alpha| with their bounds, where they
    were measured."""
    plain = _by_share([row for row in rows if not _told(row).measure])
    measured = _by_share([row for row in rows if _told(row).measure])
    if not plain and not measured:
        return None
    panels: tuple[tuple[str, Lines, Read, Read | None], ...] = (
        ("bytes up per position", plain, _read("bytes_per_position"), None),
        ("acceptance rate", plain, _read("acceptance"), None),
        ("Delta, mean (dotted: 2 sum w epsilon)", measured, _read("delta"), _read("delta_bound")),
        ("tokens per second", plain, lambda row: row.cost.tokens_per_s, None),
        ("accuracy", plain, lambda row: row.accuracy, None),
        ("|Delta alpha|, mean (dotted: sum w epsilon)", measured, _read("gap"), _read("gap_bound")),
    )
    places = list(dict.fromkeys((temperature, gamma) for temperature, gamma, _ in (*plain, *measured)))
    figure = Figure(figsize=(13.5, 7.0), layout="constrained")
    grid = figure.subplots(2, 3)
    for axes, (name, lines, read, bound) in zip(grid.flat, panels, strict=True):
        for (temperature, gamma, how), line in lines.items():
            color = COLORS[(2 * places.index((temperature, gamma)) + (how == "renorm")) % 20]
            x = [100 * _share(row) for row in line]
            _line(axes, x, [read(r) for r in line], f"T {temperature:g}, gamma {gamma}, {how}", color)
            if bound:
                _line(axes, x, [bound(r) for r in line], "", color, ":")
        axes.set_xscale("log")
        if lines is measured:
            axes.set_yscale("symlog", linthresh=1e-4)  # nothing is lost where all entries travel
            axes.set_ylim(bottom=0)
        elif name.startswith("bytes"):
            axes.set_yscale("log")
        axes.set_xlabel("K / V, % of the entries that travel")
        axes.set_ylabel(name)
    for lines, axes in ((plain, grid[0, 0]), (measured, grid[0, 2])):
        if lines:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"SpecFed: what sending less costs, and the paper's bounds\n{label}", fontsize=11)
    return figure


def _by_share(rows: Sequence[Evaluated]) -> Lines:
    """Rows that differ in K / V alone, by temperature, gamma and reconstruction; where all entries travel there is
    nothing to reconstruct, and a row belongs to every one."""
    drafted = sorted((row for row in rows if _told(row).gamma and _told(row).share), key=_share)
    lines: dict[tuple[float, str, str], list[Evaluated]] = {}
    for row in drafted:
        if _share(row) != 1:
            lines.setdefault((row.temperature or 0.0, str(_told(row).gamma), _told(row).reconstruct), []).append(row)
    for (temperature, gamma, _), line in lines.items():
        whole = (row for row in drafted if _share(row) == 1)
        line += [r for r in whole if (r.temperature or 0.0, str(_told(r).gamma)) == (temperature, gamma)]
    return {key: line for key, line in lines.items() if len(line) > 1}


def _share(row: Evaluated) -> float:
    return _told(row).share or 0.0


def _read(name: str) -> Read:
    return lambda row: row.found.speculation[name]


def _entries(row: Evaluated) -> str:
    """K as a reader wants it: a count, or per cent."""
    share = _told(row).share
    return str(_told(row).top_k) if share is None else f"{100 * share:g} %"


def _told(row: Evaluated) -> SpecFed:
    return row.how.of(SpecFed)


def _drafts(row: Evaluated) -> int:
    """Tokens drafted per round; 0 where there are none, or as many as the acceptance rate says."""
    gamma = _told(row).gamma
    return 0 if gamma == "auto" else gamma


def _but_gamma(row: Evaluated) -> tuple[float, str, str]:
    return row.temperature or 0.0, str(_told(row).top_k), _told(row).reconstruct


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float | None], label: str, color: object, style: str = "o-"
) -> None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    size = 10 if style == "*" else 4
    if known:
        axes.plot(*zip(*known, strict=True), style, color=color, label=label, markersize=size)  # pyright: ignore[reportArgumentType]
