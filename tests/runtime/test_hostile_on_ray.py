"""A hostile sender in an actor of its own: its objects cross Ray's store, and are opened inside the receiver's call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from hostile import Hostile, become
from shared_cluster import RECEIVER, SENDERS
from support.methods import method
from tiny import QUESTIONS

from fedray import Federation
from fedray.protocols import PROTOCOLS
from fedray.registry.planner import Planner
from fedray.runtime import actors
from fedray.runtime.actors import RayGroup
from fedray.runtime.placement import Placement
from fedray.types import Answer, Generation, Plan, Request

BAD, GOOD = SENDERS
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=4))


@pytest.fixture(scope="module")
def group(spread: Federation, random_zoo: Path) -> Iterator[RayGroup]:
    """Honest members, but for one."""
    bad, honest = actors.start(Hostile, [Placement(BAD, num_cpus=0)], {BAD: {"folder": random_zoo}}), spread._group
    assert isinstance(honest, RayGroup)
    yield RayGroup({**honest._actors, **bad._actors}, {**honest.members, **bad.members})
    bad.close()


@pytest.fixture(scope="module")
def plan(group: RayGroup, random_zoo: Path) -> Plan:
    senders = [group.members[name] for name in SENDERS]
    return Planner(zoo=random_zoo).plan(group.members[RECEIVER], senders, method(gate="open"))


def ask(group: RayGroup, plan: Plan, how: str = "") -> Answer:
    ray.get(group._actors[BAD].__ray_call__.remote(become, how))
    return asyncio.run(PROTOCOLS["c2c"].run(REQUEST, plan, group))


def test_the_receivers_call_is_not_lost(group: RayGroup, plan: Plan) -> None:
    without = ask(group, replace(plan, senders=(GOOD,)))
    assert ask(group, plan).senders == SENDERS
    for how in ("unpicklable", "no payload", "None", "depth bomb header", "8 MB member name", "all 1e38"):
        answer = ask(group, plan, how)
        (missing,) = answer.missing
        assert missing.member == BAD and missing.reason.isprintable() and answer.senders == (GOOD,), how
        assert [row.tokens for row in answer.rows] == [row.tokens for row in without.rows], how
        if how == "unpicklable":
            assert "cannot be read" in missing.reason and "this class is gone" in missing.reason
