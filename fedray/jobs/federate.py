"""The main job's body: ask a federation, and the receiver alone, and leave a report whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

from fedray.data.catalogue import BENCHMARKS
from fedray.errors import MemberFailed
from fedray.evaluation.deranging import Deranging
from fedray.evaluation.measure import batched
from fedray.evaluation.record import Record
from fedray.evaluation.screen import FederateScreen
from fedray.federation.federation import Federation
from fedray.federation.sources import sources
from fedray.jobs.dry_run import DryRun
from fedray.llm.catalogue import original_of
from fedray.llm.loading import check_prompts
from fedray.protocols import ALONE, protocol_of
from fedray.questions.benchmarks import source
from fedray.questions.donors import arranged
from fedray.questions.tasks import (
    Question,
    document_of,
    for_task,
    has_documents,
    load_task,
    mismatched,
    request_fields,
    texts_read,
)
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Report
from fedray.schema import attributes
from fedray.settings.check import check_documents
from fedray.settings.settings import Settings
from fedray.types import Answer, FedrayError, Missing, Plan, Request, Row, Usage


class Federate(Job[Settings, FederateScreen]):
    """One run of the job: what it was told, what it has done, whom it tells."""

    name = "federate"

    def __init__(
        self, settings: Settings, questions: Sequence[Question], federation: Callable[[Settings], Federation]
    ) -> None:
        title = f"{settings.protocol.name} {'+'.join((*settings.takes_part[1:], '> '))}{settings.receiver}"
        screen = FederateScreen(settings.zoo.name, members=settings.takes_part)
        private = settings.private or has_documents(settings, questions)
        super().__init__(settings, screen, screen.short(title), settings.tracking, private=private)
        self.questions, self.federation = questions, federation
        self.record = Record(settings)
        self.record.source = source(settings)

    def work(self) -> None:
        with self.federation(self.settings) as fed:
            self._open(fed)
            if self.settings.prompt is not None:
                self._ask(fed, self.settings.prompt)
            else:
                self._evaluate(fed, self.questions)
            self.record.remember(fed.memory())

    def report(self, status: Status) -> Report | None:
        opened = self.record.members or status != "failed"  # else there is nothing to report
        return self.record.report(status) if opened else None

    def keep(self, report: Report) -> None:
        self._figures(report)
        self.tracker.metrics(_metrics(report))
        texts = ("question", "gold", "alone", "federated")
        rows = [{**attributes(r.answered(), *texts), "outcome": r.outcome} for r in self.record.results]
        self.tracker.table("questions.json", rows)

    def show(self, report: Report) -> None:
        self.screen.summary(report, self.record.results, self.record.by_group(), self.record.effects_by_group())
        self.screen.unrephrased(self.record.unrephrased, report.found.n)
        self.screen.unparseable(report)
        self.screen.unheard(self.record.unheard(), report.found.n)

    def _open(self, fed: Federation) -> None:
        """Show and log who takes part."""
        settings = self.settings
        self.record.open(fed.members, fed.missing, fed.plan)
        self.screen.members(self.record.members, self.record.kind)
        self.screen.learned(self.record.learned)
        self.screen.untrained(self.record.learned)
        self.tracker.tags(job="federate", zoo=settings.zoo.name, type=self.record.kind or "alone")
        self.tracker.params(
            **attributes(settings, "receiver", "seed"),
            senders=",".join(settings.senders),
            **settings.method.flat(),
            zoo=settings.zoo.name,
            task=settings.questions or settings.task.name if settings.prompt is None else "prompt",
            scoring=settings.task.scored_by,
            **attributes(settings.task, "limit", "shots"),
            weights=",".join(f"{m.name}={m.weights_hash[:12]}" for m in fed.members.values()),
            revisions=",".join(f"{m.name}={m.revision}" for m in fed.members.values() if m.revision) or None,
        )

    def _evaluate(self, fed: Federation, questions: Sequence[Question]) -> None:
        """Ask every question twice: the receiver alone, and the federation."""
        settings, record = self.settings, self.record
        other = mismatched(list(questions), settings.seed) if settings.control == "mismatched" else None
        read = dict(zip(questions, other, strict=True)) if other else None
        asked = batched(fed.plan, settings, questions)
        deranging = Deranging(fed.plan, settings, asked)
        record.donors = deranging.donors
        requests = [
            fed.request(*(q.prompt for q in batch), **request_fields(batch, fed.plan, read), id=f"batch-{number}")
            for number, batch in enumerate(asked)
        ]
        started_ns: dict[str, int] = {}

        def begun() -> Iterator[Request]:
            for number, request in enumerate(requests):
                for made in deranging.requests(number, request):
                    started_ns[made.id] = time.time_ns()
                    yield made

        alone_plan = replace(fed.plan, method=ALONE)
        federations = deranging.collect(fed.run_all(begun(), fed.plan))
        both = zip(fed.run_all(map(fed.own_part, requests), alone_plan), federations, strict=True)
        with self.screen.progress(len(questions)) as update:
            for number, (alone, (federated, deranged)) in enumerate(both):
                if isinstance(alone, MemberFailed):
                    raise alone
                if isinstance(federated, MemberFailed):  # on_missing=error: these are wrong, the others go on
                    federated = failed(alone, str(federated))
                record.add(asked[number], alone, federated, deranged)
                self.tracker.trace(requests[number], federated, started_ns[requests[number].id])
                found = record.comparison()
                update(len(record.results), found)
                if found:
                    running = {"running/accuracy": found.accuracy, "running/accuracy_alone": found.accuracy_alone}
                    self.tracker.metrics(running, step=len(record.results))

    def _ask(self, fed: Federation, prompt: str) -> None:
        """One prompt of the user's own, the federation's answer shown as it is decoded."""
        settings = self.settings
        request = fed.request(prompt, id="prompt")
        alone = fed.alone(request)
        self.screen.alone(settings.receiver, alone.text)
        started_ns = time.time_ns()
        try:
            self.screen.stream(fed.stream(prompt, fed.plan))
        except FedrayError as error:
            self.record.add([Question("prompt", prompt)], alone, failed(alone, str(error)))
            raise
        assert fed.last is not None, "a stream ends with its answer"
        self.record.add([Question("prompt", prompt)], alone, fed.last)
        self.screen.details(self.record.results[-1])
        self.tracker.trace(request, fed.last, started_ns)

    def _figures(self, report: Report) -> None:
        from fedray.evaluation.figures import base  # matplotlib, which a plan does without

        folder, found = base.emptied(self.settings.output), self.record.by_group()
        label = base.label(report.zoo, report.task, report.found.n)
        if found:
            base.accuracy(found, folder / "accuracy.png", self.screen.short(report.who.receiver), label)
        if report.cost.seconds:
            base.latency(report.cost.seconds, folder / "latency.png", label=label)
        self.tracker.artifact(folder, "figures")


def run(settings: Settings, federation: Callable[[Settings], Federation] = Federation) -> int:
    """Do the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    settings = for_task(settings) if settings.prompt is None else settings
    questions = arranged(load_task(settings), settings.donors.answer) if settings.prompt is None else []
    check_questions(settings, questions)
    everybody = Plan(settings.receiver, settings.takes_part[1:], settings.method.canonical())
    Deranging(everybody, settings, batched(everybody, settings, questions))  # more donors than there are
    protocol_of(settings).check_sources(settings, {source.name: source for source in sources(settings)})
    if settings.plan:
        return DryRun(settings, questions).run()
    foreign = settings.questions is not None or settings.task.name in BENCHMARKS or settings.zoo.name == "hub"
    if settings.prompt is not None:
        check_lengths(settings, [Question("", settings.prompt)])
    elif foreign or settings.evidence or settings.task.shots:
        check_lengths(settings, questions)
    return Federate(settings, questions, federation).run()


def check_lengths(settings: Settings, questions: Sequence[Question]) -> None:
    """Refuse what is too long for the member that reads it, its document and the question. Raises FedrayError."""
    read: dict[str, dict[str, str]] = {}
    for member in settings.takes_part:  # copies have one tokenizer
        read.setdefault(original_of(member), {}).update(texts_read(questions, settings, member))
    for found in sources(settings, list(read)):
        check_prompts([found], read[found.name])


def check_questions(settings: Settings, questions: Sequence[Question]) -> None:
    """Refuse questions that the protocol cannot be asked. Raises FedrayError."""
    protocol, dealt = settings.protocol, settings.questions is None and settings.task.name in BENCHMARKS
    if has_documents(settings, questions) or (dealt and any(question.evidence for question in questions)):
        check_documents(settings)
    others = {name for question in questions for name in question.evidence} - {settings.receiver}
    if dealt and protocol.copies and others:
        raise FedrayError(
            f"protocol={protocol.name} cuts up what its receiver reads, and task={settings.task.name} deals paragraphs "
            f"to {' and '.join(sorted(others))}: leave it out of the blocks, or choose protocol={protocol.name} for all"
        )
    check = protocol_of(settings).check_question
    if check is not None:
        for question in questions:
            check(settings, question, document_of(question, settings, settings.receiver))


def failed(alone: Answer, reason: str) -> Answer:
    """In place of an answer that did not come: no choice, and the receiver says why."""
    rows = tuple(Row("", failed=True) for _ in alone.rows)
    return Answer(rows, alone.receiver, (), (Missing(alone.receiver, reason),), Usage())


def _metrics(report: Report) -> dict[str, float | None]:
    found, cost, accuracy, alone = report.found, report.cost, report.found.accuracy, report.found.accuracy_alone
    seconds = {f"seconds/{phase}/{q}": value for phase, s in cost.seconds.items() for q, value in asdict(s).items()}
    trust = {f"trust/{group}/{sender}": w for group, senders in found.weights.items() for sender, w in senders.items()}
    return {
        **found.numbers(),
        "gain": None if accuracy is None or alone is None else accuracy - alone,
        **attributes(cost, "payload_bytes", "bytes_per_token"),
        **{f"specfed/{name}": value for name, value in found.speculation.items()},
        **seconds,
        **trust,
    }
