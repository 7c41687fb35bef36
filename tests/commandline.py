"""A job called as a process would call it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from fedray.command_line import EVALUATION, FUSER_TRAINING, launch
from fedray.evaluation.settings import EvaluateSettings
from fedray.settings.settings import Settings


class Call:
    """Calls `launch` as a process would: argv in; exit code, stderr and the jobs that ran out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.ran: list[Settings] = []

    def __call__(self, *arguments: str, job: Callable[[Settings], int | None] | None = None) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["federate.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            launch(job or self.ran.append, job_name="federate")
        assert sys.argv == ["federate.py", *arguments]
        return self._left(stop.value)

    def evaluate(self, *arguments: str, job: Callable[[EvaluateSettings], int | None]) -> tuple[int, str]:
        """The same for jobs/evaluate.py."""
        self.monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            launch(job, "evaluate", "evaluate", EVALUATION)
        return self._left(stop.value)

    def train(self, *arguments: str) -> tuple[int, str]:
        """The same for jobs/train_fuser.py, which does run."""
        from fedray.training import fuser_job

        self.monkeypatch.setattr(sys, "argv", ["train_fuser.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            launch(fuser_job.run, "train_fuser", "train_fuser", FUSER_TRAINING)
        return self._left(stop.value)

    def _left(self, stop: SystemExit) -> tuple[int, str]:
        self.out, err = self.capsys.readouterr()
        assert isinstance(stop.code, int)
        return stop.code, err

    def settings(self, *arguments: str) -> Settings:
        assert self(*arguments) == (0, "")
        return self.ran[-1]
