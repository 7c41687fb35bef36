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
    """The workers of a run, from within one of them."""

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


class NoSecondTry(UserCallback):
    """Ends a run whose worker has raised a FedrayError, which would only come again."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, FedrayError):
                raise cause


def in_this_process(work: Work[T], workers: Workers, tell: Tell) -> T:
    """No cluster is started or joined."""

    def loop() -> T:
        torch.set_num_threads(workers.threads)
        return work(RayWorkerGroup(), tell)

    with _quiet():
        return TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit().return_value  # pyright: ignore


def side_by_side(work: Work[T], workers: Workers, tell: Tell) -> T:
    """On the cluster that is there, or on one of our own. Raises FedrayError where it has no room."""
    ray, wanted = workers.ray, _wanted(workers)
    cpus, gpus = wanted[0].num_cpus, wanted[0].num_gpus
    tell(STARTING, 0, workers.count, {})
    connection = cluster.connect(
        ray.address, namespace=ray.namespace, num_cpus=ray.num_cpus, object_store_mb=ray.object_store_mb
    )
    try:
        placement.place(wanted)
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        with _storage(workers.folder) as storage, _quiet(), _ctrl_c(), _told(tell) as queue:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"work": work, "threads": workers.threads, "queue": queue},
                scaling_config=ScalingConfig(
                    num_workers=workers.count, use_gpu=gpus > 0, resources_per_worker=resources
                ),
                run_config=RunConfig(
                    storage_path=str(storage),
                    failure_config=FailureConfig(max_failures=RESTARTS),
                    callbacks=[NoSecondTry()],
                ),
            )
            return trainer.fit().return_value  # pyright: ignore
    except TrainingFailedError as error:
        raise _as_error(error) from error
    finally:
        connection.close()


def check_room(workers: Workers) -> None:
    """Refuse what a cluster of our own would have no room for, before it starts. Raises FedrayError."""
    if cluster.will_embed(workers.ray.address):
        placement.place(_wanted(workers), nodes=[placement.this_machine(workers.ray.num_cpus)])


def _wanted(workers: Workers) -> list[placement.Placement]:
    gpus = 1.0 if workers.device == "cuda" else workers.ray.gpus_per_member
    cpus = workers.ray.cpus_per_member or float(workers.threads)
    return [placement.Placement(f"worker {n}", num_cpus=cpus, num_gpus=gpus) for n in range(1, workers.count + 1)]


def _worker(config: dict[str, Any]) -> Any:
    """What runs in every worker."""
    torch.set_num_threads(config["threads"])
    group, work, queue = RayWorkerGroup(), config["work"], config["queue"]

    def tell(*news: Any) -> None:
        if group.rank == 0:
            queue.put(news)

    tell(STARTING, group.size, group.size, {})
    return work(group, tell)


@contextmanager
def _storage(folder: Path) -> Iterator[Path]:
    """A folder for Ray Train's own notes, on the disk that all nodes share; nothing in it outlives the run."""
    storage = folder / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(parents=True)
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _told(tell: Tell) -> Iterator[Queue]:
    """A queue whose news are passed on until the block ends."""
    queue, end = Queue(actor_options={"num_cpus": 0}), None

    def listen() -> None:
        while (news := queue.get()) is not end:
            tell(*news)

    listener = threading.Thread(target=listen, name="fedray training", daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        queue.put(end)
        listener.join()
        queue.shutdown()


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ray Train ends its run on Ctrl-C and then the process; here it is KeyboardInterrupt, as everywhere."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Train's own news; what goes wrong is raised."""
    logger = logging.getLogger("ray.train")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_error(error: TrainingFailedError) -> FedrayError:
    """The FedrayError a worker raised, or one about its death."""
    refused = getattr(error, "controller_failure", None)
    if isinstance(refused, FedrayError):
        return refused
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    last = str(next(iter(failures.values()), error)).strip().splitlines()[-1].partition(". ")[0]
    return FedrayError(f"training fails in its workers ({last}); the same command goes on from the last checkpoint")
