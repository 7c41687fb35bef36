"""From what was measured to rows, paired comparisons, and what each sender gives and brings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import TypeVar

from fedray.evaluation.cases import STANDALONE, Case
from fedray.evaluation.leakage_table import leaks
from fedray.evaluation.measure import Measurement
from fedray.evaluation.metrics import Comparison, accuracy, clustered_stderr, compare, spread
from fedray.methods.specfed import Speculation
from fedray.protocols import PROTOCOLS
from fedray.questions.tasks import Question
from fedray.reporting.report import Compared, Contribution, Evaluated
from fedray.types import MemberInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Paired:
    """Two cases on the same questions. p_value: the largest of the seeds, so that it claims what all of them show."""

    found: Comparison
    p_value: float


class Results:
    """Grows case by case, seed by seed; every figure of the report is read from it."""

    def __init__(self, fuser: str, members: Mapping[str, MemberInfo]) -> None:
        """fuser: the kind that c2c fuses with."""
        self._fuser, self._members = fuser, members
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
        gain = alone.found.accuracy - alone.found.accuracy_alone
        seconds = _joined([m.seconds for m in measured])
        total = spread(seconds["total"]) if "total" in seconds else None
        payload, tokens = (sum(getattr(m, name) for m in measured) for name in ("payload_bytes", "prompt_tokens"))
        way, protocol = case.way, PROTOCOLS[case.way.protocol]
        return Evaluated(
            task=case.task,
            receiver=case.receiver,
            senders=case.senders,
            way=str(way),
            protocol=way.protocol,
            type=protocol.type_of(self._members[name] for name in (case.receiver, *case.senders)),
            fuser=self._fuser if protocol.fuses else "none",
            fusion=way.fusion,
            gate=way.gate,
            rephrase=way.rephrase,
            control=way.control,
            t2t_gate=way.t2t_gate,
            full=way.full,
            answer_all=way.answer_all,
            seeds=tuple(of_seed),
            n=len(right),
            accuracy=accuracy(right),
            stderr=clustered_stderr(right, clusters),
            accuracy_alone=alone.found.accuracy_alone,
            p_alone=alone.p_value,
            gain_points=100 * gain,
            gain_percent=100 * gain / alone.found.accuracy_alone if alone.found.accuracy_alone else None,
            rescued=alone.found.rescued,
            harmed=alone.found.harmed,
            unparseable=sum(m.unparseable for m in measured) / len(right),
            failed=sum(m.failed for m in measured),
            unrephrased=sum(m.unrephrased for m in measured),
            latency_requests=len(seconds.get("total", ())),
            latency_mean=total and total.mean,
            latency_p50=total and total.p50,
            latency_p95=total and total.p95,
            latency={phase: spread(values) for phase, values in seconds.items()},
            payload_bytes=payload,
            bytes_per_token=payload / tokens if tokens else 0.0,
            bytes_per_token_analytic=self._analytic(case),
            weights=_means([m.weights for m in measured]),
            by_member={name: accuracy(r) for name, r in _joined([m.by_member for m in measured]).items()},
            missing=tuple({m.member: m for m in chain.from_iterable(m.missing for m in measured)}.values()),
            wall_s=sum(m.wall_s for m in measured),
            leakage=leaks(asked[first], measured[0].read) if measured[0].read else (),
            scoring=asked[first][0].scoring,
            wire=way.wire.codec,
            keep=way.wire.keep,
            score=way.wire.score,
            keep_layers=way.wire.keep_layers,
            layer_score=way.wire.layer_score,
            gamma=way.gamma,
            top_k=way.top_k,
            reconstruct=way.reconstruct,
            temperature=way.temperature,
            measured=way.measured,
            tokens_per_s=_rate(measured),
            speculation=_speculation(measured),
            fedattn=way.fedattn,
        )

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
        given = self.row(case).bytes_per_token
        return [
            Contribution(
                task=case.task,
                receiver=case.receiver,
                way=str(case.way),
                of=len(case.senders),
                sender=sender,
                points=_points(paired),
                p=paired.p_value,
                bytes_per_token=given - self.row(rest).bytes_per_token,
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
            if a.way.wire != b.way.wire:  # another wire is compared with the plain one of the same way alone
                plain = a.way.over_plain_wire
                if same_place and plain == b.way.over_plain_wire and plain in (a.way, b.way):
                    yield (a, b) if a.way == plain else (b, a)
                continue
            if a.way.protocol == b.way.protocol == "specfed":  # each with the same without drafts
                base = replace(a.way.baseline, temperature=b.way.temperature)
                if same_place and a.way.temperature == b.way.temperature and base in (a.way, b.way):
                    yield (a, b) if a.way == base else (b, a)
                continue
            same_text, same_way = a.way.rephrase == b.way.rephrase, _but_rephrase(a) == _but_rephrase(b)
            if same_place and same_text != same_way:
                yield (a, b) if _rank(a) <= _rank(b) else (b, a)

    def _compared(self, a: Case, b: Case) -> Compared:
        paired, order = self._paired(a, b), self.cases
        found = paired.found
        margin = self._margin(a, b)
        return Compared(
            task=a.task,
            rows=(order.index(a), order.index(b)),
            a=_label(a),
            b=_label(b),
            n=found.n,
            accuracy_a=found.accuracy_alone,
            accuracy_b=found.accuracy,
            points=_points(paired),
            rescued=found.rescued,
            harmed=found.harmed,
            p=paired.p_value,
            low=_points(paired) - margin if math.isfinite(margin) else None,
            high=_points(paired) + margin if math.isfinite(margin) else None,
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
        whole = PROTOCOLS[case.way.protocol].whole_bytes
        return whole and whole([self._members[name] for name in case.senders])


def _rank(case: Case) -> int:
    """Which of two ways is asked what it adds to the other: caches come last."""
    return list(PROTOCOLS).index(case.way.protocol)


def _rate(measured: Sequence[Measurement]) -> float | None:
    """Answer tokens per second, asked in batches."""
    seconds = sum(m.answering_s for m in measured)
    return sum(m.answer_tokens for m in measured) / seconds if seconds else None


def _speculation(measured: Sequence[Measurement]) -> dict[str, float | None]:
    found = [m.speculation for m in measured if m.speculation is not None]
    return sum(found, Speculation()).figures() if found else {}


def _but_rephrase(case: Case) -> tuple[object, ...]:
    way = case.way
    return way.protocol, way.fusion, way.gate, way.t2t_gate, way.full, way.control, way.answer_all


def _label(case: Case) -> str:
    return str(case.way) if case.senders else f"{case.receiver} {'alone' if case.way == STANDALONE else case.way}"


def _points(paired: Paired) -> float:
    return 100 * (paired.found.accuracy - paired.found.accuracy_alone)


def _joined(parts: Sequence[Mapping[str, Sequence[T]]]) -> dict[str, list[T]]:
    """The lists of each key behind one another."""
    joined: dict[str, list[T]] = {}
    for part in parts:
        for key, values in part.items():
            joined.setdefault(key, []).extend(values)
    return joined


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    listed = _joined([{key: [value] for key, value in part.items()} for part in parts])
    return {key: sum(values) / len(values) for key, values in listed.items()}
