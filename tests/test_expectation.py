"""What requests and batches are expected to take."""

from __future__ import annotations

import pytest
from shared_cluster import RECEIVER
from support.admitting import MEMBERS, PLAN, admission, answer_to, asking, plan_of, small

from fedray.federation.expectation import Expectation
from fedray.types import Generation, Request, Talk, Usage


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (small(), 3 * 6),
        (Request((), token_ids=((1, 2, 3),), generation=Generation(7)), 3 * 10),
        (asking("what?", choices=(("yes", "no"),)), 3 * 10),
        (asking("what?", evidence={RECEIVER: ("a note",)}, generation=Generation(1)), 3 * 6 + 6),
        (asking("what?", talk=Talk((("one", "two"),)), generation=Generation(1)), 3 * 12),
        (asking("x" * 5000), 3 * 1000),  # no more than their contexts hold
    ],
)
def test_kv_caches_are_foretold_from_prompts_and_answers(request_: Request, tokens: int) -> None:
    queue = admission()
    ticket = queue.admit(request_, PLAN, "", now=0)
    assert ticket.size == 8 * tokens
    assert ticket.sent < ticket.size
    alone = queue.admit(request_, plan_of(RECEIVER, (), protocol="standalone"), "", now=0)
    assert alone.sent == 0 < alone.size < ticket.size


def test_tokens_per_byte_are_learnt() -> None:
    queue, request = Expectation(MEMBERS), small("x" * 400)
    for _ in range(30):
        queue.read(answer_to(request, usage=Usage(prompt_tokens=100)), request)
    assert queue.sizes(request, PLAN)[0] == pytest.approx(3 * 8 * 101, rel=0.01)


def test_seconds_are_a_line_over_rows() -> None:
    queue = Expectation(MEMBERS)
    assert queue.seconds(32) == 0.0 and queue.rows_in(1.0, 32) == 32  # nothing is known
    queue.took(8, 1.0)
    assert queue.seconds(1) == queue.seconds(32) == 1.0 and queue.rows_in(1.0, 32) == 32
    for _ in range(20):
        queue.took(32, 2.6)
        queue.took(2, 0.2 + 2 * 0.075)
    assert queue.seconds(32) == pytest.approx(2.6, rel=0.01) and queue.seconds(2) == pytest.approx(0.35, rel=0.1)
    assert queue.rows_in(2.0, 32) == 10  # half of it
    assert queue.rows_in(0.1, 32) == 2  # as long as it takes without any
    assert queue.rows_in(100.0, 32) == queue.rows_in(float("inf"), 32) == 32


@pytest.mark.parametrize(
    "took", [((4, 5.0), (8, 0.1)), ((4, 0.1), (5, 9.0)), ((4, 1.0), (4, 3.0)), ((1, 0.0), (2, 0.0))]
)
def test_seconds_never_fall_and_never_rise_faster_than_rows(took: tuple[tuple[int, float], ...]) -> None:
    queue = Expectation(MEMBERS)
    for rows, seconds in took * 4:
        queue.took(rows, seconds)
        assert 0 <= queue.seconds(1) <= queue.seconds(30) <= 30 * queue.seconds(1) + 1e-9
