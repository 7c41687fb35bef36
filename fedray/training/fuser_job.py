"""The body of jobs/train_fuser.py: one fuser, or all that are missing."""

from __future__ import annotations

import platform
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fedray.fusion.fuser import build_fuser
from fedray.fusion.registry import SHIPPED, Registry, fuser_name
from fedray.llm.catalogue import EMBEDDED, NAMES
from fedray.llm.loading import describe, load
from fedray.llm.source import Source, config_of
from fedray.report import Data
from fedray.training.checkpoint import FOLDER, Checkpoint, Snapshot
from fedray.training.conversations import Conversation, believed
from fedray.training.crew import Crew, Tell
from fedray.training.data import BATCH
from fedray.training.figures import Heatmap
from fedray.training.fuser_trainer import FuserTraining, accuracy_by_group
from fedray.training.job import Job, Outcome, Task, hashes
from fedray.training.material import TINY_TOKENS, Material, fitting, of_data_set, of_world, said_of
from fedray.training.memory import GIB, Load, Memory, check, estimate
from fedray.training.pair import Pair
from fedray.training.recipe import FuserRecipe, fuser_config, is_half, precision
from fedray.training.settings import EVERYONE, FuserJob
from fedray.training.workers import Work
from fedray.types import Artifact
from fedray.zoo.world import World, seed_of


@dataclass(frozen=True, slots=True)
class Order:
    """One fuser to train, as every worker is told."""

    sender: str
    receiver: str
    recipe: FuserRecipe
    settings: FuserJob
    zoo: Path | None
    checkpoint: Checkpoint


def run(settings: FuserJob) -> int:
    """Do the job; returns the exit code. Raises FedrayError."""
    job = Job(settings, "train_fuser", settings.control)
    assert settings.sender is not None
    senders = _without_fuser(settings) if settings.sender == EVERYONE else [settings.sender]
    return job.run([_task(settings, sender) for sender in senders])


def train(order: Order, crew: Crew, tell: Tell) -> Outcome:
    """One worker's part in the training of one fuser."""
    s, zoo = order.settings, order.zoo
    material = _material(s, zoo, tell)
    memory = _estimated(order)
    receiver = load(order.receiver, zoo=s.zoo.name, device=s.device, dtype=s.llm_dtype, folder=zoo)
    sender = receiver
    if s.control != "identical":
        sender = load(order.sender, zoo=s.zoo.name, device=s.device, dtype=s.llm_dtype, folder=zoo)
    if material.source:
        material = fitting(material, (sender, receiver), s.data.longest)

    def pair(asked: list[Conversation], phase: str = "") -> Pair:
        if phase and s.learns == "sender":
            asked = believed(sender, asked, on_done=lambda done, of: tell(phase, done, of, {}))
        at_once = s.rows if material.source else BATCH
        return Pair(
            sender, receiver, asked, memory_bytes=s.cache_mb << 20, blind=s.control == "single", at_once=at_once
        )

    training = FuserTraining(
        pair(material.talks, "sender answers"),
        order.recipe,
        check=pair(material.check, "to validate with") if s.validate_every else None,
        crew=crew,
        checkpoint=order.checkpoint,
        save_every=s.save_every,
    )
    fuser = training.run(lambda step, of, figures: tell("training", step, of, figures))
    right = pair(material.check)
    with torch.no_grad(), precision(order.recipe, receiver.device):
        weights_RLN = right.openness(fuser, right.rows(range(min(len(right), right.at_once)))).float().cpu()
        validation, alone = accuracy_by_group(right, fuser), accuracy_by_group(right, None)
    record = {
        **material.record,
        "questions": len(training.pair),
        "steps": training.step,
        "answers": s.learns,
        "recipe": asdict(order.recipe),
        "validation": validation,
        "validation_alone": alone,
    }
    sides = ("K", "V") if len(weights_RLN) == 2 else ("",)
    heatmap = Heatmap(
        values=tuple(map(tuple, weights_RLN.permute(1, 0, 2).flatten(1).tolist())),
        rows=tuple(f"layer {t}" for t in range(weights_RLN.shape[1])),
        columns=tuple(f"{side} head {n}".strip() for side in sides for n in range(weights_RLN.shape[2])),
        title="How much of the sender the fuser lets in",
    )
    members = (describe(receiver), *((describe(sender),) if sender is not receiver else ()))
    return Outcome(
        members,
        len(training.pair),
        training.step,
        training.resumed_at,
        {**training.figures(), "memory/estimated_gib": memory.total / GIB, "memory/peak_gib": _peak(s.device) / GIB},
        heatmap,
        record,
        validation,
        alone,
        data=(Data(**asdict(material.source)),) if material.source else (),
    )


def _material(s: FuserJob, zoo: Path | None, tell: Tell) -> Material:
    if s.data.name == "tiny":
        return of_world(World(seed_of(zoo or EMBEDDED)), s.limit, s.seed)
    tell("reading", 0, s.limit or 1, {})
    return of_data_set(s.data, s.limit, s.seed, lambda done, of: tell("reading", done, of, {}))


def _estimated(order: Order) -> Memory:
    """What one worker needs, if it is there. Raises FedrayError with the figures where it is not."""
    s = order.settings
    sender, receiver = (config_of(Source(name, s.zoo.name, order.zoo)) for name in (order.sender, order.receiver))
    longest = TINY_TOKENS if s.data.name == "tiny" else s.data.longest

    def needed(parts: int = 1) -> Memory | None:
        if s.rows % parts:
            return None
        load = Load(s.rows // parts, longest, getattr(torch, s.llm_dtype), is_half(order.recipe, s.device), s.workers)
        return estimate(sender, receiver, order.recipe, load)

    memory = needed()
    assert memory is not None
    check(memory, s.device, needed, s.workers)
    return memory


def _peak(device: str) -> int:
    """Bytes at most taken so far: of the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _task(settings: FuserJob, sender: str) -> Task:
    receiver, control, zoo = settings.receiver, settings.control, settings.zoo.path
    name = fuser_name(sender, receiver)
    kind = f"{settings.fuser}-{settings.fusion}" + ("" if control == "none" else f"-{control}")
    recipe = FuserRecipe(
        kind=settings.fuser,
        operator=settings.fusion,
        hidden=settings.hidden,
        steps=settings.all_steps,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup=settings.warmup,
        precision=settings.precision,
        layers=settings.layers,
        sampling=settings.sampling,
        validate_every=settings.validate_every,
        patience=settings.patience,
        seed=settings.seed,
    )
    data = {"answers": settings.learns, "limit": settings.limit, **said_of(settings, zoo)}
    checkpoint = Checkpoint(
        settings.root.absolute() / FOLDER / f"{name}.{kind}",
        what=f"the fuser {sender} -> {receiver}" + ("" if control == "none" else f" (control={control})"),
        llms=hashes((sender, receiver), zoo),
        settings={**asdict(recipe), **data},
    )

    def register(outcome: Outcome, snapshot: Snapshot) -> Artifact:
        to, by = outcome.members
        fuser = build_fuser(fuser_config(recipe, by.spec, to.spec))
        fuser.load_state_dict(snapshot.under("fuser"))
        return Registry(settings.root).add_fuser(fuser, by, to, outcome.record)

    order = Order(sender, receiver, recipe, settings, zoo and zoo.absolute(), checkpoint)
    params = {"sender": sender, "receiver": receiver, "control": control, "zoo": settings.zoo.name, **asdict(recipe)}
    return Task(
        name if control == "none" else f"{name}-{control}",
        "fuser",
        (sender,),
        Work(train, order),
        checkpoint,
        register if control == "none" else None,
        {**params, **data, "workers": settings.workers},
    )


def _without_fuser(settings: FuserJob) -> list[str]:
    """Senders whose fuser of this kind into the receiver a federation would not find."""
    zoo = settings.zoo.path
    registry = Registry(settings.root, SHIPPED if zoo is None else zoo / "registry")

    def has_one(sender: str) -> bool:
        weights = hashes((sender, settings.receiver), zoo)
        return registry.fuser_in_use(sender, settings.receiver, weights, settings.fuser, settings.fusion) is not None

    return [name for name in NAMES if name != settings.receiver and not has_one(name)]
