"""SpecFed's trade-offs (arXiv 2604.25777): what drafting and sending less bring and cost, with the paper's bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedray.evaluation import figures
from fedray.evaluation.figures import ALONE, COLORS, save
from fedray.report import Evaluated, Report

Read = Callable[[Evaluated], float | None]


def draw(report: Report, folder: Path) -> list[Path]:
    """specfed-gamma.png and specfed-top-k.png, each if its rows are there."""
    rows = [row for row in report.evaluated if row.speculation]
    if not rows:
        return []
    label = figures.label(report.zoo, rows[0].task, max(row.n for row in rows))
    drawn = (by_gamma(rows, folder / "specfed-gamma.png", label), by_top_k(rows, folder / "specfed-top-k.png", label))
    return [path for path in drawn if path]


def by_gamma(rows: Sequence[Evaluated], path: Path, label: str) -> Path | None:
    """Tokens per forward pass, acceptance, bytes and throughput against gamma, a line per temperature and K."""
    drafted = [row for row in rows if row.gamma.isdigit()]
    if len({row.gamma for row in drafted}) < 2:
        return None
    lines = {(r.temperature, r.top_k, r.reconstruct): "" for r in drafted}
    lines = [key for key in lines if len(_of(drafted, key)) > 1]
    panels: tuple[tuple[str, Read], ...] = (
        ("tokens per worker forward", _read("tokens_per_forward")),
        ("acceptance rate", _read("acceptance")),
        ("bytes up per token", _read("bytes_per_token")),
        ("tokens per second", lambda row: row.tokens_per_s),
    )
    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (name, read) in zip(grid.flat, panels, strict=True):
        for number, key in enumerate(lines):
            of_key = sorted(_of(drafted, key), key=lambda row: int(row.gamma))
            temperature, top_k, how = key
            said = f"T {temperature:g}, K {_share(top_k)}, {how}"
            _line(axes, [int(r.gamma) for r in of_key], [read(r) for r in of_key], said, COLORS[2 * number % 20])
        baseline = next((r for r in rows if r.gamma == "none" and r.top_k == "1.0"), None)
        value = None if baseline is None else read(baseline)
        if value is not None:
            axes.axhline(value, color=ALONE, linestyle="--", label="no drafts, whole distributions")
        if name.startswith("bytes"):
            axes.set_yscale("log")
        axes.set_xlabel("gamma, tokens drafted per round")
        axes.set_ylabel(name)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"SpecFed: what drafting brings\n{label}", fontsize=11)
    return _save(figure, grid.flat, path)


def by_top_k(rows: Sequence[Evaluated], path: Path, label: str) -> Path | None:
    """Acceptance, bytes and throughput against K / V; Delta and |Delta alpha| with their bounds, where measured."""
    shared = [row for row in rows if "." in row.top_k and row.gamma != "none"]
    keys = [key for key in dict.fromkeys((r.temperature, r.gamma) for r in shared)]
    keys = [key for key in keys if len({r.top_k for r in shared if (r.temperature, r.gamma) == key}) > 1]
    if not keys:
        return None
    panels: tuple[tuple[str, Read, Read | None], ...] = (
        ("bytes up per position", _read("bytes_per_position"), None),
        ("acceptance rate", _read("acceptance"), None),
        ("Delta, mean (dotted: 2 sum w epsilon)", _read("delta"), _read("delta_bound")),
        ("|Delta alpha|, mean (dotted: sum w epsilon)", _read("gap"), _read("gap_bound")),
        ("tokens per second", lambda row: row.tokens_per_s, None),
        ("accuracy", lambda row: row.accuracy, None),
    )
    figure = Figure(figsize=(13.5, 7.0), layout="constrained")
    grid = figure.subplots(2, 3)
    for axes, (name, read, bound) in zip(grid.flat, panels, strict=True):
        number = 0
        for temperature, gamma in keys:
            for how in ("renorm", "spread"):
                of_key = [r for r in shared if (r.temperature, r.gamma) == (temperature, gamma)]
                of_key = [r for r in of_key if r.reconstruct == how or r.top_k == "1.0"]
                of_key.sort(key=lambda row: float(row.top_k))
                if not any(r.reconstruct == how and r.top_k != "1.0" for r in of_key):
                    continue
                x, color = [100 * float(r.top_k) for r in of_key], COLORS[number % 20]
                _line(axes, x, [read(r) for r in of_key], f"T {temperature:g}, gamma {gamma}, {how}", color)
                if bound:
                    limits = [(p, b) for p, r in zip(x, of_key, strict=True) if (b := bound(r)) is not None]
                    axes.plot([p for p, _ in limits], [b for _, b in limits], ":", color=color)
                number += 1
        axes.set_xscale("log")
        if name.startswith(("bytes", "Delta", "|Delta")):
            axes.set_yscale("symlog", linthresh=1e-4) if "elta" in name else axes.set_yscale("log")
        axes.set_xlabel("K / V, % of the entries that travel")
        axes.set_ylabel(name)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"SpecFed: what sending less costs, and the paper's bounds\n{label}", fontsize=11)
    return _save(figure, grid.flat, path)


def _read(name: str) -> Read:
    return lambda row: row.speculation[name]


def _of(rows: Sequence[Evaluated], key: tuple[float, str, str]) -> list[Evaluated]:
    return [r for r in rows if (r.temperature, r.top_k, r.reconstruct) == key]


def _share(top_k: str) -> str:
    return f"{100 * float(top_k):g} %" if "." in top_k else top_k


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], label: str, color: object) -> None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    axes.plot([a for a, _ in known], [b for _, b in known], "o-", color=color, label=label, markersize=4)  # pyright: ignore[reportArgumentType]


def _save(figure: Figure, every: Sequence[Axes], path: Path) -> Path:
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return save(figure, next(iter(every)), path)
