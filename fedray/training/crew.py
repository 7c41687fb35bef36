"""The workers that train one fuser together, as the training loop sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

Progress = Callable[[int, int, Mapping[str, float]], None]  # told (step, of how many, running figures)
Tell = Callable[[str, int, int, Mapping[str, float]], None]  # the same, and first the phase of the work


class Crew:
    """This worker and the others. The plain one works alone; `ray_train.py` has the one of several (DDP)."""

    rank = 0
    size = 1

    def join(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all workers."""
        return module

    def apart(self, module: nn.Module) -> AbstractContextManager[object]:
        """Within it, backward passes keep their gradients to this worker: others follow before a step is taken."""
        return nullcontext()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all workers."""
        return tensor
