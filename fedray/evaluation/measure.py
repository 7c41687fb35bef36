"""Ask one case's questions: all in batches, which may overlap, for what is right; then some alone for the seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from fedray.errors import MemberFailed
from fedray.evaluation.deranging import Deranged, Deranging
from fedray.federation.federation import Federation
from fedray.methods.specfed import Speculation
from fedray.questions.donors import batches
from fedray.questions.tasks import Question, mismatched, request_fields
from fedray.schema import picked
from fedray.settings.settings import Settings
from fedray.types import Answer, Missing, Plan, Request, Row, Usage

ANSWER_TOKENS = 4096  # of all rows of one request: well under the 64 KiB a result may have


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of asking one case one drawing of its questions.

    right: per question, a failed one is wrong; by_member: the same of each member, where each answers; weights: sender
    -> mean gate weight; seconds: phase -> wall-clock seconds of every request that was asked alone; read: sender -> per
    question the rewrite it read, "" for none, under rephrasing. deranged: what of messages was another question's ->
    per donor the same as `right`; donors: how many, and how they were drawn.
    """

    right: tuple[bool, ...]
    unparseable: int = 0  # answers that name none of the choices
    failed: int = 0  # questions that got no answer
    unrephrased: int = 0  # questions that no rewrite kept whole
    payload_bytes: int = 0  # of the batches
    prompt_tokens: int = 0  # the receiver's, of the batches
    wall_s: float = 0.0
    missing: tuple[Missing, ...] = ()
    by_member: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    read: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answer_tokens: int = 0  # of the batches, and the seconds they took
    answering_s: float = 0.0
    speculation: Speculation | None = None
    deranged: Mapping[str, tuple[tuple[bool, ...], ...]] = field(default_factory=dict)
    donors: str = ""
    f1: tuple[float, ...] = ()  # per question its token F1, where its scoring has one


class Asking:
    """One case on its way: its plan, its settings, and what has come of it so far."""

    def __init__(self, fed: Federation, plan: Plan, settings: Settings, questions: Sequence[Question]) -> None:
        """settings: the case's own (Case.settings)."""
        self._fed, self._plan, self._settings, self._questions = fed, plan, settings, questions
        others = mismatched(list(questions), settings.seed) if settings.control == "mismatched" else None
        self._instead = dict(zip(questions, others, strict=True)) if others else None
        self.deranging = Deranging(plan, settings, batched(plan, settings, questions))
        self._deranged: dict[str, list[list[bool]]] = {
            kind: [[] for _ in range(self.deranging.count)] for kind in self.deranging.kinds
        }
        self._right: list[bool] = []
        self._f1: list[float] = []
        self._by_member: dict[str, list[bool]] = {}
        self._weights: dict[str, list[float]] = {}
        readers = (*plan.speakers, *plan.senders) if plan.method.rephrase != "none" else ()
        self._read: dict[str, list[str]] = {name: [] for name in readers}
        self._missing: dict[str, Missing] = {}
        self._usage = Usage()
        self._speculation: Speculation | None = None
        self._unparseable = self._failed = self._unrephrased = 0

    def run(self, latency_requests: int, progress: Callable[[int], None] = lambda done: None) -> Measurement:
        """Ask everything; progress hears how many questions have been asked."""
        started = time.monotonic()
        asked = self.deranging.asked
        requests = chain.from_iterable(
            self.deranging.requests(number, self._request(batch)) for number, batch in enumerate(asked)
        )
        found = self.deranging.collect(self._fed.run_all(requests, self._plan))
        for batch, (answer, deranged) in zip(asked, found, strict=True):
            self._add(batch, answer)
            self._compare(batch, deranged)
            progress(len(self._right))
        answering_s = time.monotonic() - started  # not the sum over batches, which overlap
        seconds: dict[str, list[float]] = {}
        for number, question in enumerate(self._questions[:latency_requests], 1):
            for phase, value in self._time(question).items():
                seconds.setdefault(phase, []).append(value)
            progress(len(self._right) + number)
        return picked(
            Measurement,
            self._usage,  # its bytes and tokens
            self.deranging,  # its donors
            right=tuple(self._right),
            f1=tuple(self._f1),
            unparseable=self._unparseable,
            failed=self._failed,
            unrephrased=self._unrephrased,
            wall_s=time.monotonic() - started,
            missing=tuple(self._missing.values()),
            by_member={name: tuple(right) for name, right in self._by_member.items()},
            weights={name: sum(w) / len(w) for name, w in self._weights.items()},
            seconds={phase: tuple(values) for phase, values in seconds.items()},
            read={name: tuple(texts) for name, texts in self._read.items()},
            answering_s=answering_s,
            speculation=self._speculation,
            deranged={
                kind: tuple(map(tuple, ways))
                for kind, ways in self._deranged.items()
                if ways and all(len(way) == len(self._right) for way in ways)
            },
        )

    def _compare(self, batch: Sequence[Question], deranged: Deranged) -> None:
        for kind, ways in deranged.items():
            for right, rows in zip(self._deranged[kind], ways, strict=True):
                right += _right(rows, batch)

    def _add(self, batch: Sequence[Question], answer: Answer | MemberFailed) -> None:
        if isinstance(answer, MemberFailed):  # nobody stands in for the receiver, or on_missing=error: all are wrong
            self._failed += len(batch)
            self._right += [False] * len(batch)
            self._f1 += f1_of([Row("", failed=True)] * len(batch), batch)
            for texts in self._read.values():
                texts += [""] * len(batch)
            self._missing.setdefault(self._plan.receiver, Missing(self._plan.receiver, str(answer)))
            return
        self._right += _right(answer.rows, batch)
        self._f1 += f1_of(answer.rows, batch)
        self._failed += sum(row.failed for row in answer.rows)
        read = ((row.failed, q.said(row)) for row, q in zip(answer.rows, batch, strict=True))
        self._unparseable += sum(text is None and not failed for failed, text in read)
        self._unrephrased += len(answer.unrephrased)
        self._usage += replace(answer.usage, seconds={})
        if answer.speculation is not None:
            self._speculation = (self._speculation or Speculation()) + answer.speculation
        for name, rows in answer.by_member.items():
            self._by_member.setdefault(name, []).extend(_right(rows, batch))
        for name, texts in answer.read.items():
            self._read[name] += texts
        for row in answer.rows:
            for name, weight in row.weights.items():
                self._weights.setdefault(name, []).append(weight)
        for missing in answer.missing:
            self._missing.setdefault(missing.member, missing)

    def _time(self, question: Question) -> Mapping[str, float]:
        """The seconds of one question on its own; none where it fails."""
        try:
            return self._fed.run(self._request([question]), self._plan).usage.seconds
        except MemberFailed as error:
            self._missing.setdefault(self._plan.receiver, Missing(self._plan.receiver, str(error)))
            return {}

    def _request(self, batch: Sequence[Question]) -> Request:
        fields = request_fields(batch, self._plan, self._instead)
        return self._fed.request(*(q.prompt for q in batch), **fields, generation=self._settings.generation)


def _right(rows: Sequence[Row], batch: Sequence[Question]) -> list[bool]:
    return [right for row, q in zip(rows, batch, strict=True) if (right := q.right(row)) is not None]


def f1_of(rows: Iterable[Row], questions: Iterable[Question]) -> list[float]:
    """Compute the token F1 of answers to questions whose scoring has one."""
    return [f1 for row, q in zip(rows, questions, strict=True) if (f1 := q.f1(row)) is not None]


def batched(plan: Plan, settings: Settings, questions: Sequence[Question]) -> list[list[Question]]:
    """As many at a time as the settings say, and fewer where members' texts would outgrow a small message."""
    speaks = plan.method.protocol.speaks or plan.speakers
    most = ANSWER_TOKENS // plan.method.t2t.max_tokens if speaks else len(questions)
    size = max(1, min(settings.task.batch_size, most))
    free = max(1, min(size, ANSWER_TOKENS // settings.generation.max_tokens))
    return list(batches(questions, size, free, settings.donors.answer))


def is_whole(found: Measurement, settings: Settings) -> bool:
    """Whether a measurement is what its case says: nobody was missing who should have been there."""
    return not found.failed and (not found.missing or settings.deadline_s is not None)
