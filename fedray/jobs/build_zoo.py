"""The body of jobs/build_zoo.py: build what is missing, measure it, and report however it ends."""

from __future__ import annotations

from pathlib import Path

from fedray.jobs.zoo_screen import ZooScreen
from fedray.llm.catalogue import NAMES
from fedray.reporting import report as reports
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Learned, Report, Who
from fedray.schema import attributes
from fedray.settings.settings import BuildSettings
from fedray.types import FedrayError
from fedray.zoo.build import ZooTask, build, hash_of, members_of, stages


class Build(Job[BuildSettings, ZooScreen]):
    """One build. The report is rewritten after every part, so that a killed build has one."""

    name = "build_zoo"

    def __init__(self, settings: BuildSettings) -> None:
        screen = ZooScreen("tiny")
        super().__init__(settings, screen, f"build zoo {settings.seed}", settings.tracking)
        self.seconds = _before(settings.output)
        self.built: dict[str, float] = {}

    def work(self) -> None:
        settings = self.settings
        self.tracker.tags(job="build_zoo", zoo="tiny")
        told = attributes(settings, "seed", "everything", "shorten")
        self.tracker.params(**told)
        with self.screen.follow() as follow:
            self.built = build(
                settings.output, workers=settings.workers, **told, on_progress=follow, on_done=self._done
            )

    def _done(self, task: ZooTask, spent: float) -> None:
        self.seconds[str(task)] = spent
        self.tracker.metrics({f"seconds/{task}": spent})
        self.save(self.report("interrupted"))

    def report(self, status: Status) -> Report:
        settings = self.settings
        there = members_of(settings.output)
        tasks = [task for stage in stages(settings.everything) for task in stage]
        hashes = {task: hash_of(task, settings.output, there) for task in tasks}
        parts = tuple(_part(task, digest, self.seconds.get(str(task), 0.0)) for task, digest in hashes.items())
        return Report(self.name, "tiny", settings.seed, status, Who(NAMES[0], NAMES[1:]), learned=parts)

    def show(self, report: Report) -> None:
        self.screen.built(self.built, self.settings.seed)
        path = self.settings.output
        self.screen.line(f"to measure it: python jobs/evaluate.py +experiment=zoo zoo.path={path}")


def run(settings: BuildSettings) -> int:
    """Run the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    return Build(settings).run()


def _part(task: ZooTask, digest: str | None, seconds: float) -> Learned:
    status = "complete" if digest else "interrupted"
    return Learned(str(task), task.kind, status, hash=digest and digest[:16], seconds=seconds)


def _before(folder: Path) -> dict[str, float]:
    """Read the seconds of the parts that an earlier run built."""
    try:
        return {part.name: part.seconds for part in reports.read(folder).learned}
    except FedrayError:  # no report yet
        return {}
