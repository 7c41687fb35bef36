"""Members that die or freeze are started anew by Ray and used again, and requests outlive them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shared_cluster import RECEIVER, SENDERS
from standin import StandIn, Stillborn
from tiny import QUESTIONS
from unreliable import Falling

from fedray.errors import MemberDied
from fedray.federation.federation import Federation
from fedray.runtime import seats
from fedray.runtime.actors import RayGroup, start
from fedray.runtime.failures import GONE
from fedray.runtime.placement import Placement
from fedray.types import Answer, FedrayError, Talk

pytestmark = pytest.mark.usefixtures("cluster")
LONG_S = 120.0  # a busy machine starts a process slowly


@pytest.fixture
def victim() -> Iterator[RayGroup]:
    group = start(StandIn, [Placement("victim", num_cpus=0.1)], {})
    yield group
    group.close()


def watched(group: RayGroup, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do some work while the group is watched."""

    async def both() -> None:
        watching = asyncio.create_task(group.watch())
        try:
            await work()
        finally:
            watching.cancel()

    asyncio.run(both())


async def call(group: RayGroup, method: str, *args: Any) -> Any:
    handle = group.start("victim", method, *args)
    await group.wait([handle])
    return group.result(handle)


def test_who_dies_is_named_at_once_and_comes_back(victim: RayGroup) -> None:
    async def work() -> None:
        before = victim.members["victim"].pid
        os.kill(before, signal.SIGKILL)
        with pytest.raises(MemberDied, match="victim: died"):
            await call(victim, "sleep", LONG_S)
        with pytest.raises(MemberDied, match="it is being started anew"):
            await call(victim, "weigh")
        health = victim.health()["victim"]
        assert (health.ready, health.reason, health.restarts) == (False, GONE, 0)
        assert await victim.restored("victim", time.monotonic() + LONG_S)
        assert await call(victim, "weigh") == 0
        assert victim.members["victim"].pid != before
        assert victim.health()["victim"].ready and victim.health()["victim"].restarts == 1

    watched(victim, work)


def test_who_is_frozen_is_ended_and_comes_back(victim: RayGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """No deadline: the call fails by itself."""
    monkeypatch.setattr(seats, "FROZEN_S", 1.0)

    async def work() -> None:
        before = victim.members["victim"].pid
        os.kill(before, signal.SIGSTOP)
        with pytest.raises(MemberDied, match="victim: died"):
            await call(victim, "weigh")
        assert await victim.restored("victim", time.monotonic() + LONG_S)
        assert await call(victim, "weigh") == 0 and victim.members["victim"].pid != before

    watched(victim, work)


def test_who_was_ended_for_good_is_not_waited_for(victim: RayGroup) -> None:
    async def work() -> None:
        victim.close()
        with pytest.raises(MemberDied, match=r"victim: died \(it was ended\)$"):
            await call(victim, "weigh")
        with pytest.raises(MemberDied, match=r"victim: died \(it was ended\)$"):
            await call(victim, "weigh")
        assert not await victim.restored("victim")

    watched(victim, work)


def test_who_dies_while_it_loads_is_not_started_for_ever() -> None:
    with pytest.raises(FedrayError, match=r"bad cannot be loaded: its process died"):
        start(Stillborn, [Placement("bad", num_cpus=0.1)], {})


def test_replicas_share_sessions_and_one_that_dies_costs_nothing() -> None:
    twins = start(StandIn, [Placement("victim", num_cpus=0.1, replica=number) for number in (1, 2)], {})

    async def pid_of(session: str) -> int:
        return await call(twins, "whose", session)

    async def work() -> None:
        assert list(twins.members) == ["victim"] and twins.health()["victim"].replicas == 2
        one, other = [await pid_of(session) for session in ("one", "other")]
        assert one != other, "the least loaded first"
        assert [await pid_of(session) for session in ("one", "other", "one")] == [one, other, one]
        twins.release("one", ["victim"])
        assert await pid_of("third") == one
        turns = [await call(twins, "whose", f"turn {n}", Talk(session="talk")) for n in range(3)]
        assert len(set(turns)) == 1, "a conversation stays with one"
        for name in ("talk", *(f"turn {n}" for n in range(3))):
            twins.release(name, ["victim"])
        os.kill(one, signal.SIGKILL)
        with pytest.raises(MemberDied):
            await call(twins, "sleep_in", "third", LONG_S)
        health = twins.health()["victim"]
        assert (health.ready, health.reason) == (1, "") and await twins.restored("victim")
        assert {await pid_of(session) for session in ("third", "other", "fourth")} == {other}
        while twins.health()["victim"].ready < 2:
            await asyncio.sleep(0.1)
        assert await pid_of("fifth") not in (one, other)

    with closing(twins):
        watched(twins, work)


def test_who_is_drained_ends_what_it_holds(victim: RayGroup) -> None:
    async def work() -> None:
        pid = await call(victim, "whose", "one")
        draining = asyncio.create_task(victim.drain("victim"))
        await asyncio.sleep(0)
        with pytest.raises(MemberDied, match=r"victim: was drained$"):
            await call(victim, "whose", "another")
        assert victim.health()["victim"].reason == "was drained" and not victim.health()["victim"].ready
        assert await call(victim, "whose", "one") == pid and not draining.done()
        victim.release("one", ["victim"])
        await draining
        with pytest.raises(MemberDied, match=r"victim: was drained$"):
            await call(victim, "whose", "one")
        assert not await victim.restored("victim") and victim.health()["victim"].reason == "was drained"

    watched(victim, work)


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


@pytest.mark.slow
def test_a_federation_outlives_its_members(random_federation: dict[str, Any], random_zoo: Path, tmp_path: Path) -> None:
    """The receiver dies while it answers: the same tokens. A sender dies: named, and used again once it is back."""
    from test_federation import Borrowing

    from fedray.settings.settings import build

    sender = SENDERS[0]
    settings = build({**random_federation, "senders": [sender]})
    given = {"folder": random_zoo, "grave": str(tmp_path / "grave")}
    placements = [Placement(name, num_cpus=0.1) for name in (RECEIVER, sender)]
    with Federation(**{**random_federation, "senders": [sender], "ray": False}) as here:
        whole, alone = here.ask(QUESTIONS[0]), here.alone(here.request(QUESTIONS[0]))
    group = start(Falling, placements, {RECEIVER: given, sender: given})
    with closing(group), Borrowing(settings, group) as fed:
        fed._loop.start(group.watch())
        answer = fed.ask(QUESTIONS[0])
        assert (tmp_path / "grave").exists() and tokens(answer) == tokens(whole) != tokens(alone)
        assert answer.missing == () and fed.health()[RECEIVER].restarts == 1
        os.kill(fed.members[sender].pid, signal.SIGKILL)
        without = fed.ask(QUESTIONS[0])
        assert tokens(without) == tokens(alone) and without.missing[0].member == sender
        assert without.missing[0].reason.startswith(GONE)
        assert fed._loop.run(group.restored(sender, time.monotonic() + LONG_S))
        again = fed.ask(QUESTIONS[0])
        assert again.missing == () and tokens(again) == tokens(whole)
        until = time.monotonic() + LONG_S  # releases are on their way
        while any(group.result(group.start(name, "stats"))["sessions"] for name in group.members):
            assert time.monotonic() < until, "a session stays"
