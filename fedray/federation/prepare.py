"""Start a federation's members, in this process or on Ray, and the planner that plans for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console

from fedray.federation import sources
from fedray.federation.admission import Limits
from fedray.federation.estimate import Room, check_room, needs, shares_weights, this_machine
from fedray.llm.memory import MIB
from fedray.llm.source import Source
from fedray.methods.method import Method
from fedray.protocols.group import Group, LocalGroup
from fedray.registry.planner import Planner
from fedray.schema import attributes
from fedray.settings.settings import Settings
from fedray.types import FedrayError, MemberInfo, Plan

if TYPE_CHECKING:
    from fedray.runtime.meters import Meters
    from fedray.runtime.placement import Placement


def limits(s: Settings) -> Limits:
    """How much is admitted. What the senders of all batches send lies in the object store at a time."""
    size, sent = (mb * MIB for mb in (s.admission.kv_mb, s.ray.object_store_mb / s.batches_at_a_time))
    return Limits(size, sent if s.ray.enabled else size, s.admission.quota, s.task.batch_size, s.batches_at_a_time)


MakePlan = Callable[[Planner, MemberInfo, Sequence[MemberInfo], Method, int], Plan]


def start_here(s: Settings, found: Mapping[str, Source], stack: ExitStack) -> tuple[Group, MakePlan, Meters | None]:
    """All members in this process, one after the other: transformers does not load two at a time."""
    from fedray.member.member import Member

    _check_room(s, found, this_machine())
    sources.download(list(found.values()))
    members: dict[str, Member] = {}
    devices = sources.devices(s)
    with sources.loading(len(found)) as loaded:
        for name, device in devices.items():
            source = found[name]
            twin = members[source.llm] if shares_weights(s, name, devices) else None
            members[name] = Member(
                name,
                zoo=s.zoo.name,
                device=device,
                dtype=s.member(name).dtype,
                folder=s.zoo.path,
                revision=source.revision,
                prompting=source.prompting,
                llm=twin and replace(twin.llm, name=name),
            )
            loaded(name)
    return LocalGroup(members), Planner.plan, None


def start_on_ray(s: Settings, found: Mapping[str, Source], stack: ExitStack) -> tuple[Group, MakePlan, Meters | None]:
    """Each member in an actor of its own, on a cluster that is there or on one of our own."""
    check_ray()
    from fedray.runtime import actors, cluster, coordinator, placement
    from fedray.runtime.meters import Meters

    wanted = placements(s, found)
    embedding = cluster.will_embed(s.ray.address)
    if embedding:  # refused, and downloaded, before Ray starts
        placement.place(wanted, nodes=[placement.this_machine(s.ray.num_cpus)])
        _check_room(s, found, this_machine())
        sources.download(list(found.values()))
    with Console(stderr=True).status("starting Ray"):
        connection = cluster.connect(s.ray.address, **s.ray.of_cluster)
    stack.callback(connection.close)
    placed = placement.place(wanted, all_cores=connection.is_embedded)
    if not embedding:
        _check_room(s, found, Room(int(sum(node.memory_bytes for node in placement.alive_nodes()))))
    zoo = sources.absolute(s.zoo.path)
    boss = coordinator.start(sources.absolute(s.registry.path), zoo, s.zoo.name)
    stack.callback(coordinator.stop, boss)
    with sources.loading(len(placed)) as loaded:
        group = actors.load_members(
            placed, zoo=s.zoo.name, folder=zoo, loaded=lambda info: loaded(info.name), slow=sources.say
        )
    stack.callback(group.close)

    def plan(planner: Planner, receiver: MemberInfo, senders: Sequence[MemberInfo], method: Method, seed: int) -> Plan:
        return coordinator.plan(boss, receiver, senders, method, seed, planner.problems, planner.served)

    return group, plan, Meters(s.receiver)


def placements(s: Settings, found: Mapping[str, Source]) -> list[Placement]:
    """What each member asks Ray for, and each of its replicas, the receiver first."""
    from fedray.runtime.placement import Placement

    pinned = {n: attributes(source, "revision", "prompting") for n, source in found.items()}
    asked = [Placement(n, **sources.resources(s, n), **of) for n, of in pinned.items()]
    return [replace(p, replica=number) for p in asked for number in range(1, s.replicas(p.member) + 1)]


def check_ray() -> None:
    """Raises FedrayError where Ray is not installed."""
    if find_spec("ray") is None:
        raise FedrayError("Ray is not installed: pip install 'fedray[ray]', or leave it out with ray.enabled=false")


def _check_room(s: Settings, found: Mapping[str, Source], room: Room) -> None:
    """Refuse LLMs and fusers that are too large, whatever is asked of them; the scale model fits everywhere."""
    if s.zoo.name != "tiny":
        check_room(needs(s, found, sources.devices(s)), room, together=not s.ray.enabled)
