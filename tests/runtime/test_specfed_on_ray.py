"""SpecFed on Ray: the same answers as in one process, nothing large at the driver, workers that die or stall."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from probes import some_of, start_counting, stop_counting
from support.methods import method, revised
from unreliable import Dozing, Dying

from fedray.errors import MemberFailed
from fedray.member.member import Member
from fedray.methods.specfed import SpecFed
from fedray.protocols import specfed
from fedray.protocols.group import LocalGroup
from fedray.runtime.actors import RayGroup, start
from fedray.runtime.placement import Placement
from fedray.types import Answer, Generation, Plan, Request
from fedray.world.world import World

pytestmark = pytest.mark.usefixtures("cluster")
DRAFT, WORKERS = "qwen2.5-0.5b", ("qwen2.5-1.5b", "qwen2.5-coder-0.5b")
WORLD = World(0)
KNOWN = [fact for fact in WORLD.split("test") if fact.attribute == "color" and fact.domain in ("gem", "star")]
REQUEST = Request(
    tuple(WORLD.tell(fact.domain, fact.name).user for fact in (KNOWN[0], KNOWN[-1])),
    generation=Generation(max_tokens=40),
)
PLAN = Plan(DRAFT, WORKERS, method(protocol=SpecFed(gamma=3, top_k=1.0), gate="none"))


@pytest.fixture(scope="module")
def group(embedded: RayGroup) -> RayGroup:
    return some_of(embedded, DRAFT, *WORKERS)


@pytest.fixture(scope="module")
def here() -> LocalGroup:
    return LocalGroup({name: Member(name) for name in (DRAFT, *WORKERS)})


def ask(group: Any, plan: Plan = PLAN, request: Request = REQUEST) -> Answer:
    return asyncio.run(specfed.run(request, plan, group))


def test_the_same_answers_as_in_one_process(group, here):
    one = replace(PLAN, senders=WORKERS[:1])
    alone = here._members[WORKERS[0]].alone("alone", REQUEST)
    for gamma in (1, 2, 5, 8):
        how = replace(PLAN.method.of(SpecFed), gamma=gamma)
        assert [r.tokens for r in ask(group, revised(one, protocol=how)).rows] == [r.tokens for r in alone.rows]
    warm = replace(REQUEST, generation=Generation(max_tokens=20, temperature=1.0, seed=5))
    for request in (REQUEST, warm):
        far, near = ask(group, request=request), ask(here, request=request)
        assert far.rows == near.rows and far.speculation == near.speculation is not None
        assert far.usage.payload_bytes == near.usage.payload_bytes > 0


def test_distributions_never_reach_the_driver(group):
    start_counting()
    answer = ask(group)
    assert answer.usage.payload_bytes > 100_000 and sum(stop_counting()) < 30_000


def with_one_that(cls: type[Member], group: RayGroup) -> tuple[RayGroup, RayGroup]:
    """(the draft and the first worker as they are, the second of another class; that one alone, to be closed)."""
    other = start(cls, [Placement(WORKERS[1], num_cpus=0.2)], {})
    return RayGroup({**group._actors, **other._actors}, {**group.members, **other.members}), other


def test_a_worker_that_dies_in_mid_answer(group, here):
    """The round goes on with the other's weight, and the answer says who is missing."""
    group, other = with_one_that(Dying, group)
    try:
        answer = ask(group)
        assert [m.member for m in answer.missing] == [WORKERS[1]] and "died" in answer.missing[0].reason
        assert answer.senders == WORKERS[:1]
        both, first = (ask(here, replace(PLAN, senders=names)) for names in (WORKERS, WORKERS[:1]))
        said = answer.rows[1].tokens
        assert said[:2] == both.rows[1].tokens[:2], "two rounds with both"
        assert len(said) >= 24, "the worker that is left knows gems"
        again = ask(group)  # nobody waits for the dead: now the other's own answer
        assert [r.tokens for r in again.rows] == [r.tokens for r in first.rows]
        with pytest.raises(MemberFailed, match="died"):
            ask(group, revised(PLAN, on_missing="error"))
    finally:
        other.close()


@pytest.mark.slow
def test_a_late_worker_is_left_out_and_catches_up(group, here):
    group, other = with_one_that(Dozing, group)
    try:
        how = replace(PLAN.method.of(SpecFed), gamma=1, patience_s=1.5)
        long = replace(REQUEST, generation=Generation(max_tokens=140, full=True))
        answer = ask(group, revised(PLAN, protocol=how), long)
        assert answer.senders == WORKERS, "it is there at the end"
        assert answer.missing[0].member == WORKERS[1] and answer.missing[0].reason.startswith("late in ")
        found = answer.speculation
        assert found is not None
        rounds = found.rounds
        assert rounds < found.forwards < 2 * rounds
        asleep = ask(here, revised(PLAN, protocol=how, senders=WORKERS[:1]), long)
        assert answer.rows[1].tokens != asleep.rows[1].tokens
    finally:
        other.close()
