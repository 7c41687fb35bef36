"""From what was measured to rows, paired comparisons, and what each sender gives and brings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, TypeVar

from fedray.evaluation.cases import Case
from fedray.evaluation.leakage_table import leaks
from fedray.evaluation.measure import Measurement
from fedray.evaluation.metrics import Comparison, accuracy, clustered_stderr, compare, effects, spread
from fedray.methods.method import Wire
from fedray.methods.specfed import Speculation
from fedray.protocols import PROTOCOLS, protocol_of
from fedray.questions.tasks import Question
from fedray.reporting.report import Compared, Contribution, Cost, Evaluated, Found, Who
from fedray.schema import picked
from fedray.types import MemberInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Paired:
    """Two cases on the same questions. p_value: the largest of the seeds, so that it claims what all of them show."""

    found: Comparison
    p_value: float


class Results:
    """Grows case by case, seed by seed; every figure of the report is read from it."""

    def __init__(self, members: Mapping[str, MemberInfo]) -> None:
        self._members = members
        self._done: dict[Case, dict[int, Measurement]] = {}
        self._questions: dict[tuple[str, int], Sequence[Question]] = {}

    def add(self, case: Case, seed: int, questions: Sequence[Question], found: Measurement) -> None:
        self._done.setdefault(case, {})[seed] = found
        self._questions.setdefault((case.task, seed), questions)

    @property
    def cases(self) -> list[Case]:
        """Those with something to show, in the order they were asked."""
        return list(self._done)

    def rows(self) -> tuple[Evaluated, ...]:
        return tuple(map(self.row, self.cases))

    def row(self, case: Case) -> Evaluated:
        """One case, all its seeds together."""
        of_seed = self._done[case]
        measured = list(of_seed.values())
        right = list(chain.from_iterable(m.right for m in measured))
        asked = {seed: self._questions[case.task, seed] for seed in of_seed}
        clusters = [q.entity or q.id for q in chain.from_iterable(asked.values())]
        first = next(iter(of_seed))
        alone = self._paired(case.alone, case)
        f1, f1_alone = (self._f1(of, of_seed) for of in (case, case.alone))
        seconds = _joined([m.seconds for m in measured])
        payload, tokens = (sum(getattr(m, name) for m in measured) for name in ("payload_bytes", "prompt_tokens"))
        weights = _means([m.weights for m in measured])
        kind = protocol_of(case.method).type_of(self._members[name] for name in (case.receiver, *case.senders))
        missing = tuple({m.member: m for m in chain.from_iterable(m.missing for m in measured)}.values())
        return picked(
            Evaluated,
            case,  # its task, way and temperature
            scoring=asked[first][0].read_by,
            seeds=tuple(of_seed),
            who=Who(case.receiver, case.senders, kind, missing),
            how=case.method,
            found=picked(
                Found,
                alone,  # its p-value, the largest of the seeds
                alone.found,  # accuracy alone, rescued and harmed
                **({} if case.is_alone else self._effects(case, clusters)),
                donors="+".join(dict.fromkeys(m.donors for m in measured if m.donors)),
                n=len(right),
                accuracy=accuracy(right),
                stderr=clustered_stderr(right, clusters),
                f1=f1,
                f1_alone=f1_alone,
                **{name: sum(getattr(m, name) for m in measured) for name in ("failed", "unrephrased", "unparseable")},
                groups=_groups(list(chain.from_iterable(asked.values())), right),
                by_member={name: accuracy(r) for name, r in _joined([m.by_member for m in measured]).items()},
                weights={"all": weights} if weights else {},
                speculation=_speculation(measured),
            ),
            cost=Cost(
                payload,
                payload / tokens if tokens else 0.0,
                self._analytic(case),
                {phase: spread(values) for phase, values in seconds.items()},
                requests=len(seconds.get("total", ())),
                tokens_per_s=_rate(measured),
                wall_s=sum(m.wall_s for m in measured),
            ),
            leakage=leaks(asked[first], measured[0].read) if measured[0].read else (),
        )

    def _f1(self, case: Case, seeds: Iterable[int]) -> float | None:
        """Mean token F1 over the seeds; None where the scoring has none."""
        done = self._done[case]
        found = list(chain.from_iterable(done[seed].f1 for seed in seeds if seed in done))
        return accuracy(found) if found else None

    def _effects(self, case: Case, clusters: Sequence[str]) -> dict[str, Any]:
        """What messages do in a case; all its seeds together."""
        measured, before = self._done[case], self._done[case.alone]
        if not measured.keys() <= before.keys():
            return {}
        found = list(measured.values())
        kinds = [kind for kind in found[0].deranged if all(kind in m.deranged for m in found)]
        ways = {kind: _behind([m.deranged[kind] for m in found]) for kind in kinds}
        wire = replace(case.method.wire, codec=Wire().codec)  # what is sent is not read
        control = replace(case, method=replace(case.method, control="soft", wire=wire))
        prompted = self._done.get(control, {}) if case.method.control == "none" else {}
        sides = (before, measured, *([prompted] if measured.keys() <= prompted.keys() else []))
        alone, matched, *soft = (list(chain.from_iterable(of[seed].right for seed in measured)) for of in sides)
        return effects(alone, matched, ways, clusters, next(iter(soft), None), case.method.sends_slots).figures()

    def comparisons(self) -> tuple[Compared, ...]:
        """Pairs of ways that differ, of the same members in the same roles, either in rephrasing or in anything else;
        another wire is compared with whole caches as they are;
        and each member without help against the federations it is in (beyond the receiver alone, which rows know)."""
        return tuple(self._compared(a, b) for a, b in self._pairs())

    def contributions(self) -> tuple[Contribution, ...]:
        """Of every case that was also measured without each of its senders: what leaving each out changes."""
        return tuple(found for case in self.cases for found in self._contributions(case))

    def _contributions(self, case: Case) -> list[Contribution]:
        without = {s: replace(case, senders=tuple(name for name in case.senders if name != s)) for s in case.senders}
        if len(without) < 2 or not all(rest in self._done for rest in without.values()):
            return []
        given = self.row(case).cost.bytes_per_token
        return [
            picked(
                Contribution,
                case,  # its task, receiver and way
                of=len(case.senders),
                sender=sender,
                points=_points(paired),
                p=paired.p_value,
                bytes_per_token=given - self.row(rest).cost.bytes_per_token,
            )
            for sender, rest in without.items()
            if (paired := self._paired(rest, case))
        ]

    def _pairs(self) -> Iterator[tuple[Case, Case]]:
        for a, b in combinations(self.cases, 2):
            if a.task != b.task or not b.senders:
                continue
            if not a.senders and a.receiver in (b.receiver, *b.senders) and a != b.alone:
                yield a, b
            same_place = (a.receiver, set(a.senders)) == (b.receiver, set(b.senders))
            own, other = a.method, b.method
            if own.wire != other.wire:  # another wire is compared with the plain one of the same method alone
                plain = replace(own, wire=Wire())
                if same_place and plain == replace(other, wire=Wire()) and plain in (own, other):
                    yield (a, b) if own == plain else (b, a)
                continue
            same_protocol = own.protocol.name == other.protocol.name
            if same_protocol and (base := own.protocol.baseline) is not None:
                without = replace(own, protocol=base)
                if same_place and a.temperature == b.temperature and without in (own, other):
                    yield (a, b) if own == without else (b, a)
                continue
            but_text = [replace(how, rephrase="none", protocol=own.protocol) for how in (own, other)]
            same_text, same_way = own.rephrase == other.rephrase, same_protocol and but_text[0] == but_text[1]
            if same_place and same_text != same_way:
                yield (a, b) if _rank(a) <= _rank(b) else (b, a)

    def _compared(self, a: Case, b: Case) -> Compared:
        paired, order, margin = self._paired(a, b), self.cases, self._margin(a, b)
        points = _points(paired)
        return picked(
            Compared,
            paired.found,  # its n, rescued and harmed
            task=a.task,
            rows=(order.index(a), order.index(b)),
            a=_label(a),
            b=_label(b),
            accuracy_a=paired.found.accuracy_alone,
            accuracy_b=paired.found.accuracy,
            points=points,
            p=paired.p_value,
            low=points - margin if math.isfinite(margin) else None,
            high=points + margin if math.isfinite(margin) else None,
        )

    def _margin(self, a: Case, b: Case) -> float:
        """Half of the 95 % interval of what b changes over a, in points: both answered the same questions."""
        seeds = [seed for seed in self._done[a] if seed in self._done[b]]
        changes: list[int] = []
        clusters: list[str] = []
        for seed in seeds:
            before, after = self._done[a][seed].right, self._done[b][seed].right
            changes += [int(y) - int(x) for x, y in zip(before, after, strict=True)]
            clusters += [q.entity or q.id for q in self._questions[a.task, seed]]
        return 196 * clustered_stderr(changes, clusters)

    def _paired(self, a: Case, b: Case) -> Paired:
        """What b changes over a, on the seeds that both have."""
        one, two = self._done[a], self._done[b]
        seeds = [seed for seed in one if seed in two]
        found = compare(*([right for seed in seeds for right in done[seed].right] for done in (one, two)))
        return Paired(found, max(compare(one[seed].right, two[seed].right).p_value for seed in seeds))

    def _analytic(self, case: Case) -> float | None:
        """Bytes per token if every sender gives all it has; known for whole caches and for text. In FedAttn it depends
        on how many of the prompt's tokens the publisher holds."""
        whole = protocol_of(case.method).whole_bytes
        return whole and whole([self._members[name] for name in case.senders])


def _rank(case: Case) -> int:
    """Which of two ways is asked what it adds to the other: caches come last."""
    return list(PROTOCOLS).index(case.method.protocol.name)


def _groups(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    names = sorted({question.group for question in questions})
    split = {n: [ok for q, ok in zip(questions, right, strict=True) if q.group == n] for n in names if len(names) > 1}
    return {name: accuracy(found) for name, found in split.items()}


def _rate(measured: Sequence[Measurement]) -> float | None:
    """Answer tokens per second, asked in batches."""
    seconds = sum(m.answering_s for m in measured)
    return sum(m.answer_tokens for m in measured) / seconds if seconds else None


def _speculation(measured: Sequence[Measurement]) -> dict[str, float | None]:
    found = [m.speculation for m in measured if m.speculation is not None]
    return sum(found, Speculation()).figures() if found else {}


def _label(case: Case) -> str:
    return case.way if case.senders else f"{case.receiver} {'alone' if case.is_alone else case.way}"


def _points(paired: Paired) -> float:
    return 100 * (paired.found.accuracy - paired.found.accuracy_alone)


def _joined(parts: Sequence[Mapping[str, Sequence[T]]]) -> dict[str, list[T]]:
    """The lists of each key behind one another."""
    joined: dict[str, list[T]] = {}
    for part in parts:
        for key, values in part.items():
            joined.setdefault(key, []).extend(values)
    return joined


def _behind(of_seeds: Sequence[Sequence[Sequence[bool]]]) -> list[tuple[bool, ...]]:
    """Per donor the answers of all seeds behind one another; of as many donors as every seed has."""
    return [tuple(chain.from_iterable(ways)) for ways in zip(*of_seeds, strict=False)]


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    listed = _joined([{key: [value] for key, value in part.items()} for part in parts])
    return {key: sum(values) / len(values) for key, values in listed.items()}
