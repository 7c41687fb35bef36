"""The body of jobs/train_fuser.py: one fuser, or all that are missing."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from fedray.fusion.build import build_fuser
from fedray.fusion.norms import RECORD
from fedray.llm.catalogue import NAMES
from fedray.llm.loading import describe
from fedray.llm.source import Source, config_of
from fedray.registry.store import Registry, fuser_name
from fedray.reporting.report import Data
from fedray.training.checkpoint import FOLDER, Checkpoint, Snapshot
from fedray.training.conversations import LabelledPrompt, believed
from fedray.training.data import BATCH
from fedray.training.dataset import Material, fitting, longest_of, of_data_set, of_world, said_of, world_of
from fedray.training.figures import Heatmap
from fedray.training.fuser_trainer import FuserTraining, accuracy_by_group
from fedray.training.job import Outcome, TrainingJob, TrainingTask, settle
from fedray.training.llms import hashes, pin, read, registry_of, revisions
from fedray.training.memory import GIB, BatchLoad, Memory, check, estimate
from fedray.training.pair import Pair
from fedray.training.recipe import FuserRecipe, fuser_config, is_half, precision
from fedray.training.settings import EVERYONE, FuserJob
from fedray.training.worker_group import Tell, Work, WorkerGroup
from fedray.types import Artifact


@dataclass(frozen=True, slots=True)
class FuserOrder:
    """One fuser to train, as every worker is told. memory: what each needs, where the driver has seen that it is there;
    None: each sees for itself."""

    sender: Source
    receiver: Source
    recipe: FuserRecipe
    settings: FuserJob
    checkpoint: Checkpoint
    memory: Memory | None


class TrainFuser(TrainingJob[FuserJob]):
    """Trains one fuser, or every one that a receiver lacks."""

    name = "train_fuser"

    def tasks(self) -> list[TrainingTask]:
        settings = self.settings
        assert settings.sender is not None
        named = NAMES if settings.sender == EVERYONE else (settings.sender,)
        llms = pin(settings, dict.fromkeys((settings.receiver, *named)))
        senders = self._without_fuser(llms) if settings.sender == EVERYONE else named
        return [self._task(llms[sender], llms[settings.receiver]) for sender in senders]

    def _without_fuser(self, llms: Mapping[str, Source]) -> list[str]:
        """Senders whose fuser of this kind into the receiver a federation would not find."""
        settings, registry, weights = self.settings, registry_of(self.settings), hashes(llms)
        receiver = settings.receiver

        def has_one(sender: str) -> bool:
            of_pair = {name: weights[name] for name in (sender, receiver)}
            return registry.fuser_in_use(sender, receiver, of_pair, settings.fuser, settings.fusion) is not None

        without = [name for name in NAMES if name != receiver and not has_one(name)]
        self.screen.passed_over(registry.problems)
        return without

    def _task(self, sender: Source, receiver: Source) -> TrainingTask:
        """Raises FedrayError where it does not fit."""
        settings, control = self.settings, self.settings.control
        name = fuser_name(sender.name, receiver.name)
        kind = f"{settings.fuser}-{settings.fusion}" + ("" if control == "none" else f"-{control}")
        recipe = recipe_of(settings)
        data = {"answers": settings.learns, "limit": settings.limit, **said_of(settings)}
        memory = _needed(settings, recipe, sender, receiver) if self.workers.local else None
        llms = {source.name: source for source in (receiver, sender)}
        checkpoint = Checkpoint(
            settings.root.absolute() / FOLDER / f"{name}.{kind}",
            what=f"the fuser {sender.name} -> {receiver.name}" + ("" if control == "none" else f" (control={control})"),
            llms=hashes(llms),
            settings={**asdict(recipe), **data},
        )

        def register(outcome: Outcome, snapshot: Snapshot) -> Artifact:
            to, by = outcome.members
            fuser = build_fuser(fuser_config(recipe, by.spec, to.spec))
            fuser.load_state_dict(snapshot.under("fuser"))
            return Registry(settings.root).add_fuser(fuser, by, to, outcome.record)

        params = {"sender": sender.name, "receiver": receiver.name, "control": control, "zoo": settings.zoo.name}
        return TrainingTask(
            name if control == "none" else f"{name}-{control}",
            "fuser",
            tuple(llms.values()),
            (sender.name,),
            Work(train, FuserOrder(sender, receiver, recipe, settings, checkpoint, memory)),
            checkpoint,
            register if control == "none" else None,
            {**params, **asdict(recipe), **data, "workers": settings.workers},
        )


def run(settings: FuserJob) -> int:
    """Do the job; returns the exit code. Raises FedrayError."""
    pair = f"{settings.sender}--{settings.receiver}"
    title = f"train for {settings.receiver}" if settings.sender == EVERYONE else f"train {pair}"
    return TrainFuser(settle(settings), title, settings.control).run()


def train(order: FuserOrder, group: WorkerGroup, tell: Tell) -> Outcome:
    """One worker's part in the training of one fuser."""
    s = order.settings
    memory = order.memory or _needed(s, order.recipe, order.sender, order.receiver)
    material = _material(s, tell)
    receiver = read(order.receiver, s.device, s.llm_dtype)
    sender = receiver if s.control == "identical" else read(order.sender, s.device, s.llm_dtype)
    if material.source:
        material = fitting(material, (sender, receiver), s.data.longest)

    def pair(asked: list[LabelledPrompt], phase: str = "") -> Pair:
        if phase and s.learns == "sender":
            asked = believed(sender, asked, on_done=lambda done, of: tell(phase, done, of, {}))
        at_once = s.rows if material.source or s.zoo.name != "tiny" else BATCH
        return Pair(
            sender, receiver, asked, memory_bytes=s.cache_mb << 20, blind=s.control == "single", at_once=at_once
        )

    training = FuserTraining(
        pair(material.talks, "sender answers"),
        order.recipe,
        check=pair(material.check, "to validate with") if s.validate_every else None,
        group=group,
        checkpoint=order.checkpoint,
        save_every=s.save_every,
    )
    fuser = training.run(lambda step, of, figures: tell("training", step, of, figures))
    right = pair(material.check)
    with torch.no_grad(), precision(order.recipe, receiver.device):
        weights_RLN = right.openness(fuser, right.rows(range(min(len(right), right.at_once)))).float().cpu()
        validation, alone = accuracy_by_group(right, fuser), accuracy_by_group(right, None)
        norms = training.pair.norms()
    members = (describe(receiver), *((describe(sender),) if sender is not receiver else ()))
    record = {
        **material.record,
        **revisions(members),
        "questions": len(training.pair),
        "steps": training.step,
        "answers": s.learns,
        "recipe": asdict(order.recipe),
        "validation": validation,
        "validation_alone": alone,
        RECORD: norms.to_dict(),
    }
    sides = ("K", "V") if len(weights_RLN) == 2 else ("",)
    heatmap = Heatmap(
        values=tuple(map(tuple, weights_RLN.permute(1, 0, 2).flatten(1).tolist())),
        rows=tuple(f"layer {t}" for t in range(weights_RLN.shape[1])),
        columns=tuple(f"{side} head {n}".strip() for side in sides for n in range(weights_RLN.shape[2])),
        title="How much of the sender the fuser lets in",
    )
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


def _material(s: FuserJob, tell: Tell) -> Material:
    if s.data.name == "tiny":
        return of_world(world_of(s), s.limit, s.seed)
    tell("reading", 0, s.limit or 1, {})
    return of_data_set(s.data, s.limit, s.seed, lambda done, of: tell("reading", done, of, {}))


def _needed(s: FuserJob, recipe: FuserRecipe, sender: Source, receiver: Source) -> Memory:
    """What one worker needs, if it is there. Raises FedrayError with the figures where it is not."""
    configs, half = (config_of(sender), config_of(receiver)), is_half(recipe, s.device)
    dtype = getattr(torch, s.llm_dtype or "float32")

    def needed(parts: int = 1) -> Memory | None:
        if s.rows % parts:
            return None
        return estimate(*configs, recipe, BatchLoad(s.rows // parts, longest_of(s), dtype, half, s.workers))

    memory = needed()
    assert memory is not None
    check(memory, s.device, needed, s.workers)
    return memory


def _peak(device: str) -> int:
    """Bytes at most taken so far: of the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def recipe_of(settings: FuserJob) -> FuserRecipe:
    """How the settings want a fuser trained; one between LLMs in 16 bit computes in 16 bit."""
    precision = "bfloat16" if (settings.precision, settings.llm_dtype) == ("auto", "bfloat16") else settings.precision
    return FuserRecipe(
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
        precision=precision,
        layers=settings.layers,
        sampling=settings.sampling,
        validate_every=settings.validate_every,
        patience=settings.patience,
        seed=settings.seed,
    )
