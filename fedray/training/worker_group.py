"""The workers that train one fuser together: how many there are, and how the training loop sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from fedray.settings.settings import RaySettings

T = TypeVar("T")
Progress = Callable[[int, int, Mapping[str, float]], None]  # told (step, of how many, running figures)
Tell = Callable[[str, int, int, Mapping[str, float]], None]  # the same, and first the phase of the work
Work = Callable[["WorkerGroup", Tell], T]  # of every worker; the first one's result and progress count


class WorkerGroup:
    """This worker and the others. The plain one works alone; `ray_train.py` has the one of several (DDP)."""

    rank = 0
    size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all workers."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[object]:
        """Within it, backward passes keep their gradients to this worker: others follow before a step is taken."""
        return nullcontext()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all workers."""
        return tensor


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
