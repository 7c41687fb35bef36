from __future__ import annotations

import math
import random

import pytest

from fedray.evaluation import metrics
from fedray.questions import scoring


def test_a_failed_sample_is_wrong() -> None:
    assert [scoring.is_right(choice, 0) for choice in (0, 1, None)] == [True, False, False]


def test_accuracy_and_its_error() -> None:
    assert metrics.accuracy([True, False, True, True]) == 0.75
    assert metrics.stderr(0.75, 4) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert metrics.stderr(1.0, 10) == 0.0
    with pytest.raises(ValueError):
        metrics.accuracy([])


def test_clustered_stderr_by_hand() -> None:
    right = [True, True, False, True, False, False]
    # share 1/2; the sums of deviations per cluster are a: 1/2 + 1/2 = 1, b: -1/2 + 1/2 = 0, c: -1/2 - 1/2 = -1;
    # with 3 clusters of 6 answers: sqrt(3/2 * (1 + 0 + 1)) / 6
    assert metrics.clustered_stderr(right, list("aabbcc")) == pytest.approx(math.sqrt(3.0) / 6)
    assert metrics.clustered_stderr(right, list("abcdef")) == pytest.approx(math.sqrt(0.25 / 5)), "each on its own"
    assert metrics.clustered_stderr(right, list("abacbc")) == 0.0, "every entity is right once and wrong once"
    assert math.isnan(metrics.clustered_stderr(right, "aaaaaa"))
    with pytest.raises(ValueError):
        metrics.clustered_stderr(right, "ab")


def test_clustered_stderr_is_the_spread_of_repeated_drawings() -> None:
    """Clusters of four answers that are all right or all wrong: the error of 50 shares, not of 200."""
    rng = random.Random(0)
    shares, errors = [], []
    for _ in range(400):
        right = [hit for hit in (rng.random() < 0.6 for _ in range(50)) for _ in range(4)]
        shares.append(metrics.accuracy(right))
        errors.append(metrics.clustered_stderr(right, [str(i // 4) for i in range(200)]))
    spread = math.sqrt(sum((s - 0.6) ** 2 for s in shares) / len(shares))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


def test_spread() -> None:
    found = metrics.spread([float(i) for i in range(1, 102)])
    assert (found.mean, found.p50, found.p95) == (51.0, 51.0, 96.0)
    with pytest.raises(ValueError):
        metrics.spread([])


@pytest.mark.parametrize(
    ("rescued", "harmed", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 2 / 2**5), (0, 5, 2 / 2**5), (8, 1, 2 * (1 + 9) / 2**9)],
)
def test_mcnemar_is_exact(rescued: int, harmed: int, p: float) -> None:
    assert metrics.mcnemar(rescued, harmed) == pytest.approx(p)


def test_mcnemar_finds_what_it_should_and_no_more() -> None:
    rng = random.Random(0)
    p_values = [metrics.mcnemar(k, 40 - k) for k in (sum(rng.random() < 0.5 for _ in range(40)) for _ in range(500))]
    assert sum(p < 0.05 for p in p_values) / 500 <= 0.05


def test_compare_pairs_the_questions() -> None:
    found = metrics.compare([True, False, False, False, True], [True, True, True, False, False])
    assert (found.n, found.accuracy_alone, found.accuracy) == (5, 0.4, 0.6)
    assert (found.rescued, found.harmed, found.p_value) == (2, 1, 1.0)
    assert found.stderr == found.stderr_alone
    with pytest.raises(ValueError):
        metrics.compare([True], [True, False])


def test_percentiles_of_the_requests_that_had_the_phase() -> None:
    requests = [{"decode": float(i)} for i in range(1, 102)] + [{"gate": 3.0}]
    found = metrics.seconds_of(requests)
    assert (found["decode"].mean, found["decode"].p50, found["decode"].p95) == (51.0, 51.0, 96.0)
    assert (found["gate"].mean, found["gate"].p50, found["gate"].p95) == (3.0, 3.0, 3.0)
    assert metrics.seconds_of([]) == {}
    assert metrics.spread([1.0, 1.0, 4.0]).mean == 2.0
    with pytest.raises(ValueError):
        metrics.spread([])
