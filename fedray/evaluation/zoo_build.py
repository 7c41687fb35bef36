"""The body of jobs/build_zoo.py: build what is missing, measure it, and leave a report whatever happens."""

from __future__ import annotations

from pathlib import Path

from fedray import report as reports
from fedray.evaluation import zoo_table
from fedray.llm.catalogue import NAMES
from fedray.report import Learned, Report, Tracked
from fedray.settings import BuildSettings
from fedray.tracking import Tracker
from fedray.types import FedrayError
from fedray.zoo import screen
from fedray.zoo.build import Task, hash_of, members_of, stages


def run(settings: BuildSettings) -> int:
    """Do the job; returns the exit code. Prints `report: PATH` last.

    The report is written anew with every part that is done: a killed build has one too. Raises FedrayError.
    """
    seconds = _before(settings.output)
    status = "failed"
    with Tracker(settings.tracking, settings.output, name=f"build zoo {settings.seed}") as tracker:
        tracker.tags(job="build_zoo", zoo="tiny")
        tracker.params(seed=settings.seed, everything=settings.everything, shorten=settings.shorten)

        def done(task: Task, spent: float) -> None:
            seconds[str(task)] = spent
            tracker.metrics({f"seconds/{task}": spent})
            _leave(settings, "interrupted", seconds)

        try:
            screen.run(settings, done)
            if settings.table:
                rows = zoo_table.run(settings.output, settings.seed)
                tracker.metrics({f"accuracy/{row.name}": row.accuracy for row in rows})
                tracker.artifact(settings.output / "table.md")
                tracker.artifact(settings.output / "table.json")
            status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            where = tracker.run()
            path = _leave(settings, status, seconds, Tracked(*where) if where else None)
            print(f"report: {path.absolute()}", flush=True)
    return 130 if status == "interrupted" else 0


def _leave(settings: BuildSettings, status: str, seconds: dict[str, float], tracked: Tracked | None = None) -> Path:
    there = members_of(settings.output)
    tasks = [task for stage in stages(settings.everything) for task in stage]
    parts = tuple(_part(task, hash_of(task, settings.output, there), seconds.get(str(task), 0.0)) for task in tasks)
    report = Report(
        job="build_zoo",
        zoo="tiny",
        receiver=NAMES[0],
        senders=NAMES[1:],
        seed=settings.seed,
        status=status,
        learned=parts,
        tracking=tracked,
    )
    return reports.write(report, settings.output)


def _part(task: Task, digest: str | None, seconds: float) -> Learned:
    status = "complete" if digest else "interrupted"
    return Learned(str(task), task.kind, status, hash=digest and digest[:16], seconds=seconds)


def _before(folder: Path) -> dict[str, float]:
    """Seconds of the parts that an earlier run built."""
    try:
        return {part.name: part.seconds for part in reports.read(folder).learned}
    except FedrayError:  # no report yet
        return {}
