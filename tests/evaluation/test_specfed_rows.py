"""SpecFed in an evaluation: made-up measurements become rows, a table, figures, and a ledger that gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fedray.evaluation import table
from fedray.evaluation.cases import Case
from fedray.evaluation.figures import specfed
from fedray.evaluation.ledger import Ledger
from fedray.evaluation.measure import Measurement
from fedray.evaluation.results import Results
from fedray.methods.method import Method
from fedray.methods.specfed import SpecFed, Speculation
from fedray.protocols import ALONE
from fedray.questions.tasks import Question
from fedray.reporting import report
from fedray.reporting.report import Evaluated, Found, Report, Who
from fedray.types import KVSpec, MemberInfo

DRAFT, WORKERS = "qwen2.5-0.5b", ("qwen2.5-1.5b", "qwen2.5-coder-0.5b")
MEMBERS = {
    name: MemberInfo(name, "qwen2", 1, KVSpec(24, 2, 64), f"hash-{name}", "t", "cpu", "float32", "here", 1, 512)
    for name in (DRAFT, *WORKERS)
}
QUESTIONS = [Question(f"q{i}", f"{i}?", ("x", "y"), 0, "bird", f"entity-{i}", scoring="told") for i in range(4)]
GAMMAS, SHARES = (1, 2, 4), (0.001, 0.01, 0.1)
ROUNDS = Speculation(
    drafted=(8, 4),
    decided=(6, 4),
    accepted=(5, 3),
    turns=4,
    emitted=12,
    forwards=4,
    verified=24,
    payload_bytes=2400,
    positions=12,
    kept=11.4,
)
MEASURED = replace(
    ROUNDS,
    measured=12,
    delta=0.6,
    delta_bound=1.2,
    delta_most=0.2,
    drafts_measured=10,
    gap=0.2,
    gap_bound=0.5,
    gap_most=0.1,
)


def case(t: float = 1.0, **told: Any) -> Case:
    return Case("tiny-tell", DRAFT, WORKERS, Method(SpecFed(**told)).canonical(), t)


def own(of: Case | Evaluated) -> SpecFed:
    return (of.method if isinstance(of, Case) else of.how).of(SpecFed)


def answered(of: Case) -> Measurement:
    """Rounds whose figures tell which case they are of: tokens per second are 100 gamma, of those measured 1."""
    how = own(of)
    pace = 1 if how.measure else 300 if how.gamma == "auto" else 100 * how.gamma or 50
    share, renormalised = float(how.top_k), how.reconstruct == "renorm"
    found = MEASURED if how.measure else ROUNDS
    found = replace(found, payload_bytes=round(240_000 * share), delta=12 * share * (1 + renormalised))
    return Measurement((True, True, False, True), answer_tokens=pace, answering_s=1.0, speculation=found)


CASES = [
    case(t=0.0, draft="none", top_k=1.0),
    case(draft="none", top_k=1.0),
    *(case(t, gamma=gamma) for t in (0.0, 1.0) for gamma in (1, 2, 4, "auto")),
    *(case(top_k=share) for share in (0.1, 0.001, 1.0)),
    *(case(top_k=share, reconstruct=how, measure=True) for share in SHARES for how in ("renorm", "spread")),
]


@pytest.fixture(scope="module")
def rows() -> tuple[Evaluated, ...]:
    found = Results(MEMBERS)
    alone = Measurement((True, False, False, False))
    found.add(Case("tiny-tell", DRAFT, (), ALONE), 0, QUESTIONS, alone)
    for each in CASES:
        found.add(each, 0, QUESTIONS, answered(each))
    return found.rows()


def panel(figure: Figure | None, name: str) -> Axes:
    assert figure is not None
    return next(axes for axes in figure.axes if axes.get_ylabel().startswith(name))


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    return at(next(line for line in axes.lines if line.get_label() == label))


def at(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line.get_xydata()]  # pyright: ignore[reportGeneralTypeIssues]


def bounds(axes: Axes) -> list[list[float]]:
    return [[y for _, y in at(line)] for line in axes.lines if line.get_linestyle() == ":"]


def test_drafting_is_drawn_without_what_was_measured(rows: Sequence[Evaluated]) -> None:
    figure = specfed.by_gamma(rows[1:], "here")
    speed = panel(figure, "tokens per second")
    for t in (0, 1):
        assert points(speed, f"T {t}, K 1 %, spread") == [(1, 100), (2, 200), (4, 400)]
        assert points(speed, f"T {t}, auto") == [(3, 300)], "12 tokens drafted in 4 turns"
        assert [y for _, y in points(speed, f"T {t}, no drafts, whole distributions")] == [50, 50]
    assert len(speed.lines) == 6
    assert points(panel(figure, "acceptance"), "T 1, K 1 %, spread") == [(1, 0.8), (2, 0.8), (4, 0.8)]
    assert points(panel(figure, "tokens per worker"), "T 0, K 1 %, spread")[0] == (1, 3)
    assert points(panel(figure, "bytes"), "T 0, K 1 %, spread")[0] == (1, 200)


def test_entries_are_drawn_once_and_their_error_where_it_was_measured(rows: Sequence[Evaluated]) -> None:
    figure = specfed.by_top_k(rows[1:], "here")
    speed = panel(figure, "tokens per second")
    assert points(speed, "T 1, gamma 4, spread") == [(share, 400) for share in (0.1, 1, 10, 100)], "one point at each K"
    for name in ("tokens per second", "bytes", "acceptance", "accuracy"):
        assert len(panel(figure, name).lines) == 1, "measured rows ship whole distributions beside"
    assert points(panel(figure, "bytes"), "T 1, gamma 4, spread")[1] == (1, pytest.approx(100))
    delta, gap = panel(figure, "Delta"), panel(figure, "|Delta")
    for factor, how in ((1, "spread"), (2, "renorm")):
        found = points(delta, f"T 1, gamma 4, {how}")
        assert found == [(100 * share, pytest.approx(factor * share)) for share in SHARES]
        assert points(gap, f"T 1, gamma 4, {how}")[0] == (0.1, pytest.approx(0.02))
    assert bounds(delta) == [[pytest.approx(0.1)] * 3] * 2
    assert bounds(gap) == [[pytest.approx(0.05)] * 3] * 2


def of(rows: Sequence[Evaluated]) -> Report:
    return Report("evaluate", "tiny", 0, "complete", Who(DRAFT, WORKERS), found=Found(n=4), rows=tuple(rows))


@pytest.mark.usefixtures("full_size")
def test_figures_are_left_where_their_rows_are(rows: Sequence[Evaluated], tmp_path: Path) -> None:
    drawn = specfed.draw(of(rows), tmp_path)
    assert [path.name for path in drawn] == ["specfed-gamma.png", "specfed-top-k.png"]
    assert all(Image.open(path).size > (600, 400) for path in drawn)
    assert specfed.draw(of([row for row in rows if row.is_alone or own(row).gamma in (0, "auto")]), tmp_path) == []
    only = [row for row in rows if not row.is_alone and own(row).measure]
    assert [path.name for path in specfed.draw(of(only), tmp_path)] == ["specfed-top-k.png"]
    other = [replace(row, task="tiny-evidence") for row in only]
    assert [path.name for path in specfed.draw(of([*only, *other]), tmp_path)] == [
        "specfed-top-k.png",
        "specfed-top-k-tiny-evidence.png",
    ]


def test_a_share_without_a_point_is_a_share(rows: Sequence[Evaluated]) -> None:
    assert [SpecFed(top_k=k).share for k in (1e-05, 1.0, 1, 320)] == [1e-05, 1.0, None, None]
    told = [replace(rows[-1].how, protocol=replace(own(rows[-1]), top_k=k)) for k in (1e-05, 0.01)]
    small = [replace(rows[-1], how=how) for how in told]
    assert points(panel(specfed.by_top_k(small, "here"), "Delta"), "T 1, gamma 4, spread")[0][0] == 0.001


def test_a_report_gives_its_rows_back(rows: Sequence[Evaluated], tmp_path: Path) -> None:
    left = of(rows)
    found = report.read(report.write(left, tmp_path))
    assert found == left and sum(own(row).measure for row in found.evaluated[1:]) == 6


def test_the_table_of_rounds(rows: Sequence[Evaluated]) -> None:
    text = table.as_markdown(of(rows))
    own = text[text.index("## SpecFed") :].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in own if "specfed" in line]
    lines = {way: figures for way, *figures in cells}
    assert len(lines) == len(CASES)
    assert lines["specfed (gamma 4, K 0.01, spread, T 1)"] == [
        *("3.00", "0.80", "100", "200", "400.0", "0.0500", "", "", "75.0%")
    ]
    measured = lines["specfed (gamma 4, K 0.01, renorm, measured, T 1)"]
    assert measured[4:] == ["1.0", "0.0500", "0.0200 (0.1000)", "0.0200 (0.0500)", "75.0%"]
    assert lines["specfed (no drafts, K 1.0, spread, T 1)"][4] == "50.0"


def test_the_ledger_gives_rounds_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number, each in enumerate((CASES[3], CASES[-1])):
        found = answered(each)
        ledger.put({"case": number}, found)
        again = ledger.get({"case": number})
        assert again == found and again is not None and again.speculation is not None
        assert again.speculation + ROUNDS == (found.speculation or ROUNDS) + ROUNDS, "rounds can be added up"
