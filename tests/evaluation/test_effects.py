"""Effects of messages against examples computed by hand, and what may be said of them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from fedray.evaluation.metrics import DOCUMENT, FEWEST, QUESTION, Effects, effect, effects, verdict
from fedray.reporting.report import Effect, Found


def test_effects_of_a_hand_computed_example():
    """Six questions about three entities, two donors. Per entity the changes of P sum to 1.5, 0.5 and 0."""
    alone, matched = [0, 0, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0]
    first, second = [0, 0, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0]
    clusters = ["a", "a", "b", "b", "c", "c"]
    found = effects(alone, matched, {QUESTION: [first, second]}, clusters)  # pyright: ignore[reportArgumentType]
    assert found.system_gain.points == pytest.approx(100 * 2 / 6)
    # P: 0.5, 1, 0.5, 0, 0, -0.5: mean 0.25; sums by entity less 2 * 0.25: 1.0, 0.0, -1.0
    stderr = math.sqrt(3 / 2 * (1.0**2 + 0.0**2 + 1.0**2)) / 6
    assert found.pairing_gain is not None and found.pairing_gain.points == pytest.approx(25)
    assert found.pairing_gain.low == pytest.approx(25 - 196 * stderr)
    assert found.pairing_gain.high == pytest.approx(25 + 196 * stderr)
    # harm: alone minus the donors' mean: -0.5, 0, 0.5, 0, 0, -0.5
    assert found.harm is not None and found.harm.points == pytest.approx(100 * -0.5 / 6)
    assert found.system_gain.points - found.pairing_gain.points == pytest.approx(-found.harm.points)
    assert found.read == "" and found.question_gain is None


def test_documents_come_first_and_questions_beside_them():
    n = 8
    found = effects(
        [False] * n, [True] * n, {DOCUMENT: [[False] * n], QUESTION: [[True] * n]}, [str(i) for i in range(n)]
    )
    assert found.pairing_gain == Effect(100.0, 100.0, 100.0) and found.question_gain == Effect(0.0, 0.0, 0.0)


def test_what_each_sender_gives_stands_beside_what_all_give():
    n = 8
    half = [i < 4 for i in range(n)]
    deranged = {DOCUMENT: [[False] * n], QUESTION: [[True] * n], "one": [half], "two": [[True] * n]}
    found = effects([False] * n, [True] * n, deranged, [str(i) for i in range(n)])
    assert found.pairing_gain == Effect(100.0, 100.0, 100.0) and found.question_gain == Effect(0.0, 0.0, 0.0)
    assert [(name, gain.points) for name, gain in found.sender_gains.items()] == [("one", 50.0), ("two", 0.0)]


def test_without_donors_there_is_a_system_gain_alone():
    assert effects([False, True], [True, True], {}, ["a", "b"]) == Effects(effect([0, 1], [1, 1], ["a", "b"]))
    single = effect([0, 1], [1, 1], ["a", "a"])
    assert (single.low, single.high, str(single)) == (None, None, "+50.0")
    assert str(Effect(1.0, -2.25, 4.25)) == "+1.0 (-2.2 to +4.2)"


ABOVE, BELOW, NONE = Effect(5.0, 1.0, 9.0), Effect(5.0, -1.0, 11.0), Effect(0.1, -1.0, 1.2)


@pytest.mark.parametrize(
    ("system", "pairing", "clusters", "said"),
    [
        (ABOVE, ABOVE, FEWEST, "read"),
        (ABOVE, ABOVE, FEWEST - 1, ""),  # an interval of so few is none
        (ABOVE, BELOW, 200, ""),
        (BELOW, ABOVE, 200, ""),
        (ABOVE, NONE, 150, "no effect"),
        (ABOVE, NONE, 149, ""),  # an effect on one in fifty would go unseen
        (ABOVE, Effect(1.5, 0.4, 2.6), 500, "read"),
        (BELOW, Effect(1.5, 0.4, 2.6), 500, ""),  # its upper one-sided bound is 2.4
        (BELOW, Effect(1.5, 1.1, 1.9), 500, "no effect"),
        (BELOW, Effect(-1.5, -2.6, -0.4), 500, ""),
        (BELOW, Effect(0.0), 500, ""),
    ],
)
def test_what_may_be_said(system: Effect, pairing: Effect, clusters: int, said: str):
    assert verdict([system, pairing], pairing, clusters) == said


def test_slots_are_read_only_where_they_are_better_than_soft_prompts():
    alone, matched, clusters = [False] * 200, [i < 100 for i in range(200)], [str(i) for i in range(200)]
    deranged = {QUESTION: [alone]}
    assert effects(alone, matched, deranged, clusters).read == "read"
    assert effects(alone, matched, deranged, clusters, slots=True).read == ""  # not measured
    assert effects(alone, matched, deranged, clusters, matched, slots=True).read == ""
    found = effects(alone, matched, deranged, clusters, [i < 60 for i in range(200)], slots=True)
    assert found.read == "read" and found.soft_gain is not None and found.soft_gain.points == pytest.approx(20)


def test_no_effect_is_hardly_said_where_there_is_one():
    """Of 400 questions whose pairing gain is the margin, "no effect" is said in about 5 % of draws at most."""
    rng, said = random.Random(0), 0
    for _ in range(300):
        matched = [rng.random() < 0.51 for _ in range(400)]
        deranged = [right if rng.random() > 0.04 else False for right in matched]  # 2 points fewer
        found = effects([False] * 400, matched, {QUESTION: [deranged]}, [str(i) for i in range(400)])
        said += found.read == "no effect"
    assert said / 300 < 0.1


def test_numbers_of_what_was_found():
    found = Found(n=4, accuracy=0.5, system_gain=Effect(5.0, 1.0, 9.0), donors="1 different", read="read")
    assert replace(found, sender_gains={"llama-1b": Effect(2.0)}).numbers()["pairing_gain/llama-1b"] == 2.0
    numbers = found.numbers()
    assert numbers["system_gain"] == 5.0 and numbers["pairing_gain"] is None and numbers["n"] == 4
    assert not {"donors", "read", "weights", "groups"} & numbers.keys()
