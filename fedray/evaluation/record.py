"""What a run has done so far. Whenever the run ends, this is its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from fedray.data.source import DataSource
from fedray.evaluation.deranging import Deranged
from fedray.evaluation.measure import f1_of
from fedray.evaluation.metrics import Comparison, Effects, compare, effects, seconds_of
from fedray.methods.specfed import Speculation
from fedray.protocols import protocol_of
from fedray.questions.tasks import Question, scorings
from fedray.registry.untrained import RANDOM
from fedray.reporting.job import Status
from fedray.reporting.report import Answered, Cost, Data, Found, Learned, MemberReport, Report, Who
from fedray.schema import picked
from fedray.settings.settings import Settings
from fedray.types import Answer, Artifact, MemberInfo, Missing, Plan, Row, Usage

Outcome = Literal["rescued", "harmed", "both right", "both wrong", ""]


@dataclass(frozen=True, slots=True)
class Result:
    """One question, answered twice. by_member: by everybody, both ways; read: sender -> the rewrite it read; deranged:
    what of messages was another question's -> an answer per donor."""

    question: Question
    alone: Row
    federated: Row
    by_member: Mapping[str, Row] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)
    deranged: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    _right: tuple[bool, bool] | None = field(init=False)

    def __post_init__(self) -> None:
        alone, federated = self.question.right(self.alone), self.question.right(self.federated)
        graded = None if alone is None or federated is None else (alone, federated)
        object.__setattr__(self, "_right", graded)  # once: replies take a while to read, and every batch compares all

    def right(self) -> tuple[bool, bool] | None:
        """Whether the receiver alone and the federation are right; None where nobody knows the answer."""
        return self._right

    def right_deranged(self, kind: str) -> tuple[bool, ...]:
        """Whether it is right with each donor's messages."""
        return tuple(bool(self.question.right(row)) for row in self.deranged[kind])

    @property
    def outcome(self) -> Outcome:
        names: dict[tuple[bool, bool] | None, Outcome] = {
            (False, True): "rescued",
            (True, False): "harmed",
            (True, True): "both right",
            (False, False): "both wrong",
        }
        return names.get(self.right(), "")

    def answered(self) -> Answered:
        question = self.question
        alone, federated = question.said(self.alone), question.said(self.federated)
        each = {name: question.said(row) for name, row in self.by_member.items()}
        return Answered(question.prompt, question.choices, question.answer, alone, federated, each, self.read)


class Record:
    """Grows batch by batch; every figure of the report is read from it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results: list[Result] = []
        self.donors = ""  # how many, and how they are drawn
        self.source: DataSource | None = None  # of the questions
        self.members: tuple[MemberReport, ...] = ()
        self.kind: str | None = None
        self.unrephrased: dict[int, str] = {}  # number of a result that no rewrite stood for -> the last one's flaw
        self.learned: tuple[Learned, ...] = ()  # the fusers and the gate in use
        self._missing: dict[str, Missing] = {}
        self._usages: list[Usage] = []
        self._speculation: Speculation | None = None
        self._unparseable = self._unparseable_alone = 0  # answers in which nothing could be read

    def open(self, members: Mapping[str, MemberInfo], missing: Sequence[Missing], plan: Plan) -> None:
        """Who takes part, and by which learned parts."""
        self.members = participants(members, self.settings.receiver)
        self.kind = protocol_of(self.settings).type_of(members.values())
        gates = () if plan.gate_artifact is None else (_learned(plan.gate_artifact, "gate"),)
        self.learned = (*(_learned(fuser, "fuser") for fuser in plan.fusers.values()), *gates)
        self._miss(missing)

    def remember(self, memory: Mapping[str, int]) -> None:
        """What each member took at the peak, in bytes."""
        self.members = tuple(replace(member, memory_bytes=memory.get(member.name)) for member in self.members)

    def add(
        self, questions: Sequence[Question], alone: Answer, federated: Answer, deranged: Deranged | None = None
    ) -> None:
        """One request's answers."""
        self.unrephrased |= {len(self.results) + row: flaw for row, flaw in federated.unrephrased.items()}
        for b, (question, one, both) in enumerate(zip(questions, alone.rows, federated.rows, strict=True)):
            each = {name: rows[b] for name, rows in federated.by_member.items()}
            read = {sender: texts[b] for sender, texts in federated.read.items() if texts[b]}
            others = {kind: tuple(rows[b] for rows in ways) for kind, ways in (deranged or {}).items()}
            self.results.append(Result(question, one, both, each, read, others))
        self._unparseable_alone += sum(map(Question.unread, questions, alone.rows))
        if all(m.member != federated.receiver for m in federated.missing):  # it came, and did not fail
            self._unparseable += sum(map(Question.unread, questions, federated.rows))
        self._usages.append(federated.usage)
        if federated.speculation is not None:
            self._speculation = (self._speculation or Speculation()) + federated.speculation
        self._miss((*federated.missing, *alone.missing))

    def _miss(self, missing: Sequence[Missing]) -> None:
        for m in missing:
            self._missing.setdefault(m.member, m)

    def comparison(self) -> Comparison | None:
        """Alone and federated, over the questions whose answer is known."""
        return _compare(self.results)

    def by_group(self) -> dict[str, Comparison]:
        """The same for all questions together and, where there are several groups, for each."""
        return {name: found for name, results in self._groups().items() if (found := _compare(results))}

    def effects_by_group(self) -> dict[str, Effects]:
        """What messages do, where everybody's answers are known, for the same groups."""
        return {
            name: found
            for name, results in self._groups().items()
            if (found := _effects(results, self.settings.sends_slots))
        }

    def _groups(self) -> dict[str, list[Result]]:
        groups = sorted({r.question.group for r in self.results})
        parts = {g or "other": [r for r in self.results if r.question.group == g] for g in groups}
        return {"all": self.results} | (parts if len(parts) > 1 else {})

    def by_member(self) -> dict[str, float]:
        """Accuracy of each member's own answers, over the questions that all have answered."""
        graded = [r for r in self.results if r.by_member and r.right() is not None]
        names = graded[0].by_member if graded else ()
        return {name: fmean(bool(r.question.right(r.by_member[name])) for r in graded) for name in names}

    def unheard(self) -> dict[str, int]:
        """Holder of evidence -> the questions in which the gate shut it out."""
        holders = self.settings.documents().keys() & set(self.settings.senders)
        shut = {name: sum(r.federated.weights.get(name) == 0 for r in self.results) for name in sorted(holders)}
        return {name: count for name, count in shut.items() if count}

    def trust(self) -> dict[str, dict[str, float]]:
        """Group -> sender -> mean gate weight, over the questions for which the sender was there to be weighed."""
        weights: dict[str, dict[str, list[float]]] = {}
        for result in self.results:
            group = weights.setdefault(result.question.group or "all", {})
            for sender, weight in result.federated.weights.items():
                group.setdefault(sender, []).append(weight)
        return {
            g: {s: fmean(w) for s, w in sorted(senders.items())} for g, senders in sorted(weights.items()) if senders
        }

    def cost(self) -> Cost:
        total = sum(self._usages, Usage())
        per_token = total.payload_bytes / total.prompt_tokens if total.prompt_tokens else 0.0
        return Cost(
            total.payload_bytes,
            per_token,
            seconds=seconds_of(usage.seconds for usage in self._usages),
            requests=len(self._usages),
            at_a_time=min(self.settings.batches_at_a_time, max(len(self._usages), 1)),
        )

    def found(self) -> Found:
        compared, effect = self.comparison(), _effects(self.results, self.settings.sends_slots)
        figures: dict[str, Any] = compared.figures() if compared else {}
        figures |= (effect.figures() if effect else {}) | {"n": len(self.results)}
        figures |= {f"f1{of}": fmean(f1) for of, f1 in self._f1().items() if f1}
        return Found(
            donors=self.donors,
            failed=sum(result.federated.failed for result in self.results),
            unrephrased=len(self.unrephrased),
            unparseable=self._unparseable,
            unparseable_alone=self._unparseable_alone,
            groups={name: of.accuracy for name, of in self.by_group().items() if name != "all"},
            by_member=self.by_member(),
            weights=self.trust(),
            speculation={} if self._speculation is None else self._speculation.figures(),
            **figures,
        )

    def _f1(self) -> dict[str, list[float]]:
        """Token F1 of the federation and of the receiver alone, over the questions whose scoring has one."""
        asked, alone, federated = ([getattr(r, of) for r in self.results] for of in ("question", "alone", "federated"))
        return {"": f1_of(federated, asked), "_alone": f1_of(alone, asked)}

    def report(self, status: Status) -> Report:
        settings = self.settings
        receiver, *senders = settings.takes_part
        return Report(
            "federate",
            settings.zoo.name,
            settings.seed,
            status,
            Who(receiver, tuple(senders), self.kind, tuple(self._missing.values()), self.members),
            settings.method.canonical(),
            _task(settings),
            scoring=scorings(settings, (result.question for result in self.results)),
            data=tuple(Data(**asdict(found)) for found in (self.source,) if found),
            found=self.found(),
            cost=self.cost(),
            answers=tuple(result.answered() for result in self.results),
            learned=self.learned,
        )


def _learned(artifact: Artifact, role: str) -> Learned:
    status = "complete" if artifact.config is None else "random" if artifact.hash.startswith(RANDOM) else "untrained"
    return Learned(artifact.name, role, status, artifact.hash, artifact.path or None)


def participants(members: Mapping[str, MemberInfo], receiver: str) -> tuple[MemberReport, ...]:
    """Who takes part, for the report."""
    return tuple(picked(MemberReport, m, role="receiver" if m.name == receiver else "sender") for m in members.values())


def _compare(results: Sequence[Result]) -> Comparison | None:
    graded = [right for result in results if (right := result.right())]
    return compare(*zip(*graded, strict=True)) if graded else None


def _effects(results: Sequence[Result], slots: bool) -> Effects | None:
    graded = [(result, right) for result in results if (right := result.right())]
    if not graded:
        return None
    kinds = set.intersection(*(set(result.deranged) for result, _ in graded))
    ordered = [kind for kind in graded[0][0].deranged if kind in kinds]
    deranged = {k: list(zip(*(result.right_deranged(k) for result, _ in graded), strict=True)) for k in ordered}
    clusters = [result.question.entity or result.question.id for result, _ in graded]
    alone, matched = zip(*(right for _, right in graded), strict=True)
    return effects(alone, matched, deranged, clusters, slots=slots)


def _task(settings: Settings) -> str | None:
    if settings.prompt is not None:
        return None
    return os.fspath(settings.questions) if settings.questions else settings.task.name
