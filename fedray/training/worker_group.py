"""The workers that train one fuser together, and the training loop's interface to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from fedray.settings.settings import RaySettings

T = TypeVar("T")
Progress = Callable[[int, int, Mapping[str, float]], None]  # (step, of how many, running figures)
Tell = Callable[[str, int, int, Mapping[str, float]], None]  # the same, and first the phase of the work
Work = Callable[["WorkerGroup", Tell], T]  # of every worker; the first one's result and progress count


class WorkerGroup:
    """A group of one worker; `ray_train.py` has the group of several (DDP)."""

    rank = 0
    size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that its gradients are averaged over all workers."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[object]:
        """Accumulate gradients locally: the all-reduce follows in a later backward pass of the step."""
        return nullcontext()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all workers."""
        return tensor


@dataclass(frozen=True, slots=True)
class Workers:
    """Number of workers and what each has. ray: where they run; folder: on a disk that they share."""

    count: int
    threads: int
    device: str
    ray: RaySettings
    folder: Path

    @property
    def here(self) -> bool:
        """Check whether this process is the only worker: no cluster is asked for."""
        return self.count == 1 and (self.ray.address is None or not self.ray.enabled)

    @property
    def local(self) -> bool:
        """Check whether all workers are on this machine: in this process, or on a cluster started for them."""
        if self.here:
            return True
        from fedray.runtime.cluster import will_embed

        return will_embed(self.ray.address)
