"""The coordinator: an actor that holds the registry and makes plans.

It receives names, hashes and infos, never a prompt or a cache. Its only state is the registry on disk, so Ray may
restart it at any time; requests go on with their plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from fedray.methods.method import Method
from fedray.registry.aliases import Served
from fedray.registry.planner import Planner
from fedray.runtime.failures import FROZEN_S, RESTORE_S, as_error
from fedray.types import MemberInfo, Plan


class Coordinator:
    """Planner behind `async` methods, which serve many calls at once."""

    def __init__(self, registry: Path | None = None, zoo: Path | None = None, name: str = "tiny") -> None:
        self._planner = Planner(registry, zoo, name)

    async def plan(
        self,
        receiver: MemberInfo,
        senders: Sequence[MemberInfo],
        method: Method,
        seed: int,
        damaged: Mapping[Path, str],
        served: Served | None = None,
    ) -> Plan:
        self._planner.pass_over(damaged)  # told with every call: a restart would forget it
        return self._planner.serving(served).plan(receiver, senders, method, seed)


CoordinatorActor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)


def start(registry: Path | None = None, zoo: Path | None = None, name: str = "tiny") -> ActorHandle:
    """Start a coordinator over a zoo's registry and the user's; returns before it is up."""
    return CoordinatorActor.remote(registry, zoo, name)


def stop(coordinator: ActorHandle) -> None:
    ray.kill(coordinator)


def plan(
    coordinator: ActorHandle,
    receiver: MemberInfo,
    senders: Sequence[MemberInfo],
    method: Method,
    seed: int = 0,
    damaged: Mapping[Path, str] | None = None,
    served: Served | None = None,
) -> Plan:
    """Call Planner.plan in the coordinator; damaged: the `problems` of a planner here, served: the versions in service
    there. Raises its FedrayError.

    One that does not answer is ended once: Ray starts it anew and repeats the call.
    """
    made: Any = coordinator.plan.remote(receiver, list(senders), method, seed, damaged or {}, served)
    try:
        try:
            return ray.get(made, timeout=FROZEN_S)
        except GetTimeoutError:
            ray.kill(coordinator, no_restart=False)
            return ray.get(made, timeout=RESTORE_S)
    except RayError as error:
        raise as_error("the coordinator", error) from None
