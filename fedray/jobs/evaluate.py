"""The body of jobs/evaluate.py: ask every case, keep each as it is finished, and leave a report whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain

from fedray.data.catalogue import BENCHMARKS
from fedray.evaluation import leakage_table, table
from fedray.evaluation.cases import Case, cases, neutral
from fedray.evaluation.deranging import Deranging
from fedray.evaluation.figures import channels, fedattn, fedrefine, overview, specfed
from fedray.evaluation.figures.base import emptied
from fedray.evaluation.ledger import Ledger, decided_by
from fedray.evaluation.measure import Asking, Measurement, batched, is_whole
from fedray.evaluation.record import participants
from fedray.evaluation.results import Results
from fedray.evaluation.screen import EvaluateScreen, Update
from fedray.evaluation.settings import Block, EvaluateSettings
from fedray.evaluation.table import who
from fedray.federation.federation import Federation
from fedray.federation.sources import sources
from fedray.jobs.federate import check_lengths, check_questions
from fedray.methods.method import DEFAULT
from fedray.protocols import protocol_of
from fedray.questions.benchmarks import source
from fedray.questions.donors import arranged
from fedray.questions.tasks import Question, has_documents, load_task, scorings
from fedray.registry.evaluations import SPLIT, Recorded, append
from fedray.registry.planner import Planner
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Data, Evaluated, Found, MemberReport, Report, SenderOrder, Who
from fedray.schema import attributes, picked
from fedray.settings.settings import Settings
from fedray.types import FedrayError, Plan


class Evaluation(Job[EvaluateSettings, EvaluateScreen]):
    """One run of the job: what it was told, what it has measured, whom it tells."""

    name = "evaluate"

    def __init__(self, settings: EvaluateSettings, federation: Callable[[Settings], Federation]) -> None:
        private = any(case.settings(settings, settings.seed).private for case in cases(settings, settings.senders))
        private = private or (settings.questions is not None and has_documents(settings, load_task(asking(settings))))
        title = f"evaluate {settings.receiver}"
        watch = EvaluateScreen(settings.zoo.name, members=(settings.receiver, *settings.senders))
        super().__init__(settings, watch, watch.short(title), settings.tracking, private=private)
        self.federation = federation
        self.order = SenderOrder("given", settings.senders)
        self.members: tuple[MemberReport, ...] = ()
        self.results: Results | None = None
        self._parts: dict[Case, dict[str, str]] = {}
        self._ledger = Ledger(settings.output, private=private)
        self._questions = {
            (task, seed, senders): graded(self._load(task, seed, senders))
            for task, senders in dict.fromkeys((c.task, c.with_copies) for c in cases(settings, settings.senders))
            for seed in settings.seeds
        }

    def _load(self, task: str, seed: int, senders: tuple[str, ...]) -> list[Question]:
        """Load a task's questions; senders with copies among them hold its documents in place of those who would, a
        file's beside them."""
        settings = self.settings
        there = dict.fromkeys((*settings.senders, *senders)) if settings.questions else senders or settings.senders
        base = asking(replace(settings, senders=tuple(there)))
        questions = load_task(replace(base, task=settings.task.of(task)), seed)
        return arranged(questions, settings.donors.answer)

    def work(self) -> None:
        check_cases(self.settings)
        self._check_questions()
        with self.federation(neutral(self.settings)) as fed:
            self._open(fed)
            self._ask(fed)

    def _open(self, fed: Federation) -> None:
        """Show and log who takes part. Raises FedrayError where a case has no plan."""
        settings = self.settings
        for case in cases(settings, settings.senders):  # a gate that is missing is found before anything is asked
            fed.plan_for(case.receiver, case.senders, case.method)
        self.results = Results(fed.members)
        self.members = participants(fed.members, settings.receiver)
        self.screen.members(self.members)
        self.tracker.tags(job="evaluate", zoo=settings.zoo.name)
        self.tracker.params(
            **attributes(settings, "receiver", "latency_requests"),
            fuser=settings.fuser.kind,
            senders=",".join(settings.senders),
            zoo=settings.zoo.name,
            task=settings.questions or settings.task.name,
            limit=settings.task.limit,
            blocks=",".join(settings.blocks),
            seeds=",".join(map(str, settings.seeds)),
            weights=",".join(f"{m.name}={m.weights_hash[:12]}" for m in fed.members.values()),
        )

    def _check_questions(self) -> None:
        """Refuse what a case's protocol cannot be asked, or has too few donors for, before any LLM is loaded. Raises
        FedrayError."""
        for case in cases(self.settings, self.settings.senders):
            for seed in self.settings.seeds:
                own, questions = case.settings(self.settings, seed), self._questions[case.task, seed, case.with_copies]
                check_questions(own, questions)
                plan = Plan(case.receiver, case.senders, case.method)
                Deranging(plan, own, batched(plan, own, questions))

    def _ask(self, fed: Federation) -> None:
        """Fix the order of the senders, then ask case after case; each that is done is logged as a run of its own."""
        settings, results = self.settings, self.results
        assert results is not None, "members are there by now"
        ranked = len(settings.senders) + 1 if settings.ordered else 0
        asked = len(cases(settings, settings.senders)) * len(settings.seeds)
        with self.screen.follow(ranked + asked) as begin:
            if settings.ordered:
                self.order = self._ranked(fed, begin)
            for case in cases(settings, self.order.senders):
                for number, seed in enumerate(settings.seeds):
                    questions = self._questions[case.task, seed, case.with_copies]
                    timed = settings.latency_requests if number == 0 else 0  # seconds need no second drawing
                    found = self._measured(fed, case.settings(settings, seed), case, questions, timed, begin)
                    results.add(case, seed, questions, found)
                row = results.row(case)
                self._log(row)
                self._record(row, self._parts[case], fed)

    def _ranked(self, fed: Federation, begin: Callable[[str, int], Update]) -> SenderOrder:
        """The senders by what each brings alone, on validation questions."""
        settings, seed = self.settings, self.settings.seeds[0]
        base = replace(settings, task=replace(settings.task, split="validation", limit=settings.order_limit))
        questions = load_task(asking(base), seed)
        block = Block("singles", axes={} if settings.protocol.needs_senders else {"protocol.name": (DEFAULT.name,)})
        singles = {case.senders: case for case in cases(replace(settings, blocks={"order": block}), settings.senders)}
        share: dict[tuple[str, ...], float] = {}
        for senders, case in singles.items():
            found = self._measured(fed, case.settings(base, seed), case, questions, 0, begin)
            share[senders] = sum(found.right) / len(questions)
        gains = {name: 100 * (share[name,] - share[()]) for name in settings.senders}
        best = sorted(settings.senders, key=lambda name: -gains[name])
        return SenderOrder("validation", tuple(best), gains, len(questions))

    def _measured(
        self,
        fed: Federation,
        settings: Settings,
        case: Case,
        questions: Sequence[Question],
        latency_requests: int,
        begin: Callable[[str, int], Update],
    ) -> Measurement:
        """What a case measures: from the ledger, or by asking."""
        latency_requests = min(latency_requests, len(questions))
        helpers = who(case.senders, self.order.senders) or "nobody"
        update = begin(f"{case.way}, {helpers} > {case.receiver}", len(questions) + latency_requests)
        plan = fed.plan_for(case.receiver, case.senders, case.method, settings.seed)
        self._parts[case] = {part.name: part.hash for part in (*plan.fusers.values(), plan.gate_artifact) if part}
        asking = Asking(fed, plan, settings, questions)
        decided = decided_by(plan, settings, fed.members, questions, latency_requests, asking.deranging.named)
        found = self._ledger.get(decided)
        if found is None:
            found = asking.run(latency_requests, update)
            if is_whole(found, settings):
                self._ledger.put(decided, found)
        update(len(questions) + latency_requests)
        return found

    def _log(self, row: Evaluated) -> None:
        """The row as a child of the job's MLflow run."""
        settings = self.settings
        params = {"task": row.task, "receiver": row.who.receiver, **row.how.flat(), "temperature": row.temperature}
        seconds = {
            f"seconds/{phase}/{q}": value for phase, s in row.cost.seconds.items() for q, value in asdict(s).items()
        }
        rounds = {f"specfed/{name}": value for name, value in row.found.speculation.items()}
        told = {f"leakage/{name}": value for name, value in leakage_table.summary(row).items()}
        found = row.found.numbers() | attributes(row, "gain_points", "gain_percent")
        sent = attributes(row.cost, "bytes_per_token", "bytes_per_token_analytic")
        self.tracker.child(
            f"{row.way}, {who(row.who.senders, self.order.senders) or 'nobody'} > {row.who.receiver}",
            params={**params, "senders": ",".join(row.who.senders), "seeds": row.seeds},
            metrics=found | sent | seconds | told | rounds,
            tags={"job": "evaluate", "zoo": settings.zoo.name, "type": row.who.type or "alone"},
        )
        joined = row.who.senders == self.order.senders[: len(row.who.senders)] and row.who.receiver == settings.receiver
        if joined and row.how.control == "none" and fedrefine.line(row):  # figure 3a as curves of the job's own run
            name = f"accuracy_by_senders/{row.task}/{row.way}"
            self.tracker.metrics({name: row.accuracy}, step=len(row.who.senders))

    def _record(self, row: Evaluated, parts: Mapping[str, str], fed: Federation) -> None:
        """Keep what validation questions say beside the user's registry, where later choices may read it."""
        settings = self.settings
        if settings.registry.path is None or settings.task.split != SPLIT or settings.questions is not None:
            return
        gain, seconds = row.found.pairing_gain, row.seconds
        names = (row.who.receiver, *row.who.senders)
        found = picked(
            Recorded,
            row.who,  # receiver and senders
            row.found,  # n, the accuracies and whose messages
            row,  # its task, scoring and seeds
            method=row.how.flat(),
            weights={name: fed.members[name].weights_hash for name in names},
            parts=parts,
            zoo=settings.zoo.name,
            pairing_gain=gain and gain.points,
            bytes=row.cost.payload_bytes / max(row.found.n, 1),
            seconds=seconds and seconds.p50,
        )
        append(settings.registry.path, [found])

    def report(self, status: Status) -> Report | None:
        if not self.members and status == "failed":  # a federation that never opened has nothing to report
            return None
        settings, results = self.settings, self.results
        rows = results.rows() if results else ()
        return Report(
            self.name,
            settings.zoo.name,
            settings.seed,
            status,
            Who(settings.receiver, settings.senders, None, (), self.members, self.order),
            settings.method,
            str(settings.questions or settings.task.name),
            scoring=scorings(settings, chain.from_iterable(self._questions.values())),
            data=self._data(),
            found=Found(n=max((row.found.n for row in rows), default=0)),
            rows=rows,
            comparisons=results.comparisons() if results else (),
            contributions=results.contributions() if results else (),
        )

    def _data(self) -> tuple[Data, ...]:
        """The data sets behind the tasks."""
        base, tasks = self.settings, dict.fromkeys(task for task, *_ in self._questions)
        found = (source(replace(base, task=base.task.of(task))) for task in tasks)
        return tuple(Data(**asdict(origin)) for origin in found if origin)

    def keep(self, report: Report) -> None:
        settings, tracker = self.settings, self.tracker
        if report.evaluated:
            tracker.describe(table.as_markdown(report))
            table.write(report, settings.output)
            folder = emptied(settings.output)
            for figures in (fedrefine, specfed, overview, fedattn, channels):
                figures.draw(report, folder)
        tracker.table("rows.json", [_flat(row) for row in report.evaluated])
        leaked = leakage_table.lines(report.evaluated)
        tracker.table("leakage.json", [dict(zip(leakage_table.HEADINGS, line, strict=True)) for line in leaked])
        for file, to in (("table.md", ""), ("figures", "figures")):
            tracker.artifact(settings.output / file, to)

    def show(self, report: Report) -> None:
        self.screen.order(self.order)
        self.screen.rows(report.evaluated, self.order.senders)


def run(settings: EvaluateSettings, federation: Callable[[Settings], Federation] = Federation) -> int:
    """Do the job; returns the exit code. Prints `report: PATH` last.

    Raises FedrayError for mistakes of the user's and of the outside world; what was done until then is in the report,
    and the same command with the same output goes on from there.
    """
    return Evaluation(settings, federation).run()


def check_cases(settings: EvaluateSettings) -> None:
    """Refuse what some case has no fuser for, and prompts too long for a member, before any LLM is loaded."""
    planner, everybody = Planner(settings.registry.path, settings.zoo.path, settings.zoo.name), neutral(settings)
    for case in cases(settings, settings.senders):
        own = case.settings(settings, settings.seed)
        planner.check(case.receiver, case.senders, case.method)
        protocol_of(case.method).check_sources(own, {source.name: source for source in sources(own)})
    tasks = {case.task for case in cases(settings, settings.senders)}
    tasks = tasks if settings.task.shots else tasks & BENCHMARKS.keys()
    for task in (settings.task.name,) if settings.questions is not None else sorted(tasks):
        asked = replace(settings, task=settings.task.of(task))
        check_lengths(replace(everybody, task=asked.task), load_task(asking(asked)))


def asking(settings: EvaluateSettings) -> Settings:
    """The settings that a task's questions are loaded by: those of a file may hold documents of whoever a case asks."""
    return settings if settings.questions is None else neutral(settings)


def graded(questions: list[Question]) -> list[Question]:
    """The questions, if each has a known answer. Raises FedrayError naming one that has not."""
    for question in questions:
        if question.answer is None:
            raise FedrayError(
                f'an evaluation needs the right answer: give question {question.id} "choices" and an "answerKey", or '
                'an "answer" that ends in "#### number"'
            )
    return questions


def _flat(row: Evaluated) -> dict[str, object]:
    """What of a row is a number or a word."""
    words = {"senders": ", ".join(row.who.senders), "seeds": ", ".join(map(str, row.seeds)), **row.how.flat()}
    values = asdict(row) | asdict(row.who) | row.found.numbers() | asdict(row.cost) | words
    values |= attributes(row, "gain_points", "gain_percent") | attributes(row.found, "donors", "read")
    return {key: value for key, value in values.items() if not isinstance(value, dict | list | tuple)}
