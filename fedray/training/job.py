"""The frame of the training jobs: screen, MLflow, registry, and a report however a training ends."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedray.federation import sources
from fedray.llm.source import Source
from fedray.methods.method import NO_GATE, Method
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Data, Found, Learned, MemberReport, Report, Who
from fedray.schema import attributes
from fedray.tracking import Tracker
from fedray.training.checkpoint import Checkpoint, Snapshot
from fedray.training.figures import Heatmap
from fedray.training.llms import dtype_of
from fedray.training.memory import Memory
from fedray.training.pace import Pace
from fedray.training.screen import TrainingScreen
from fedray.training.settings import FuserJob, GateJob
from fedray.training.worker_group import Tell, WorkerGroup, Workers
from fedray.training.workers import check, run
from fedray.types import Artifact, MemberInfo

LOG_EVERY = 10  # steps between two points of MLflow's curves
S = TypeVar("S", FuserJob, GateJob)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a finished training; the weights lie in its checkpoint.

    members: the receiver first. figures: the last running ones. validation: accuracy per group of questions, with what
    was trained and by the receiver alone. trust: per group and sender the mean weight of a gate. record: goes into the
    manifest, so it names no date, host or path.
    """

    members: tuple[MemberInfo, ...]
    questions: int
    steps: int
    resumed_at: int
    figures: Mapping[str, float]
    weights: Heatmap
    record: Mapping[str, Any]
    data: tuple[Data, ...] = ()  # the data set it read, if any
    validation: Mapping[str, float] = field(default_factory=dict)
    validation_alone: Mapping[str, float] = field(default_factory=dict)
    trust: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # of a fuser


@dataclass(frozen=True, slots=True)
class Order(Generic[S, R]):
    """One fuser or gate to train, as every worker receives it.

    senders: by name; fusers: of a gate, by sender; memory: the estimate that the driver has checked, None: each worker
    checks its own.
    """

    receiver: Source
    senders: Mapping[str, Source]
    fusers: Mapping[str, Artifact]
    recipe: R
    settings: S
    checkpoint: Checkpoint
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One fuser or gate to train. role: "fuser" or "gate"; params: for MLflow."""

    name: str
    role: str
    train: Callable[[Any, WorkerGroup, Tell], Outcome]
    order: Order[Any, Any]
    params: Mapping[str, Any]


class TrainingJob(Job[S, TrainingScreen]):
    """One run of a training job: one task, or several, each in an MLflow run of its own below the job's."""

    def __init__(self, settings: S, title: str, control: str = "none") -> None:
        super().__init__(settings, TrainingScreen(settings.zoo.name), title, settings.tracking)
        self.workers = Workers(settings.workers, settings.threads, settings.device, settings.ray, settings.root)
        self._begun, self._control = False, control
        how = Method(gate=NO_GATE, **attributes(settings, "fuser", "fusion"))
        self._report = Report(self.name, settings.zoo.name, settings.seed, "failed", Who(settings.receiver), how)

    @abstractmethod
    def tasks(self) -> Sequence[TrainingTask]:
        """Plan what is to be trained. Raises FedrayError where it cannot be had."""

    @abstractmethod
    def register(self, order: Any, outcome: Outcome, snapshot: Snapshot) -> Artifact | None:
        """Store the trained weights in the registry; None where they do not belong there."""

    def work(self) -> None:
        """Train one after the other. Raises FedrayError for what cannot be trained."""
        check(self.workers)  # before anything is asked of the hub
        if self.settings.zoo.name == "hub" and self.settings.data.name == "tiny":
            self.screen.line("data=tiny asks about a made-up world, of which only its own zoo's LLMs know anything")
        tasks = self.tasks()
        senders = tuple(dict.fromkeys(sender for task in tasks for sender in task.order.senders))
        self._report = replace(self._report, who=replace(self._report.who, senders=senders))
        with ExitStack() as claims:
            for task in tasks:  # refused before anything is downloaded or loaded
                claims.enter_context(task.order.checkpoint.claim())
                if self.settings.restart:
                    task.order.checkpoint.discard()
                task.order.checkpoint.check()
            if self.workers.local:  # elsewhere, workers download for themselves
                orders = [task.order for task in tasks]
                llms = (source for order in orders for source in (order.receiver, *order.senders.values()))
                sources.download(list({source.name: source for source in llms}.values()))
            self._begun = True
            self._train_all(tasks)

    def report(self, status: Status) -> Report | None:
        return replace(self._report, status=status) if self._begun else None

    def show(self, report: Report) -> None:
        if report.status == "interrupted":
            self.screen.line("interrupted; the same command goes on from the last checkpoint")
        elif not report.learned:
            self.screen.line("nothing to train: every pair has its fuser")

    def _train_all(self, tasks: Sequence[TrainingTask]) -> None:
        settings = self.settings
        if len(tasks) == 1:
            self._train(tasks[0], self.tracker, settings.output)
        elif tasks:
            self.tracker.tags(job=self.name, zoo=settings.zoo.name)
            self.tracker.params(receiver=settings.receiver, senders=", ".join(self._report.who.senders))
            for task in tasks:
                folder, above = settings.output / task.name, self.tracker.run()
                with Tracker(settings.tracking, folder, name=f"train {task.name}") as tracker:
                    if above:
                        tracker.tags(**{"mlflow.parentRunId": above[1]})
                    self._train(task, tracker, folder)
                self.show_problem(tracker, folder)

    def _train(self, task: TrainingTask, tracker: Tracker, folder: Path) -> None:
        """Train one, and add it to the report. folder: where its figures go."""
        part, pace, foretold = Learned(task.name, task.role, "failed", control=self._control), Pace(), {}
        started = time.perf_counter()
        tracker.tags(job=self.name, zoo=self.settings.zoo.name)
        same = {"receiver": self.settings.receiver, "zoo": self.settings.zoo.name, "workers": self.settings.workers}
        tracker.params(**same, **task.params)
        try:
            with self.screen.progress(task.name) as bar:

                def tell(phase: str, step: int, of: int, running: Mapping[str, float]) -> None:
                    nonlocal part
                    bar(phase, step, of, running)
                    if task.role == "fuser" and phase == "training" and pace.after(step, of):
                        foretold["seconds/foretold"] = pace.whole_s
                        self.screen.foretold(pace, of)
                    if running:
                        part = replace(part, steps=step, figures={**part.figures, **running, **foretold})
                    if step % LOG_EVERY == 0 or step == of or "validation/loss" in running:
                        tracker.metrics(running, step)

                workers = replace(self.workers, folder=task.order.checkpoint.path.parent.absolute())
                outcome = run(partial(task.train, task.order), workers, tell)
            outcome = replace(outcome, figures={**outcome.figures, **foretold})
            part = self._register(task, outcome, part, tracker, folder)
        except KeyboardInterrupt:
            part = replace(part, status="interrupted")
            raise
        finally:
            part = replace(part, seconds=time.perf_counter() - started)
            self._report = replace(self._report, learned=(*self._report.learned, part))
        self.save(replace(self._report, status="interrupted"))  # others may follow
        self.screen.learned(part, outcome.trust, str(self.settings.root))

    def _register(self, task: TrainingTask, outcome: Outcome, part: Learned, tracker: Tracker, folder: Path) -> Learned:
        """Add the finished weights to the registry, and everything to the report and MLflow."""
        trained = ("steps", "resumed_at", "questions", "figures", "validation", "validation_alone")
        part = replace(part, **{name: getattr(outcome, name) for name in trained})
        members = _participants(outcome.members, self._report.who.members)
        who, found = replace(self._report.who, members=members), Found(weights=outcome.trust)
        self._report = replace(self._report, who=who, found=found, data=outcome.data)
        heatmap = outcome.weights.draw(folder / "figures" / "weights.png", task.name, self.settings.zoo.name)
        tracker.artifact(heatmap, "figures")
        for key, groups in (("validation", outcome.validation), ("validation_alone", outcome.validation_alone)):
            tracker.metrics({f"{key}/{group}": share for group, share in groups.items()}, outcome.steps)
        snapshot = task.order.checkpoint.load()
        assert snapshot is not None, "a training ends with a checkpoint"
        if artifact := self.register(task.order, outcome, snapshot):
            part = replace(part, hash=artifact.hash, path=artifact.path)
            alias = f"in-use-{self.settings.fuser.kind}-{self.settings.fusion.operator}"
            name = f"{task.role}.{task.name.removeprefix('gate--')}"  # the role is in front already
            tracker.register(name, Path(artifact.path), alias=alias, hash=artifact.hash)
        task.order.checkpoint.discard()
        return replace(part, status="complete")


def settle(settings: S) -> S:
    """Make settings mean the same on every worker: absolute paths, the precision of the LLMs."""
    zoo, data = (replace(of, path=sources.absolute(of.path)) for of in (settings.zoo, settings.data))
    return replace(settings, zoo=zoo, data=data, llm_dtype=dtype_of(settings))


def _participants(members: Sequence[MemberInfo], before: Sequence[MemberReport]) -> tuple[MemberReport, ...]:
    found = {m.name: m for m in before}
    for number, m in enumerate(members):
        role = "sender" if number else "receiver"
        found[m.name] = MemberReport(m.name, role, m.family, m.parameters, m.device, m.node, m.pid, m.dtype, m.revision)
    return tuple(found.values())
