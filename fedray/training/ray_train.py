"""Work on Ray Train: in this process (its local mode), or in several workers that share every batch (DDP).

Ray Train sets up the workers and their process group, and starts the group again when one of them dies; the work then
goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.queue import Queue
from torch import Tensor, nn

from fedray.runtime import cluster, placement
from fedray.training.worker_group import Tell, Work, WorkerGroup, Workers
from fedray.types import FedrayError

RESTARTS = 3  # of the group, after the death of a worker
STARTING = "starting workers"
T = TypeVar("T")


class RayWorkerGroup(WorkerGroup):
    """The worker group of Ray Train, from within one worker."""

    def __init__(self) -> None:
        context = train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        return prepare_model(module, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False})

    def no_sync(self, module: nn.Module) -> AbstractContextManager[object]:
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else super().no_sync(module)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self.size > 1:
            added = tensor.to(get_device())  # NCCL adds on GPUs only
            torch.distributed.all_reduce(added)
            tensor = added.to(tensor.device)
        return tensor


class NoRetry(UserCallback):
    """Callback that ends a run whose worker has raised a FedrayError, which a retry would only repeat."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, FedrayError):
                raise cause


def in_this_process(work: Work[T], workers: Workers, tell: Tell) -> T:
    """Run Ray Train in its local mode: no cluster is started or joined."""

    def loop() -> T:
        torch.set_num_threads(workers.threads)
        return work(RayWorkerGroup(), tell)

    _silence()
    return TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit().return_value  # pyright: ignore


def side_by_side(work: Work[T], workers: Workers, tell: Tell) -> T:
    """Run workers on the cluster that is there, or on one of our own. Raises FedrayError where it has no room."""
    ray, wanted = workers.ray, _wanted(workers)
    cpus, gpus = wanted[0].num_cpus, wanted[0].num_gpus
    tell(STARTING, 0, workers.count, {})
    _silence()
    connection = cluster.connect(ray.address, **ray.of_cluster)
    try:
        placement.place(wanted)
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        scaling = ScalingConfig(num_workers=workers.count, use_gpu=gpus > 0, resources_per_worker=resources)
        restarts = FailureConfig(max_failures=RESTARTS)
        with _storage(workers.folder) as storage, _ctrl_c(), _progress_queue(tell) as queue:
            given = {"work": work, "threads": workers.threads, "queue": queue}
            run = RunConfig(storage_path=str(storage), failure_config=restarts, callbacks=[NoRetry()])
            trainer = TorchTrainer(_worker, train_loop_config=given, scaling_config=scaling, run_config=run)
            return trainer.fit().return_value  # pyright: ignore
    except TrainingFailedError as error:
        raise _as_error(error) from error
    finally:
        connection.close()


def check_room(workers: Workers) -> None:
    """Check the room of a cluster of our own before it starts. Raises FedrayError."""
    if cluster.will_embed(workers.ray.address):
        placement.place(_wanted(workers), nodes=[placement.this_machine(workers.ray.num_cpus)])


def _wanted(workers: Workers) -> list[placement.Placement]:
    gpus = 1.0 if workers.device == "cuda" else workers.ray.gpus_per_member
    cpus = workers.ray.cpus_per_member or float(workers.threads)
    return [placement.Placement(f"worker {n}", num_cpus=cpus, num_gpus=gpus) for n in range(1, workers.count + 1)]


def _worker(config: dict[str, Any]) -> Any:
    """Run the work in one worker."""
    torch.set_num_threads(config["threads"])
    group, work, queue = RayWorkerGroup(), config["work"], config["queue"]

    def tell(*news: Any) -> None:
        if group.rank == 0:
            queue.put(news)

    tell(STARTING, group.size, group.size, {})
    return work(group, tell)


@contextmanager
def _storage(folder: Path) -> Iterator[Path]:
    """Make a temporary folder for Ray Train's state, on the disk that all nodes share."""
    storage = folder / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(parents=True)
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _progress_queue(tell: Tell) -> Iterator[Queue]:
    """Open a queue whose items are passed to `tell` until the block ends."""
    queue = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        while news := queue.get():
            tell(*news)

    listener = threading.Thread(target=listen, name="fedray training", daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Turn the exit by which Ray Train ends the process on Ctrl-C into KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _silence() -> None:
    """Silence Ray Train's own log; failures are raised."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL + 1)


def _as_error(error: TrainingFailedError) -> FedrayError:
    """Find the FedrayError a worker raised, or make one about its death."""
    refused = getattr(error, "controller_failure", None)
    if isinstance(refused, FedrayError):
        return refused
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    last = str(next(iter(failures.values()), error)).strip().splitlines()[-1].partition(". ")[0]
    return FedrayError(f"training fails in its workers ({last}); the same command goes on from the last checkpoint")
