"""What a training says it will take, by a clock that a test turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_training import settings, train

from fedray.reporting import report
from fedray.training import fuser_job
from fedray.training.pace import MEASURED, Pace, duration


@pytest.mark.parametrize("first", [0, 400])
def test_the_first_steps_foretell_all(first: int) -> None:
    """The step that warms up and one that validates do not count; of a resumed training, only what is left does."""
    seconds = iter((100.0, 102.0, 104.0, 134.0, 136.0, 138.0, *[1000.0] * 10))
    pace = Pace(lambda: next(seconds))
    said = [pace.after(first + step, 600) for step in range(1, 12)]
    assert said == [False] * MEASURED + [True] + [False] * 5
    assert (pace.step_s, pace.whole_s) == (2.0, 2.0 * (600 - first))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "a second"), (89, "89 seconds"), (90, "1.5 minutes"), (4300, "72 minutes"), (5400, "1.5 hours")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_it_is_said_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(tmp_path)
    assert fuser_job.run(made) == 0
    shown = capsys.readouterr().out
    (part,) = report.read(tmp_path / "out").learned
    assert (part.figures["seconds/foretold"] or 0) > 0
    assert shown.count(" to step 12 (") == 1 and shown.index(" to step 12 (") < shown.index("report: ")
    _, part = train(settings(tmp_path / "short", steps=MEASURED), capsys)
    assert "seconds/foretold" not in part.figures, "it is over before"
