"""The coordinator: what it plans, that it comes back after its death, and that no cache ever reaches it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from probes import process_id, start_counting, stop_counting
from ray.experimental import get_local_object_locations
from shared_cluster import RECEIVER, SENDERS
from support.methods import method
from tiny import QUESTIONS

from fedray import Federation
from fedray.protocols import c2c
from fedray.registry.planner import Planner
from fedray.runtime import coordinator
from fedray.runtime.actors import Call, RayGroup
from fedray.types import FedrayError, Generation, Plan, Request

CHOICES: dict[str, Any] = {"gate": "open", "fusion": "concat"}


@pytest.fixture
def group(spread: Federation) -> RayGroup:
    return spread._group  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def boss(random_zoo: Path, cluster: Any) -> Iterator[Any]:
    boss = coordinator.start(zoo=random_zoo)
    yield boss
    coordinator.stop(boss)


def plan(boss: Any, group: RayGroup, **choices: Any) -> Plan:
    receiver, *senders = group.members.values()
    return coordinator.plan(boss, receiver, senders, method(**CHOICES | choices))


def test_it_plans_as_a_planner_does(boss: Any, group: RayGroup, random_zoo: Path) -> None:
    receiver, *senders = group.members.values()
    made = plan(boss, group)
    assert made == Planner(zoo=random_zoo).plan(receiver, senders, method(**CHOICES))
    assert set(made.fusers) == set(SENDERS)


def test_its_refusals_are_sentences(boss: Any, group: RayGroup) -> None:
    with pytest.raises(FedrayError, match=r"no fuser=c2c fusion=mix for llama-1b -> qwen3-0.6b; there is fuser=mlp"):
        plan(boss, group, fuser="c2c", fusion="mix")
    with pytest.raises(FedrayError, match="gate"):
        plan(boss, group, gate="learned")


@pytest.mark.parametrize("prompts", [QUESTIONS[:1], QUESTIONS * 20], ids=["one question", "sixty"])
def test_no_cache_reaches_the_driver_or_the_coordinator(
    boss: Any, group: RayGroup, monkeypatch: pytest.MonkeyPatch, prompts: tuple[str, ...]
) -> None:
    calls: list[Call] = []
    start = group.start

    def recording(*args: Any, **kwargs: Any) -> Call:
        calls.append(start(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(group, "start", recording)
    ray.get(boss.__ray_call__.remote(start_counting))
    start_counting()
    made = plan(boss, group)
    request = Request(prompts, choices=(("red", "green"),) * len(prompts), generation=Generation(max_tokens=4))
    answer = asyncio.run(c2c.run(request, made, group))
    by_driver, by_boss = stop_counting(), ray.get(boss.__ray_call__.remote(stop_counting))

    assert answer.senders == SENDERS
    smallest = min(answer.usage.payload_bytes // len(SENDERS), 64 << 10)
    assert by_driver and by_boss, "nothing was counted"
    assert max(by_boss) < 8192 and sum(by_boss) < smallest
    assert sum(by_driver) < smallest
    payloads = [call.payload for call in calls if call.payload is not None]
    assert len(payloads) == len(SENDERS)
    for payload, where in get_local_object_locations(payloads).items():
        assert where["node_ids"], f"{payload} came to the driver with its receipt"


def test_one_that_is_frozen_is_ended_and_plans_again(
    boss: Any, group: RayGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(boss, group)
    os.kill(ray.get(boss.__ray_call__.remote(process_id)), signal.SIGSTOP)
    monkeypatch.setattr(coordinator, "FROZEN_S", 1.0)
    assert plan(boss, group) == before


def test_it_comes_back_after_its_death(boss: Any, group: RayGroup) -> None:
    """And plans again without what the driver has found damaged, as it did before."""
    before = plan(boss, group)
    receiver, *senders = group.members.values()
    damaged = {Path(before.fusers[SENDERS[0]].path): "it is damaged"}
    pid: Any = ray.get(boss.__ray_call__.remote(process_id))
    for again in (False, True):
        if again:
            os.kill(pid, signal.SIGKILL)
            assert plan(boss, group) == before
            assert ray.get(boss.__ray_call__.remote(process_id)) != pid
        with pytest.raises(
            FedrayError, match=f"no fuser=mlp .* {SENDERS[0]} -> {RECEIVER}.*; passed over: it is damaged"
        ):
            coordinator.plan(boss, receiver, senders, method(**CHOICES), damaged=damaged)
