"""The share of a cluster that each member asks Ray for, and whether the cluster has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from fedray.types import FedrayError, Prompting


@dataclass(frozen=True, slots=True)
class Placement:
    """Resources of one member, or of one of its replicas; `place` fills in the rest. threads: torch's; reading: torch's
    while others read too; label: its node's "key=value"."""

    member: str
    device: str = "cpu"
    dtype: str | None = None
    num_cpus: float | None = None
    num_gpus: float = 0.0
    threads: int | None = None
    reading: int | None = None
    label: str | None = None
    revision: str | None = None
    prompting: Prompting | None = None
    replica: int = 1

    @property
    def seat(self) -> str:
        return self.member if self.replica == 1 else f"{self.member} ({self.replica})"


@dataclass(frozen=True, slots=True)
class Node:
    """An alive node with its total resources; memory_bytes: what Ray counts as free when it starts, 0 where unknown."""

    cpus: float
    gpus: float
    labels: Mapping[str, str]
    memory_bytes: float = 0

    def carries(self, label: str | None) -> bool:
        key, _, value = (label or "").partition("=")
        return label is None or self.labels.get(key) == value


def place(
    wanted: Sequence[Placement], *, all_cores: bool = False, nodes: Sequence[Node] | None = None
) -> list[Placement]:
    """Fill in the CPU shares and threads of placements, the receiver's first.

    A member that names no number of CPUs gets a share so small that every node could hold all members, at most 1.
    all_cores: the cluster is this job's own; all read side by side, and the receiver answers when they are done.
    nodes: what there will be, for a check before Ray starts; by default those of the cluster this process is in.
    Raises FedrayError, with figures, where the cluster cannot hold them.
    """
    nodes = alive_nodes() if nodes is None else nodes
    with_cpus = [node.cpus for node in nodes if node.cpus > 0]
    if not with_cpus:
        raise FedrayError("the Ray cluster has no node with CPUs; add one with `ray start --num-cpus=N`")
    share = min(1.0, _floor(min(with_cpus) / len(wanted)))
    placed = [replace(p, num_cpus=share) if p.num_cpus is None else p for p in wanted]
    _check_labels(placed, nodes)
    _check_room(placed, nodes)
    cores = int(min(with_cpus)) if all_cores else 0
    share, rest = divmod(cores, len(placed))
    shares = [(cores, share + rest), *[(share, share)] * (len(placed) - 1)]
    return [
        replace(p, threads=max(1, alone, int(p.num_cpus or 0)), reading=max(1, beside, int(p.num_cpus or 0)))
        for p, (alone, beside) in zip(placed, shares, strict=True)
    ]


def this_machine(num_cpus: float | None = None) -> Node:
    """Describe an embedded cluster on this machine."""
    return Node(num_cpus or float(os.cpu_count() or 1), float(torch.cuda.device_count()), {})


def alive_nodes() -> list[Node]:
    def read(node: Mapping[str, Any]) -> Node:
        has = node["Resources"]
        return Node(has.get("CPU", 0.0), has.get("GPU", 0.0), node.get("Labels") or {}, has.get("memory", 0.0))

    return [read(node) for node in ray.nodes() if node["Alive"]]


def _check_labels(placed: Sequence[Placement], nodes: Sequence[Node]) -> None:
    for p in placed:
        if not any(node.carries(p.label) for node in nodes):
            labels = {f"{key}={value}" for node in nodes for key, value in node.labels.items()}
            there = ", ".join(sorted(label for label in labels if not label.startswith("ray.io/")))
            remedy = f"there is {there}" if there else f"start one with `ray start --labels={p.label}`"
            raise FedrayError(f"no node of the Ray cluster carries {p.member}'s label {p.label}; {remedy}")


def _check_room(placed: Sequence[Placement], nodes: Sequence[Node]) -> None:
    """Check the room by first fit in decreasing order, labelled placements first. Raises FedrayError."""
    free = [[node.cpus, node.gpus] for node in nodes]
    for p in sorted(placed, key=lambda p: (p.label is None, -p.num_gpus, -(p.num_cpus or 0))):
        cpus = p.num_cpus or 0.0
        for node, left in zip(nodes, free, strict=True):
            if node.carries(p.label) and left[0] >= cpus - 1e-6 and left[1] >= p.num_gpus - 1e-6:
                left[0] -= cpus
                left[1] -= p.num_gpus
                break
        else:
            asked = figures(sum(p.num_cpus or 0 for p in placed), sum(p.num_gpus for p in placed))
            there = figures(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
            where = f" on a node labelled {p.label}" if p.label else ""
            raise FedrayError(
                f"no room for {p.member} ({figures(cpus, p.num_gpus)}{where}): the members ask for {asked}, the Ray "
                f"cluster has {there} on {len(nodes)} node{'s' * (len(nodes) > 1)}; ask for less with "
                f"ray.cpus_per_member or ray.gpus_per_member, or use a larger cluster"
            )


def _floor(cpus: float) -> float:
    """Round down to two decimals, so that shares add up to no more than there is."""
    return max(int(cpus * 100) / 100, 0.01)


def figures(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"
