"""A training of seconds, run as its job is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedray.reporting import report
from fedray.reporting.report import Learned, Report
from fedray.training import fuser_job
from fedray.training.settings import FuserJob, build_fuser_job, check_fuser_job

SENDER, RECEIVER = "qwen2.5-0.5b", "qwen3-0.6b"
SHORT = {"steps": 12, "limit": 24, "batch_size": 8, "hidden": 16, "validate_every": 5, "save_every": 2}


def settings(folder: Path, **values: Any) -> FuserJob:
    given = {"sender": SENDER, "ray": False, "tracking": False, **SHORT, **values}
    made = build_fuser_job({**given, "registry": {"path": folder / "registry"}, "output": folder / "out"})
    check_fuser_job(made)
    return made


def train(made: FuserJob, capsys: pytest.CaptureFixture[str]) -> tuple[Report, Learned]:
    """Run the job; its report and the one part it trained."""
    assert fuser_job.run(made) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last == f"report: {(made.output / 'report.json').absolute()}"
    left = report.read(made.output)
    (part,) = left.learned
    return left, part
