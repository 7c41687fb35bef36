"""The figure of FedAttn's trade-off, on rows that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fedray.evaluation.cases import Case
from fedray.evaluation.figures import base, fedattn
from fedray.evaluation.measure import Measurement
from fedray.evaluation.results import Results
from fedray.llm.catalogue import copies
from fedray.methods.fedattn import FedAttn
from fedray.methods.method import Method
from fedray.protocols import ALONE
from fedray.questions.tasks import Question
from fedray.reporting.report import Report, Who
from fedray.types import KVSpec, MemberInfo

POOLED, BARE = "tiny-evidence-pooled", "tiny-evidence-question"
QUESTIONS = [Question(f"q{i}", f"{i}?", ("x", "y"), 0, "", f"entity-{i}") for i in range(10)]
Points = dict[str, list[tuple[float, float]]]
MEMBERS = {
    name: MemberInfo(name, "llama", 1, KVSpec(7, 2, 8), llm, "t", "cpu", "float32", "here", 1, 512)
    for llm in ("llama-1b", "qwen3-0.6b")
    for name in copies(llm, 3)
}


def made(*rows: tuple[str, str, FedAttn | None, int, int]) -> Report:
    """(task, receiver, how, right of ten, bytes per token) of every row; who answers alone has no `how`."""
    found = Results(MEMBERS)
    for task, receiver, how, right, sent in rows:
        method = Method(how).canonical() if how else ALONE
        case = Case(task, receiver, copies(receiver, how.participants)[1:] if how else (), method)
        answers = tuple(i < right for i in range(10))
        found.add(case, 0, QUESTIONS, Measurement(answers, payload_bytes=100 * sent, prompt_tokens=100))
    return Report("evaluate", "tiny", 0, "complete", Who("llama-1b"), Method(FedAttn()), rows=found.rows())


def drawn(report: Report, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[Figure]]:
    kept: list[Figure] = []
    save = base.save

    def keep(figure: Figure, *rest: Any) -> Path:
        kept.append(figure)
        return save(figure, *rest)

    monkeypatch.setattr(base, "save", keep)
    return fedattn.draw(report, folder), kept


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


def levels(axes: Axes) -> dict[str, float]:
    """The horizontal lines."""
    named = {str(line.get_label()).split("  ")[0]: line for line in axes.lines}
    return {name: points(line)[0][1] for name, line in named.items() if name[0] != "_"}


def accuracies(axes: Axes) -> Points:
    bars = [of for of in axes.containers if isinstance(of, ErrorbarContainer)]
    return {str(of.get_label()): points(of.lines[0]) for of in bars}


def bytes_of(axes: Axes) -> Points:
    return {str(line.get_label()): points(line) for line in axes.lines}


ROWS = (
    (POOLED, "llama-1b", None, 9, 0),
    (BARE, "qwen3-0.6b", None, 1, 0),
    (BARE, "llama-1b", None, 3, 0),
    (POOLED, "qwen3-0.6b", None, 5, 0),
    (POOLED, "llama-1b", FedAttn(sync_every=4), 6, 20),
    (POOLED, "llama-1b", FedAttn(sync_every=1), 8, 70),
    (POOLED, "qwen3-0.6b", FedAttn(sync_every=2), 4, 99),
    (POOLED, "llama-1b", FedAttn(sync_every=1, exchange=0.5, score="rare"), 7, 35),
)


@pytest.mark.usefixtures("full_size")
def test_accuracy_and_bytes_against_each_setting_that_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, (figure,) = drawn(made(*ROWS), tmp_path, monkeypatch)
    assert paths == [tmp_path / "fedattn.png"] and Image.open(paths[0]).width > 500
    interval, share, below_interval, below_share = figure.axes
    assert accuracies(interval) == {"N=3": [(1, 0.8), (4, 0.6)]}, "the other LLM's row is not on the line"
    assert bytes_of(below_interval) == {"N=3": [(1, 70), (4, 20)]}
    assert accuracies(share) == {"N=3, H=1, rare": [(0.5, 0.7), (1, 0.8)]}, "the whole exchange belongs to every score"
    assert bytes_of(below_share) == {"N=3, H=1, rare": [(0.5, 35), (1, 70)]}
    for axes in (interval, share):
        assert levels(axes) == {"joint attention": 0.9, "publisher alone": 0.3}, "the receiver's own"
    assert below_share.get_xlabel() == "share of keys and values sent"


def test_the_publisher_alone_is_a_line_of_its_task_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = [("gsm8k", row[1], row[2], row[3], row[4]) for row in ROWS if row[0] == POOLED]
    paths, found = drawn(made(*ROWS, *other), tmp_path, monkeypatch)
    assert [path.name for path in paths] == ["fedattn.png", "fedattn-gsm8k.png"]
    assert [levels(figure.axes[0]).keys() for figure in found] == [
        {"joint attention", "publisher alone"},
        {"joint attention"},
    ]


def test_nothing_is_drawn_where_nothing_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(made(*ROWS[:5]), tmp_path, monkeypatch) == ([], [])
