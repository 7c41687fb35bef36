"""Dispatch of training work: to workers on Ray Train, or in this process without Ray."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from fedray.training.worker_group import T, Tell, Work, WorkerGroup, Workers
from fedray.types import FedrayError


def check(workers: Workers) -> None:
    """Check that the workers can be had, before anything starts. Raises FedrayError."""
    if workers.device == "cuda" and workers.here and not torch.cuda.is_available():
        raise FedrayError("device=cuda, and torch finds no GPU on this machine: leave device out")
    if workers.ray.enabled and find_spec("ray") is None:
        raise FedrayError("Ray is not installed: pip install 'fedray[ray]', or train without it: ray=none")
    if not workers.here:
        from fedray.training import ray_train

        ray_train.check_room(workers)


def run(work: Work[T], workers: Workers, tell: Tell) -> T:
    """Do the work and return its result; `tell` receives its progress.

    Raises the work's own FedrayError, FedrayError where there is no room for the workers or they keep dying, and
    KeyboardInterrupt.
    """
    if not workers.ray.enabled:
        torch.set_num_threads(workers.threads)
        return work(WorkerGroup(), tell)
    from fedray.training import ray_train

    start = ray_train.in_this_process if workers.here else ray_train.side_by_side
    return start(work, workers, tell)
