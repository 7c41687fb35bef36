"""Atomic reservation of all members' resources: two federations never hold half of what each needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedray.runtime.placement import Placement, figures
from fedray.types import FedrayError

ROOM_S = 60.0  # a cluster with room has it reserved in 10 ms; after a minute others hold it until their work is done
TELL_S = 5.0  # before the user is told what is waited for
SLICE_S = 1  # Ctrl-C is noticed between two; Ray counts whole seconds here


@dataclass(frozen=True, slots=True)
class Reservation:
    """Resources that are held until `release`. bundles: a seat's place among them, if it asks for any."""

    group: PlacementGroup | None = None
    bundles: Mapping[str, int] = field(default_factory=dict)

    def strategy(self, p: Placement) -> dict[str, Any]:
        """Make an actor's scheduling options."""
        if self.group is not None and p.seat in self.bundles:
            return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, self.bundles[p.seat])}
        return {"label_selector": _selector(p)} if p.label else {"scheduling_strategy": "SPREAD"}

    def release(self) -> None:
        if self.group is not None and ray.is_initialized():
            remove_placement_group(self.group)


def reserve(placements: Sequence[Placement], tell: Callable[[str], None] = lambda text: None) -> Reservation:
    """Wait until the cluster has room for all, at most ROOM_S; tell: receives a note once it takes long.

    Raises FedrayError with figures where there is no room.
    """
    asking = [p for p in placements if (p.num_cpus or 0) > 0 or p.num_gpus > 0]
    if not asking:
        return Reservation()
    group = placement_group(
        [_resources(p) for p in asking], strategy="SPREAD", bundle_label_selector=[_selector(p) for p in asking]
    )
    held = Reservation(group, {p.seat: number for number, p in enumerate(asking)})
    try:
        _wait(group, asking, tell)
    except BaseException:  # Ctrl-C too: what is asked for would be reserved later, for nobody
        held.release()
        raise
    return held


def _wait(group: PlacementGroup, asking: Sequence[Placement], tell: Callable[[str], None]) -> None:
    began, told = time.monotonic(), False
    asked = figures(sum(p.num_cpus or 0 for p in asking), sum(p.num_gpus for p in asking))
    while not group.wait(SLICE_S):
        waited = time.monotonic() - began
        if waited > TELL_S and not told:
            tell(f"waiting for {asked} of the Ray cluster, at most {ROOM_S:g} s (Ctrl-C ends it)")
            told = True
        if waited > ROOM_S:
            free = ray.available_resources()
            raise FedrayError(
                f"the Ray cluster at {ray.get_runtime_context().gcs_address} had no room for {asked} within "
                f"{ROOM_S:g} s: others leave {figures(free.get('CPU', 0), free.get('GPU', 0))} free; start again when "
                "`ray status` shows more, or ask for less with ray.cpus_per_member or ray.gpus_per_member"
            )


def _resources(p: Placement) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", p.num_cpus or 0.0), ("GPU", p.num_gpus)) if amount > 0}


def _selector(p: Placement) -> dict[str, str]:
    key, _, value = (p.label or "").partition("=")
    return {key: value} if p.label else {}
