"""How good, how sure, how fast. A failed sample counts as wrong; nothing is left out of a share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fedray.reporting.report import Spread


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


def accuracy(right: Sequence[int]) -> float:
    """Share of right answers; raises ValueError without any."""
    if not right:
        raise ValueError("accuracy of no answers is undefined")
    return sum(right) / len(right)


def stderr(share: float, n: int) -> float:
    """Standard error of a share of n independent answers (binomial)."""
    return math.sqrt(share * (1 - share) / n)


def clustered_stderr(right: Sequence[int], clusters: Sequence[str]) -> float:
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
    changed = rescued + harmed
    return float(binomtest(rescued, changed, 0.5).pvalue) if changed else 1.0


def compare(before: Sequence[bool], after: Sequence[bool]) -> Comparison:
    """Pair the same questions answered twice. Raises ValueError on different or zero lengths."""
    pairs = list(zip(before, after, strict=True))
    rescued = sum(b < a for b, a in pairs)
    harmed = sum(b > a for b, a in pairs)
    return Comparison(len(pairs), accuracy(before), accuracy(after), rescued, harmed, mcnemar(rescued, harmed))


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
