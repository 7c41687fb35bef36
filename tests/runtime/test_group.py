"""RayGroup on stand-ins: what travels where, what is late, what is dead, and that nothing waits for ever.

Every test has sessions of its own: the release of one may still be on its way when the next begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from probes import start_counting, stop_counting
from ray.experimental import get_local_object_locations
from ray.util import placement_group_table
from shared_cluster import NODE
from standin import StandIn

from fedray.errors import MemberFailed, SessionLost
from fedray.protocols.group import MAX_RESULT_BYTES, Waited
from fedray.runtime import reservation
from fedray.runtime.actors import RayGroup, as_actor, gather_infos, start
from fedray.runtime.failures import GONE
from fedray.runtime.placement import Placement
from fedray.runtime.reservation import reserve
from fedray.types import FedrayError

pytestmark = pytest.mark.usefixtures("cluster")
Spawn = Callable[..., RayGroup]


def spawn(*names: str, **labels: str) -> RayGroup:
    return start(StandIn, [Placement(n, num_cpus=0.1, label=labels.get(n)) for n in names], {})


@pytest.fixture(scope="module")
def group(cluster: Any) -> Iterator[RayGroup]:
    """A sender in room a, a receiver in room b."""
    group = spawn("sender", "receiver", sender="room=a", receiver="room=b")
    yield group
    group.close()


@pytest.fixture
def victim() -> Iterator[RayGroup]:
    """A member of its own for a test that ends or freezes it."""
    group = spawn("victim")
    yield group
    group.close()


@pytest.fixture
def received() -> Callable[[], list[int]]:
    """Sizes of all objects that this process took from Ray."""
    start_counting()
    return stop_counting


def wait(group: RayGroup, handles: list[Any], seconds: float | None = None) -> Waited:
    return asyncio.run(group.wait(handles, None if seconds is None else time.monotonic() + seconds))


def call(group: RayGroup, member: str, method: str, *args: Any) -> Any:
    handle = group.start(member, method, *args)
    assert wait(group, [handle]).ready == (0,)
    return group.result(handle)


def signal_to(group: RayGroup, number: signal.Signals) -> None:
    os.kill(group.members["victim"].pid, number)


def test_members_run_where_their_labels_say(group: RayGroup) -> None:
    nodes = {node["NodeID"][:8]: node["Labels"].get("room") for node in ray.nodes()}
    rooms = [nodes[group.members[name].node.rpartition("/")[2]] for name in ("sender", "receiver")]
    assert rooms == ["a", "b"]
    assert len({os.getpid(), *(info.pid for info in group.members.values())}) == 3


@pytest.mark.parametrize("size", [2_048, 50_000, 4 << 20])
def test_a_payload_never_reaches_the_driver(group: RayGroup, received: Callable[[], list[int]], size: int) -> None:
    sent = group.start("sender", "share", size)
    assert wait(group, [sent]).ready == (0,)
    assert group.result(sent) == f"{size} bytes"
    assert call(group, "receiver", "weigh", sent) == size
    sizes = received()
    assert sizes, "the driver's objects were not counted"
    assert sum(sizes) < 1024
    where = get_local_object_locations([sent.payload])[sent.payload]
    assert where["object_size"] >= size
    assert len(where["node_ids"]) >= 1, "the payload is not in a node's store: it came to the driver with the reply"


def test_the_count_sees_a_payload_that_is_fetched(group: RayGroup, received: Callable[[], list[int]]) -> None:
    sent = group.start("sender", "share", 50_000)
    ray.get(sent.payload)
    assert sum(received()) > 50_000


def test_wait_tells_ready_failed_and_late(group: RayGroup) -> None:
    handles = [
        group.start("sender", "fail", "no such thing"),
        group.start("receiver", "count_until_cancelled", "told"),
        group.start("sender", "share", 1_000),
    ]
    wait(group, [handles[0], handles[2]])
    waited = wait(group, handles, 0.3)
    assert waited.ready == (2,)
    assert waited.failed == {0: "ValueError: no such thing"}
    assert waited.late == (1,)
    group.cancel("receiver", "told")
    assert wait(group, handles).ready == (1, 2), "what was late may still become ready"
    group.release("told", ("sender", "receiver"))


def test_a_reason_is_one_short_line(group: RayGroup) -> None:
    failed = wait(group, [group.start("sender", "fail", "too long " * 99 + "\nand more")]).failed[0]
    assert len(failed) < 250
    assert "\n" not in failed


def test_wait_does_not_block_the_event_loop(group: RayGroup) -> None:
    async def waited() -> Waited:
        counting = group.start("sender", "count_until_cancelled", "looped")
        waiting = asyncio.create_task(group.wait([counting]))
        await asyncio.sleep(0.1)  # for ever, if waiting blocks
        group.cancel("sender", "looped")
        return await waiting

    assert asyncio.run(waited()).ready == (0,)
    group.release("looped", ("sender", "receiver"))


def test_control_is_answered_while_a_member_computes(group: RayGroup) -> None:
    busy = group.start("sender", "count_until_cancelled", "busy")
    call(group, "sender", "ping")  # for ever, if it waits for the other call
    assert wait(group, [busy], 0.0).late == (0,)
    group.cancel("sender", "busy")
    wait(group, [busy])
    group.release("busy", ("sender", "receiver"))


def test_cancel_reaches_a_running_call(group: RayGroup) -> None:
    counting = group.start("sender", "count_until_cancelled", "streamed")
    assert wait(group, [counting], 0.3).late == (0,)
    group.cancel("sender", "streamed")
    assert wait(group, [counting]).ready == (0,)
    group.release("streamed", ("sender", "receiver"))


def test_an_unready_argument_does_not_block_other_calls(group: RayGroup) -> None:
    slow = group.start("sender", "count_until_cancelled", "unready")
    blocked = group.start("receiver", "babble", slow)
    call(group, "receiver", "weigh")  # for ever, if the unready argument blocks it
    assert wait(group, [slow, blocked], 0.0).late == (0, 1)
    group.cancel("sender", "unready")
    assert wait(group, [slow, blocked]).ready == (0, 1)
    group.release("unready", ("sender", "receiver"))


def test_results_are_small(group: RayGroup, received: Callable[[], list[int]]) -> None:
    assert len(call(group, "sender", "babble", MAX_RESULT_BYTES // 2)) == MAX_RESULT_BYTES // 2
    large = group.start("sender", "babble", 4 * MAX_RESULT_BYTES)
    assert "are allowed" in wait(group, [large]).failed[0]
    with pytest.raises(MemberFailed, match="sender"):
        group.result(large)
    assert sum(received()) < MAX_RESULT_BYTES


def test_errors_keep_their_meaning(group: RayGroup) -> None:
    lost, failed = group.start("sender", "lose"), group.start("sender", "fail", "no such thing")
    assert wait(group, [lost, failed]).failed == {0: "session 7 is not here", 1: "ValueError: no such thing"}
    with pytest.raises(SessionLost, match="session 7"):
        group.result(lost)
    with pytest.raises(MemberFailed, match="sender: ValueError: no such thing"):
        group.result(failed)


def test_a_stream_comes_piece_by_piece(group: RayGroup) -> None:
    async def pieces(**kwargs: Any) -> list[str]:
        return [piece async for piece in group.stream("sender", "count", 4, **kwargs)]

    assert asyncio.run(pieces()) == ["0", "1", "2", "3"]
    with pytest.raises(MemberFailed, match="lost count"):
        asyncio.run(pieces(broken=True))


def test_a_killed_member_fails_at_once(victim: RayGroup) -> None:
    handle = victim.start("victim", "sleep", 60.0)
    assert wait(victim, [handle], 0.3).late == (0,)
    signal_to(victim, signal.SIGKILL)
    assert wait(victim, [handle]).failed == {0: GONE}
    assert wait(victim, [victim.start("victim", "weigh")]).failed == {0: f"{GONE}; it is being started anew"}
    victim.cancel("victim", "one")
    victim.release("one", ["victim"])


def test_a_frozen_member_is_late(victim: RayGroup, group: RayGroup) -> None:
    signal_to(victim, signal.SIGSTOP)
    handles = [victim.start("victim", "weigh"), group.start("sender", "weigh")]
    wait(group, handles[1:])
    waited = wait(victim, handles, 1.0)
    assert (waited.ready, waited.late) == ((1,), (0,))
    signal_to(victim, signal.SIGCONT)
    assert wait(victim, handles).ready == (0, 1)
    done = victim.start("victim", "weigh")
    wait(victim, [victim.start("victim", "sleep", 0.1)])
    assert wait(victim, [done], 0.0).ready == (0,), "a look costs no time"


def test_a_frozen_member_can_be_ended(victim: RayGroup) -> None:
    signal_to(victim, signal.SIGSTOP)
    handle = victim.start("victim", "weigh")
    victim.close()
    assert wait(victim, [handle]).failed == {0: "died (it was ended)"}


def test_a_lost_node_is_named(nodes: Any, cluster: Any) -> None:
    node = nodes.add_node(**NODE, labels={"room": "attic"})
    group = spawn("victim", victim="room=attic")
    handle = group.start("victim", "sleep", 60.0)
    assert wait(group, [handle], 0.3).late == (0,)
    nodes.remove_node(node, allow_graceful=False)
    assert wait(group, [handle]).failed[0] in (GONE, "died (its node was lost)")
    deadline = time.monotonic() + 60.0  # Ray still places actors on the lost node until it has noticed
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < deadline:
        time.sleep(0.2)


def test_a_payload_outlives_its_sender(victim: RayGroup, group: RayGroup) -> None:
    sent = victim.start("victim", "share", 1 << 20)
    assert wait(victim, [sent]).ready == (0,)
    signal_to(victim, signal.SIGKILL)
    wait(victim, [victim.start("victim", "sleep", 1.0)])
    assert call(group, "receiver", "weigh", sent) == 1 << 20


def test_a_member_that_cannot_load_is_named(cluster: Any) -> None:
    actors = {"bad": as_actor(StandIn).options(num_cpus=0.1).remote("bad", refuse="its weights are damaged; reinstall")}
    with pytest.raises(FedrayError) as caught:
        gather_infos(actors)
    assert str(caught.value) == "bad cannot be loaded: its weights are damaged; reinstall"


class Local(StandIn):
    """Lies in a module that the nodes lack."""


def test_a_node_without_the_package_is_told_to_install_it(cluster: Any) -> None:
    with pytest.raises(FedrayError, match=f"No module named '{__name__}' on its node: install fedray, with what it"):
        start(Local, [Placement("bad", num_cpus=0.1)], {})


def groups() -> set[str]:
    """Ids of the placement groups that have resources or wait for them."""
    return {id for id, group in placement_group_table().items() if group["state"] != "REMOVED"}


class TestReserve:
    """Who waits for room, and for how long: what is waited for is real, the minute is cut short."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reservation, "ROOM_S", 1.5)
        monkeypatch.setattr(reservation, "TELL_S", 0.0)

    def test_a_busy_cluster_is_not_waited_for_for_ever(self, cluster: Any) -> None:
        half, before = Placement("one", num_cpus=1.5, label="room=b"), groups()
        held = reserve([half])
        assert held.group is not None
        told: list[str] = []
        with pytest.raises(FedrayError) as caught:
            start(StandIn, [half], {}, slow=told.append)
        assert told == ["waiting for 1.5 CPUs and 0 GPUs of the Ray cluster, at most 1.5 s (Ctrl-C ends it)"]
        said = str(caught.value)
        assert f"the Ray cluster at {cluster.address} had no room for 1.5 CPUs and 0 GPUs within 1.5 s" in said
        assert "`ray status`" in said and "ray.cpus_per_member" in said
        assert groups() == before | {held.group.id.hex()}  # what was waited for in vain is not held later
        RayGroup({}, {}, StandIn, held).close()
        assert groups() == before
        reserve([half]).release()

    def test_one_that_is_interrupted_holds_nothing(self, cluster: Any) -> None:
        def interrupt(text: str) -> None:
            raise KeyboardInterrupt

        before = groups()
        held = reserve([Placement("one", num_cpus=1.5, label="room=b")])
        with pytest.raises(KeyboardInterrupt):
            reserve([Placement("two", num_cpus=1.5, label="room=b")], interrupt)
        held.release()
        assert groups() == before

    def test_who_asks_for_nothing_waits_for_nothing(self, cluster: Any) -> None:
        there = reserve([Placement("one", num_cpus=0, label="room=b"), Placement("two", num_cpus=0)])
        assert there.group is None
        assert there.strategy(Placement("one", label="room=b")) == {"label_selector": {"room": "b"}}
        assert there.strategy(Placement("two")) == {"scheduling_strategy": "SPREAD"}
