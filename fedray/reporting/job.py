"""The frame of every job: one MLflow run, one status, and a report whatever happens.

However the work ends, what it found is kept before it is shown: report.json, then MLflow, then the screen, and the
report's path last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

from fedray.reporting import report as reports
from fedray.reporting.report import Report, Tracked
from fedray.reporting.screen import Screen
from fedray.settings.settings import TrackingSettings
from fedray.tracking import Status as TrackerStatus
from fedray.tracking import Tracker, browse
from fedray.types import FedrayError

Status = Literal["complete", "interrupted", "failed"]
INTERRUPTED = 130  # exit code
_ENDS: dict[Status, TrackerStatus] = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_UNTRACKED = TrackingSettings(enabled=False)


class JobSettings(Protocol):
    """What the frame needs of a job's settings."""

    @property
    def output(self) -> Path: ...


S = TypeVar("S", bound=JobSettings)
V = TypeVar("V", bound=Screen)


class Job(ABC, Generic[S, V]):
    """One run of one job. Subclasses do the work and report what came of it; `run` does the rest."""

    name: ClassVar[str]  # as in report.json

    def __init__(
        self, settings: S, screen: V, title: str = "", tracking: TrackingSettings = _UNTRACKED, *, private: bool = False
    ) -> None:
        """title: of the run in MLflow; private: prompts and answers reach neither MLflow nor other users' eyes."""
        self.settings, self.screen, self.private = settings, screen, private
        self.tracker = Tracker(tracking, settings.output, name=title, private=private)

    @abstractmethod
    def work(self) -> None:
        """Do it. Raises FedrayError."""

    @abstractmethod
    def report(self, status: Status) -> Report | None:
        """Say what came of it so far; None is nothing."""

    def keep(self, report: Report) -> None:
        """Write what belongs beside the report, and log figures."""

    def show(self, report: Report) -> None:
        """Print what came of it."""

    def run(self) -> int:
        """Do the job; returns the exit code. Prints `report: PATH` last.

        Raises FedrayError for mistakes of the user's and of the outside world; what was done until then is kept.
        """
        status: Status = "failed"
        with self.tracker:
            try:
                self.work()
                status = "complete"
            except KeyboardInterrupt:
                status = "interrupted"
            finally:
                if (report := self.report(status)) is not None:
                    with suppress(FedrayError) if status == "failed" else nullcontext():  # the first failure is told
                        self._leave(report, status)
        return INTERRUPTED if status == "interrupted" else 0

    def save(self, report: Report) -> Path:
        """Write report.json as it stands; a job that is killed leaves the last one. Raises FedrayError."""
        return reports.write(report, self.settings.output, private=self.private)

    def _leave(self, report: Report, status: Status) -> None:
        try:
            path = self.save(report)
            if where := self.tracker.run():
                path = self.save(replace(report, tracking=Tracked(*where)))
            self.keep(report)
            self.tracker.artifact(path, quotes=True)
            self.tracker.artifact(self.settings.output / ".hydra", "hydra", quotes=True)
            self.tracker.close(_ENDS[status])
        finally:  # what no disk takes can still be read
            self.show(report)
        self.show_problem(self.tracker, self.settings.output)
        if where and not self.tracker.problem:
            self.screen.line(browse(*where))
        print(f"report: {path.absolute()}", flush=True)

    def show_problem(self, tracker: Tracker, folder: Path) -> None:
        """Print why MLflow does not have a run, if so, and how to send it later."""
        if tracker.problem:
            send = f"python -m fedray.tracking {folder}"
            self.screen.line(f"{tracker.problem}; the figures wait here, send them with `{send}`")
