"""Settings of the jobs about learned parts: train a fuser or a gate, import a fuser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fedray.data.catalogue import BENCHMARKS, OWN, TALKS
from fedray.data.overlap import KeptWords
from fedray.llm.catalogue import NAMES, resolve
from fedray.methods.method import FuserChoice, Fusion, fuser_kind, with_fusion
from fedray.methods.parts import FUSERS
from fedray.schema import Schema, within
from fedray.settings.check import check_apart, check_llm_folders, check_output, check_revision, check_store
from fedray.settings.settings import (
    BY_MEMBER,
    RaySettings,
    RegistrySettings,
    TrackingSettings,
    ZooSettings,
    named_safely,
    with_strangers,
)
from fedray.types import FedrayError

if TYPE_CHECKING:
    Against = TrainingSet = str
else:
    Against = Literal[tuple(BENCHMARKS)]
    TrainingSet = Literal[("tiny", *TALKS)]
EVERYONE = "all"  # sender=all: everyone whose fuser is missing
STEPS = {"concat": 900, "mix": 600}  # what a fuser of the scale model needs
_REGISTRY = RegistrySettings(Path("outputs/registry"))


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Training data: the tiny world's questions, or conversations. A bare value is its name."""

    name: TrainingSet = "tiny"
    path: Path | None = None  # a local copy: a file or folder, or a folder with one folder per data set; None: the hub
    streaming: bool = False  # read the hub's rows as they come, without keeping them
    revision: str | None = None  # on the hub
    longest: int = within(2048, 16)  # tokens; what is longer is left out
    held_out: float = within(0.01, 1e-6, 0.5)  # share to validate with
    against: tuple[Against, ...] | None = None  # None is all; evaluation sets whose questions may not occur
    without: Path | None = None  # a file of words that, and whose forms, are kept for evaluation

    @property
    def kept_out(self) -> tuple[str, ...]:
        """Evaluation sets whose questions are kept out of the training."""
        return tuple(BENCHMARKS) if self.against is None else self.against


@dataclass(frozen=True, slots=True)
class LLMSettings:
    """Settings of one LLM."""

    revision: str | None = None  # branch, tag or commit of its repository; None is main


Members = Mapping[str, LLMSettings]  # by safe name: qwen2_5-0_5b


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryUser:
    """Settings of every job about learned parts."""

    zoo: ZooSettings = field(default_factory=ZooSettings)
    registry: RegistrySettings = _REGISTRY

    @property
    def root(self) -> Path:
        """The registry that is written to. Raises FedrayError where none is given."""
        if self.registry.path is None:
            raise FedrayError("the embedded registry is read-only: give one of your own with registry.path=DIR")
        return self.registry.path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(RegistryUser):
    """Settings of both trainings."""

    receiver: str = "qwen3-0.6b"
    fuser: FuserChoice = field(default_factory=FuserChoice)
    fusion: Fusion = field(default_factory=Fusion)
    data: TrainingData = field(default_factory=TrainingData)
    workers: int = within(1, 1)  # several share every batch (DDP), or each measures a share of the questions
    threads: int = within(1, 1)  # of torch, per worker; another number may change the last bits
    device: Literal["cpu", "cuda"] = "cpu"
    llm_dtype: Literal["float32", "bfloat16"] | None = None  # of the frozen LLMs; None: what the device is good at
    restart: bool = False  # forget the checkpoint of an interrupted training
    members: Members = field(default_factory=dict)
    ray: RaySettings = field(default_factory=RaySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    seed: int = within(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class FuserJob(TrainingSettings):
    """Settings of jobs/train_fuser.py; recipe.py explains those that FuserRecipe has too."""

    sender: str | None = None  # a name, or "all": every pair into the receiver that has no fuser yet
    control: Literal["none", "single", "identical"] = "none"  # no sender; the receiver as its own sender
    hidden: int = within(128, 1)
    layers: Literal["bottom_up", "last_aligned", "first", "all"] = "bottom_up"  # which of the sender's a layer reads
    tokens: Literal["prompt", "text"] | None = None  # that concat reads; None: the user's text, on zoo=tiny the prompt
    answers: Literal["sender", "right"] | None = None  # what is learnt; None: the sender's, of conversations the right
    limit: int | None = within(None, 1)  # questions to train and to validate on, or conversations read; None: all
    steps: int | None = within(None, 2)  # None: as many as the operator needs, or one pass over `limit` conversations
    sampling: Literal["independent", "epochs"] = "independent"  # every step anew, or each once before any comes again
    batch_size: int = within(96, 1)
    accumulation: int = within(1, 1)
    learning_rate: float = within(4e-3, 1e-9, 1)
    weight_decay: float = within(0.01, 0)
    schedule: Literal["onecycle", "linear", "constant"] = "onecycle"
    warmup: float = within(0.3, 0, 1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: int = within(100, 0)
    patience: int = within(3, 0)
    cache_mb: int = within(4096, 0)  # of caches kept in memory; what needs more is read batch by batch
    save_every: int = within(50, 1)  # steps between checkpoints
    output: Path = field(default_factory=lambda: Path("outputs/train_fuser"))

    @property
    def learns(self) -> Literal["sender", "right"]:
        """The answers to learn: the sender's, or the right ones."""
        return self.answers or ("sender" if self.data.name == "tiny" else "right")

    @property
    def tokens_read(self) -> Literal["prompt", "text"]:
        """What of a sender's prompt a concat fuser reads: in the scale model the answer stands in the template."""
        return self.tokens or ("prompt" if self.zoo.name == "tiny" else "text")

    @property
    def all_steps(self) -> int:
        if self.steps is None and self.layers == "all":
            return 0
        if self.steps is None and self.data.name != "tiny" and self.limit is not None:
            return max(2, math.ceil(self.limit * (1 - self.data.held_out) / self.batch_size))
        return self.steps or STEPS[self.fusion.operator]

    @property
    def rows(self) -> int:
        """Conversations a worker reads at once."""
        return max(1, self.batch_size // (self.workers * self.accumulation))


@dataclass(frozen=True, slots=True)
class GateJob(TrainingSettings):
    """Settings of jobs/train_gate.py; gate_trainer.py explains those that GateRecipe has too."""

    senders: tuple[str, ...] = tuple(NAMES[1:])
    limit: int | None = within(3000, 1)  # training questions, or conversations read; None takes all
    steps: int = within(500, 2)
    batch_size: int = within(256, 1)
    learning_rate: float = within(3e-3, 1e-9, 1)
    weight_decay: float = within(0.1, 0)
    price: float = within(0.05, -1, 1)
    layers: tuple[int, ...] = within((0, 1, 3), 0)
    starts: int = within(3, 1)
    at_once: int = within(256, 1)  # questions a worker reads at a time
    output: Path = field(default_factory=lambda: Path("outputs/train_gate"))


@dataclass(frozen=True, slots=True)
class ImportJob(RegistryUser):
    """Settings of jobs/import_c2c.py."""

    source: str | None = None  # a published pair: its folder, or ORG/NAME/PAIR on the hub
    revision: str | None = None  # of a pair on the hub: a branch, tag or commit; None is the newest
    sender: str | None = None
    receiver: str = "qwen3-0.6b"
    members: Members = field(default_factory=dict)
    output: Path = field(default_factory=lambda: Path("outputs/import_c2c"))


_KEYS = {"members": BY_MEMBER["members"]}
FUSER_JOB = Schema(FuserJob, _KEYS)
GATE_JOB = Schema(GateJob, _KEYS)
IMPORT_JOB = Schema(ImportJob, _KEYS)
J = TypeVar("J", FuserJob, GateJob, ImportJob)


def build_fuser_job(values: Mapping[str, Any]) -> FuserJob:
    """Build settings; control=identical needs no sender. Raises FedrayError."""
    settings = _build(FUSER_JOB, _with_usual(values), [values.get("sender")])
    if settings.sender is None and settings.control == "identical":
        return replace(settings, sender=settings.receiver)
    return settings if settings.sender == EVERYONE else replace(settings, sender=_canonical_sender(settings))


def _with_usual(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a training of this fuser usually has, where nothing (or null) is said."""
    kind = fuser_kind(values)
    usual = dict(FUSERS[kind].training) if kind in FUSERS else {}
    zoo = values.get("zoo")
    if usual.get("layers") == "first" and (zoo.get("name") if isinstance(zoo, Mapping) else zoo) == "hub":
        usual |= {"layers": "all", "hidden": 256}  # in LLMs of real size a word is not in the first layer
        usual.pop("steps")  # the map is found in closed form
    data = values.get("data")
    if (data.get("name") if isinstance(data, Mapping) else data) not in (None, TrainingData().name):
        usual.pop("steps", None)  # one pass over what is read
    left_open = {"hidden", "layers", "batch_size", "learning_rate"}
    return {**usual, **{k: v for k, v in values.items() if v is not None or k not in {*left_open, *usual}}}


def build_gate_job(values: Mapping[str, Any]) -> GateJob:
    """Build settings; senders default to everyone but the receiver. Raises FedrayError."""
    values = {key: value for key, value in values.items() if (key, value) != ("senders", None)}
    settings = _build(GATE_JOB, values, values.get("senders"))
    senders = settings.senders if "senders" in values else tuple(name for name in NAMES if name != settings.receiver)
    return replace(settings, senders=tuple(resolve(sender, "sender", settings.zoo.name) for sender in senders))


def build_import_job(values: Mapping[str, Any]) -> ImportJob:
    """Build settings. Raises FedrayError."""
    settings = _build(IMPORT_JOB, values, [values.get("sender")])
    return replace(settings, sender=_canonical_sender(settings))


def _build(schema: Schema[J], values: Mapping[str, Any], senders: Any) -> J:
    """Read settings: the receiver by its canonical name, fusion as the fuser implies it."""
    values = named_safely(values)
    values = values if schema is IMPORT_JOB else with_fusion(values)
    settings = with_strangers(schema, values.get("receiver"), senders).read(values)
    settings = replace(settings, receiver=resolve(settings.receiver, "receiver", settings.zoo.name))
    return settings


def _canonical_sender(settings: FuserJob | ImportJob) -> str | None:
    return settings.sender and resolve(settings.sender, "sender", settings.zoo.name)


def check_fuser_job(settings: FuserJob) -> None:
    """Validate settings, before torch or Ray is imported. Raises FedrayError."""
    with_strangers(FUSER_JOB, settings.receiver, [settings.sender]).read(settings)
    _check_pair(settings)
    if settings.data.name != "tiny" and settings.answers == "sender":
        raise FedrayError(f"answers=sender is for the tiny world: leave it out with data={settings.data.name}")
    if settings.data.name != "tiny" and settings.limit is None and settings.steps is None and settings.layers != "all":
        raise FedrayError(f"data={settings.data.name} needs an end: say limit=N conversations, or steps=N")
    if settings.llm_dtype == "bfloat16" and settings.precision == "float32":
        raise FedrayError("llm_dtype=bfloat16 needs a fuser that computes alike: choose precision=bfloat16 or auto")
    parts = settings.workers * settings.accumulation
    if settings.batch_size % parts:
        raise FedrayError(
            f"batch_size={settings.batch_size} does not fall into workers={settings.workers} times accumulation="
            f"{settings.accumulation} equal parts: choose a multiple of {parts}"
        )
    if FUSERS[settings.fuser.kind].drafts and settings.control != "none":
        raise FedrayError(
            f"control={settings.control} is for fusers that are trained through the receiver, not for "
            f"fuser={settings.fuser.kind}: leave it out"
        )
    if not FUSERS[settings.fuser.kind].trained:
        raise FedrayError(f"fuser={settings.fuser.kind} needs no training: use it with jobs/federate.py")
    of_drafts = ("first", "all")
    if (settings.layers in of_drafts) != FUSERS[settings.fuser.kind].drafts:
        fits = of_drafts if FUSERS[settings.fuser.kind].drafts else ("bottom_up", "last_aligned")
        raise FedrayError(
            f"layers={settings.layers} does not go with fuser={settings.fuser.kind}: choose {' or '.join(fits)}"
        )
    if settings.tokens and (settings.fusion.operator != "concat" or FUSERS[settings.fuser.kind].drafts):
        raise FedrayError(
            f"tokens={settings.tokens} is about caches of prompts beside the receiver's own: leave it out with fuser="
            f"{settings.fuser.kind} fusion={settings.fusion.operator}"
        )
    if settings.patience and not settings.validate_every:
        raise FedrayError("patience counts validations: set validate_every, or patience=0 to never stop early")
    _check_training(settings, () if settings.sender in (None, EVERYONE) else (settings.sender,))


def check_gate_job(settings: GateJob) -> None:
    """Validate settings, as check_fuser_job. Raises FedrayError."""
    with_strangers(GATE_JOB, settings.receiver, settings.senders).read(settings)
    receiver, senders = settings.receiver, settings.senders
    if not senders:
        raise FedrayError(f"a gate weighs senders: name some, as in '+senders=[{_other(receiver)}]'")
    if receiver in senders:
        raise FedrayError(f"{receiver} is the receiver and among the senders: leave it out")
    if len(set(senders)) < len(senders):
        raise FedrayError(f"a sender is named more than once among {', '.join(senders)}: name each once")
    check_apart((receiver, *senders))
    if not FUSERS[settings.fuser.kind].trained:
        raise FedrayError(f"fuser={settings.fuser.kind} needs no gate of its own: use gate=open with jobs/federate.py")
    if not settings.layers:
        raise FedrayError("layers names none: say after how many layers the gate may read, as in layers=[0,1]")
    _check_training(settings, senders)


def check_import_job(settings: ImportJob) -> None:
    """Validate settings. Raises FedrayError."""
    with_strangers(IMPORT_JOB, settings.receiver, [settings.sender]).read(settings)
    pair = "nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser"
    if not settings.source:
        raise FedrayError(f"import what: name the folder of a published pair, or one on the hub, as in {pair}")
    if settings.sender is None:
        raise FedrayError(f"no sender: name the LLM that it reads, as in sender={_other(settings.receiver)}")
    if settings.sender == settings.receiver:
        raise FedrayError(f"{settings.receiver} is both sender and receiver: name the two LLMs of the pair")
    check_apart((settings.sender, settings.receiver))
    _check_llms(settings, (settings.sender, settings.receiver))
    check_output(settings.root, "registry.path")
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
    check_apart(tuple(dict.fromkeys((sender, receiver))))


def _check_training(settings: FuserJob | GateJob, senders: tuple[str, ...]) -> None:
    settings.fusion.check(settings.fuser.kind)
    path = settings.data.path
    if path is None and settings.data.name == OWN.name:
        raise FedrayError("data=own is read from this disk: name a file or a folder with data.path=")
    if path is not None and not path.exists():
        raise FedrayError(f"data.path={path} does not exist: name a folder or a file, or leave it out")
    if settings.data.without is not None and settings.data.name == "tiny":
        raise FedrayError("data.without keeps words out of a data set: leave it out with data=tiny")
    KeptWords(settings.data.without)
    if not settings.ray.enabled and settings.workers > 1:
        raise FedrayError(f"workers={settings.workers} need Ray: leave ray=none out, or set workers=1")
    _check_llms(settings, (settings.receiver, *senders))
    check_output(settings.root, "registry.path")
    check_output(settings.output)
    check_store(settings.tracking)


def _check_llms(settings: FuserJob | GateJob | ImportJob, names: tuple[str, ...]) -> None:
    check_own_zoo(settings.zoo)
    check_llm_folders(names)
    for name, member in settings.members.items():
        check_revision(name, member.revision, settings.zoo)


def check_own_zoo(zoo: ZooSettings) -> None:
    """Validate the zoo of a job about learned parts. Raises FedrayError."""
    if zoo.name == "shapes":
        raise FedrayError("zoo=shapes has random weights, and a fuser of them is of no use: take zoo=tiny or zoo=hub")
    if zoo.path is not None and not zoo.path.is_dir():
        raise FedrayError(f"zoo.path={zoo.path} is no folder: check the path, or leave it out for the embedded one")


def _other(receiver: str) -> str:
    return next(name for name in NAMES if name != receiver)
