"""Who does the training: workers on Ray Train, or this process alone without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from fedray.settings import RaySettings
from fedray.training.crew import Crew, Tell
from fedray.types import FedrayError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many there are and what each has. ray: where they run; folder: on a disk that all of them see."""

    count: int
    threads: int
    device: str
    ray: RaySettings
    folder: Path

    @property
    def here(self) -> bool:
        """Whether this process does it all: one worker, and no cluster that is asked for."""
        return self.count == 1 and (self.ray.address is None or not self.ray.enabled)

    @property
    def local(self) -> bool:
        """Whether all of them will be on this machine: in this process, or on a cluster that is started for them."""
        if self.here:
            return True
        from fedray.runtime.cluster import will_embed

        return will_embed(self.ray.address)


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """What every worker does: `do(order, crew, tell)`, a function and an argument that can be sent to another process.

    The first worker's result is the work's, and only the first worker is heard.
    """

    do: Callable[[Any, Crew, Tell], T]
    order: Any


def check(workers: Workers) -> None:
    """Refuse workers that cannot be had, before anything starts. Raises FedrayError."""
    if workers.device == "cuda" and workers.here and not torch.cuda.is_available():
        raise FedrayError("device=cuda, and torch finds no GPU on this machine: leave device out")
    if workers.ray.enabled and find_spec("ray") is None:
        raise FedrayError("Ray is not installed: pip install 'fedray[ray]', or train without it: ray=none")
    if not workers.here:
        from fedray.training import ray_train

        ray_train.check_room(workers)


def run(work: Work[T], workers: Workers, tell: Tell) -> T:
    """Do the work and return its result; `tell` hears of its progress.

    Raises the work's own FedrayError, FedrayError where there is no room for the workers or they keep dying, and
    KeyboardInterrupt.
    """
    if not workers.ray.enabled:
        torch.set_num_threads(workers.threads)
        return work.do(work.order, Crew(), tell)
    from fedray.training import ray_train

    start = ray_train.in_this_process if workers.here else ray_train.side_by_side
    return start(work, workers, tell)
