"""How good, how sure, how fast. A failed sample counts as wrong; nothing is left out of a share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fedray.reporting.report import Effect, Spread
from fedray.schema import attributes

QUESTION, DOCUMENT = "question", "document"  # what of all messages is another's
MARGIN = 2.0  # points within which an effect is none
FEWEST = 20  # clusters that an interval needs before anything is said of it


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways of answering the same n questions: before (the receiver alone) and after (federated)."""

    n: int
    accuracy_alone: float
    accuracy: float
    rescued: int  # wrong before, right after
    harmed: int  # right before, wrong after
    p_value: float  # exact McNemar test, two-sided

    @property
    def stderr_alone(self) -> float:
        return stderr(self.accuracy_alone, self.n)

    @property
    def stderr(self) -> float:
        return stderr(self.accuracy, self.n)

    def figures(self) -> dict[str, Any]:
        """Name what a report says of it."""
        return {**asdict(self), "stderr": self.stderr}


def accuracy(right: Sequence[float]) -> float:
    """Share of right answers; raises ValueError without any."""
    if not right:
        raise ValueError("accuracy of no answers is undefined")
    return sum(right) / len(right)


def stderr(share: float, n: int) -> float:
    """Standard error of a share of n independent answers (binomial)."""
    return math.sqrt(share * (1 - share) / n)


def clustered_stderr(right: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of a share whose answers come in clusters (questions about one entity stand or fall together).

    The cluster-robust variance of a mean with the correction G / (G - 1) for G clusters; not a number for one cluster.
    Raises ValueError on different or zero lengths.
    """
    share = accuracy(right)
    sums: dict[str, float] = {}
    for hit, cluster in zip(right, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + hit - share
    count = len(sums)
    if count == 1:
        return math.nan
    return math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / len(right)


def mcnemar(rescued: int, harmed: int) -> float:
    """Exact two-sided p-value that rescuing and harming are equally likely: only questions that changed count."""
    from scipy.stats import binomtest  # a second to import, which a plan does without

    changed = rescued + harmed
    return float(binomtest(rescued, changed, 0.5).pvalue) if changed else 1.0


def compare(before: Sequence[bool], after: Sequence[bool]) -> Comparison:
    """Pair the same questions answered twice. Raises ValueError on different or zero lengths."""
    pairs = list(zip(before, after, strict=True))
    rescued = sum(b < a for b, a in pairs)
    harmed = sum(b > a for b, a in pairs)
    return Comparison(len(pairs), accuracy(before), accuracy(after), rescued, harmed, mcnemar(rescued, harmed))


def effect(before: Sequence[float], after: Sequence[float], clusters: Sequence[str]) -> Effect:
    """What `after` changes over `before` in points, on the same questions, with a 95 % interval over clusters."""
    changes = [y - x for x, y in zip(before, after, strict=True)]
    margin, points = 196 * clustered_stderr(changes, clusters), 100 * accuracy(changes)
    known = math.isfinite(margin)
    return Effect(points, points - margin if known else None, points + margin if known else None)


@dataclass(frozen=True, slots=True)
class Effects:
    """What messages do: by being there, and by being those of the question.

    system_gain: right answers with them over alone; pairing_gain: over the mean of donors' messages; harm: alone over
    those; soft_gain: over soft prompts in their place; question_gain: where `pairing_gain` is of documents, over
    messages of senders that were asked another question. read: "read" where all gains that a message must have are
    above 0, "no effect" where the pairing gain is within MARGIN; "" else. sender_gains: per sender over donors'
    messages of it alone.
    """

    system_gain: Effect
    pairing_gain: Effect | None = None
    harm: Effect | None = None
    soft_gain: Effect | None = None
    question_gain: Effect | None = None
    read: str = ""
    sender_gains: Mapping[str, Effect] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Name what a report says of it."""
        return attributes(
            self, "system_gain", "pairing_gain", "harm", "soft_gain", "question_gain", "read", "sender_gains"
        )


def effects(
    alone: Sequence[bool],
    matched: Sequence[bool],
    deranged: Mapping[str, Sequence[Sequence[bool]]],
    clusters: Sequence[str],
    soft: Sequence[bool] | None = None,
    slots: bool = False,
) -> Effects:
    """Compare answers to the same questions.

    deranged: per kind of derangement (`Deranging.kinds`) each donor's; soft: answers with soft prompts, where they were
    measured; slots: whether messages are slots, which are called read only where they are better than soft prompts.
    """
    system, prompted = effect(alone, matched, clusters), None if soft is None else effect(soft, matched, clusters)
    if not deranged:
        return Effects(system, soft_gain=prompted)
    means = {kind: [sum(r) / len(r) for r in zip(*ways, strict=True)] for kind, ways in deranged.items()}
    gains = {kind: effect(mean, matched, clusters) for kind, mean in means.items()}
    whole = DOCUMENT if DOCUMENT in gains else QUESTION
    pairing, harm = gains.pop(whole), effect(means[whole], alone, clusters)
    needed = [system, pairing, *([prompted] if slots else [])]
    said = verdict(needed, pairing, len(set(clusters)))
    return Effects(system, pairing, harm, prompted, gains.pop(QUESTION, None), said, gains)


def verdict(needed: Sequence[Effect | None], pairing: Effect, clusters: int) -> str:
    """Say whether messages are read. needed: the gains that they must have; None was not measured.

    "no effect" takes two one-sided tests at 5 %, and so many clusters that a share of them as large as the margin would
    hardly (in 5 % of cases) go unseen: 3 / margin, whatever the interval.
    """
    if clusters < FEWEST or pairing.low is None:
        return ""
    if all(gain is not None and gain.low is not None and gain.low > 0 for gain in needed):
        return "read"
    one_sided = 1.645 / 1.96 * (pairing.points - pairing.low)
    return "no effect" if abs(pairing.points) + one_sided < MARGIN and 300 / clusters <= MARGIN else ""


def spread(values: Sequence[float]) -> Spread:
    """Mean, p50 and p95; raises ValueError without any."""
    if not values:
        raise ValueError("the spread of no values is undefined")
    p50, p95 = np.percentile(values, (50, 95))
    return Spread(float(np.mean(values)), float(p50), float(p95))


def seconds_of(requests: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of each phase's seconds, over the requests that had the phase."""
    phases: dict[str, list[float]] = {}
    for seconds in requests:
        for phase, value in seconds.items():
            phases.setdefault(phase, []).append(value)
    return {phase: spread(values) for phase, values in phases.items()}
