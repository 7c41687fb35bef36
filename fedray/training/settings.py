"""What the jobs about learned parts can be told: train a fuser, train a gate, look into the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fedray.llm.catalogue import NAMES, resolve
from fedray.schema import Schema
from fedray.settings import RaySettings, RegistrySettings, TrackingSettings, ZooSettings, check_output, check_range
from fedray.types import FedrayError

EVERYONE = "all"  # sender=all: everyone whose fuser is missing
STEPS = {"concat": 900, "mix": 600}  # what a fuser of the scale model needs
_REGISTRY = RegistrySettings(Path("outputs/registry"))


@dataclass(frozen=True, slots=True)
class FuserJob:
    """jobs/train_fuser.py. What FuserRecipe explains (fuser_trainer.py) is named here as it is there."""

    sender: str | None = None  # a name, or "all": every pair into the receiver that has no fuser yet
    receiver: str = "qwen3-0.6b"
    control: Literal["none", "single", "identical"] = "none"  # no sender; the receiver as its own sender
    fuser: Literal["mlp", "c2c"] = "mlp"
    fusion: Literal["concat", "mix"] = "concat"
    hidden: int = 128
    answers: Literal["sender", "right"] = "sender"  # what the fuser learns to say
    limit: int | None = None  # questions to train on, and to validate on; None takes all
    steps: int | None = None  # None: as many as the operator needs
    batch_size: int = 96
    accumulation: int = 1
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    schedule: Literal["onecycle", "linear", "constant"] = "onecycle"
    warmup: float = 0.3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: int = 100
    patience: int = 3
    workers: int = 1  # several share every batch (DDP)
    threads: int = 1  # of torch, per worker; another number may change the last bits
    device: Literal["cpu", "cuda"] = "cpu"
    cache_mb: int = 4096  # of caches kept in memory; what needs more is read batch by batch
    save_every: int = 50  # steps between checkpoints
    restart: bool = False  # forget the checkpoint of an interrupted training
    zoo: ZooSettings = field(default_factory=ZooSettings)
    registry: RegistrySettings = _REGISTRY
    ray: RaySettings = field(default_factory=RaySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    seed: int = 0
    output: Path = field(default_factory=lambda: Path("outputs/train_fuser"))

    @property
    def root(self) -> Path:
        """The registry the fuser goes to."""
        return _given(self.registry)

    @property
    def all_steps(self) -> int:
        return self.steps or STEPS[self.fusion]


@dataclass(frozen=True, slots=True)
class GateJob:
    """jobs/train_gate.py. What GateRecipe explains (gate_trainer.py) is named here as it is there."""

    receiver: str = "qwen3-0.6b"
    senders: tuple[str, ...] = tuple(NAMES[1:])
    fuser: Literal["mlp", "c2c"] = "mlp"
    fusion: Literal["concat", "mix"] = "concat"
    limit: int | None = 3000  # training questions; None takes all
    steps: int = 500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    price: float = 0.05
    layers: tuple[int, ...] = (0, 1, 3)
    starts: int = 3
    workers: int = 1  # each measures a share of the questions
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    restart: bool = False
    zoo: ZooSettings = field(default_factory=ZooSettings)
    registry: RegistrySettings = _REGISTRY
    ray: RaySettings = field(default_factory=RaySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    seed: int = 0
    output: Path = field(default_factory=lambda: Path("outputs/train_gate"))

    @property
    def root(self) -> Path:
        """The registry the gate goes to."""
        return _given(self.registry)


@dataclass(frozen=True, slots=True)
class RegistryJob:
    """jobs/registry.py."""

    action: Literal["list", "show", "delete", "export"] = "list"
    name: str | None = None  # an LLM, a fuser (sender--receiver) or a gate (gate--receiver)
    hash: str | None = None  # a version, by the beginning of its hash; None is the newest
    to: Path | None = None  # where export puts a copy
    zoo: ZooSettings = field(default_factory=ZooSettings)
    registry: RegistrySettings = _REGISTRY
    output: Path = field(default_factory=lambda: Path("outputs/registry_job"))


FUSER_JOB = Schema(FuserJob)
GATE_JOB = Schema(GateJob)
REGISTRY_JOB = Schema(RegistryJob)


def build_fuser_job(values: Mapping[str, Any]) -> FuserJob:
    """Names canonical; fusion is what the fuser implies, and control=identical needs no sender. Raises FedrayError."""
    settings = FUSER_JOB.read(values)
    receiver = resolve(settings.receiver, "receiver")
    sender = receiver if settings.sender is None and settings.control == "identical" else settings.sender
    return replace(
        settings,
        receiver=receiver,
        sender=sender if sender in (None, EVERYONE) else resolve(sender, "sender"),
        fusion=settings.fusion if "fusion" in values else _implied(settings.fuser),
    )


def build_gate_job(values: Mapping[str, Any]) -> GateJob:
    """Names canonical; senders default to everyone but the receiver. Raises FedrayError."""
    values = {key: value for key, value in values.items() if (key, value) != ("senders", None)}
    settings = GATE_JOB.read(values)
    receiver = resolve(settings.receiver, "receiver")
    senders = settings.senders if "senders" in values else tuple(name for name in NAMES if name != receiver)
    return replace(
        settings,
        receiver=receiver,
        senders=tuple(resolve(sender, "sender") for sender in senders),
        fusion=settings.fusion if "fusion" in values else _implied(settings.fuser),
    )


def check_fuser_job(settings: FuserJob) -> None:
    """Refuse what cannot be meant, before torch or Ray is imported. Raises FedrayError."""
    FUSER_JOB.read(settings)
    _check_pair(settings)
    _check_operator(settings.fuser, settings.fusion)
    numbers = ("hidden", "limit", "steps", "batch_size", "accumulation", "workers", "threads", "save_every")
    for name in numbers:
        check_range(name, getattr(settings, name), 1)
    for name in ("validate_every", "patience", "cache_mb", "weight_decay"):
        check_range(name, getattr(settings, name), 0)
    check_range("steps", settings.steps, 2)
    check_range("learning_rate", settings.learning_rate, 1e-9, 1)
    check_range("warmup", settings.warmup, 0, 1)
    check_range("seed", settings.seed, 0, 2**32 - 1)
    parts = settings.workers * settings.accumulation
    if settings.batch_size % parts:
        raise FedrayError(
            f"batch_size={settings.batch_size} does not fall into workers={settings.workers} times accumulation="
            f"{settings.accumulation} equal parts: choose a multiple of {parts}"
        )
    if settings.patience and not settings.validate_every:
        raise FedrayError("patience counts validations: set validate_every, or patience=0 to never stop early")
    _check_surroundings(settings)


def check_gate_job(settings: GateJob) -> None:
    """Refuse what cannot be meant, before torch or Ray is imported. Raises FedrayError."""
    GATE_JOB.read(settings)
    _check_operator(settings.fuser, settings.fusion)
    receiver, senders = settings.receiver, settings.senders
    if not senders:
        raise FedrayError(f"a gate weighs senders: name some, as in '+senders=[{_other(receiver)}]'")
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out")
    if len(set(senders)) < len(senders):
        raise FedrayError(f"a sender is named more than once among {', '.join(senders)}: name each once")
    for name in ("limit", "batch_size", "starts", "workers", "threads"):
        check_range(name, getattr(settings, name), 1)
    if not settings.layers:
        raise FedrayError("layers names none: say after how many layers the gate may read, as in layers=[0,1]")
    for layer in settings.layers:
        check_range("layers", layer, 0)
    check_range("steps", settings.steps, 2)
    check_range("learning_rate", settings.learning_rate, 1e-9, 1)
    check_range("weight_decay", settings.weight_decay, 0)
    check_range("price", settings.price, -1, 1)
    check_range("seed", settings.seed, 0, 2**32 - 1)
    _check_surroundings(settings)


def check_registry_job(settings: RegistryJob) -> None:
    """Refuse what cannot be meant. Raises FedrayError."""
    REGISTRY_JOB.read(settings)
    _check_zoo(settings.zoo)
    action, name = settings.action, settings.name
    if action != "list" and not name:
        raise FedrayError(f"{action} what: name an LLM, a fuser or a gate, as in {action} qwen2.5-0.5b--qwen3-0.6b")
    if action == "export" and settings.to is None:
        raise FedrayError(f"export {name} needs a folder to go to: add to=DIR")
    if settings.hash is not None and not re.fullmatch(r"[0-9a-f]{4,16}", settings.hash):
        raise FedrayError(f"hash={settings.hash} is no hash: give at least its first four hexadecimal digits")
    check_output(settings.output)


def _check_pair(settings: FuserJob) -> None:
    sender, receiver, control = settings.sender, settings.receiver, settings.control
    if sender is None:
        raise FedrayError(f"no sender: name one, as in sender={_other(receiver)}, or train all with sender={EVERYONE}")
    if control == "identical" and sender != receiver:
        raise FedrayError(f"control=identical has the receiver as its sender: leave sender={sender} out")
    if control != "none" and sender == EVERYONE:
        raise FedrayError(f"control={control} is trained one at a time: name a sender, as in sender={_other(receiver)}")
    if control != "identical" and sender == receiver:
        raise FedrayError(
            f"{receiver} is both sender and receiver: choose another sender, such as {_other(receiver)}, or "
            "control=identical"
        )


def _check_operator(fuser: str, fusion: str) -> None:
    if fuser == "c2c" and fusion != "mix":
        raise FedrayError(
            f"fusion={fusion} does not go with fuser=c2c, which mixes: leave fusion out, or use fuser=mlp"
        )


def _check_surroundings(settings: FuserJob | GateJob) -> None:
    if not settings.ray.enabled and settings.workers > 1:
        raise FedrayError(f"workers={settings.workers} need Ray: leave ray=none out, or set workers=1")
    check_range("ray.num_cpus", settings.ray.num_cpus, 1)
    check_range("ray.object_store_mb", settings.ray.object_store_mb, 80)
    _check_zoo(settings.zoo)
    zoo = settings.zoo.path
    if zoo is not None and not zoo.is_dir():
        raise FedrayError(f"zoo.path={zoo} is no folder: check the path, or leave it out for the embedded one")
    check_output(settings.root, "registry.path")
    check_output(settings.output)


def _check_zoo(zoo: ZooSettings) -> None:
    if zoo.name != "tiny":
        raise FedrayError(f"zoo={zoo.name} is not for this job: leave it out, it knows zoo=tiny only")


def _given(registry: RegistrySettings) -> Path:
    if registry.path is None:
        raise FedrayError("the embedded registry is read-only: give one of your own with registry.path=DIR")
    return registry.path


def _implied(fuser: str) -> Literal["concat", "mix"]:
    return "mix" if fuser == "c2c" else "concat"


def _other(receiver: str) -> str:
    return next(name for name in NAMES if name != receiver)
