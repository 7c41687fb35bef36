"""The body of jobs/train_fuser.py: one fuser, or all that are missing."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch

from fedray.data.overlap import KeptWords
from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.fusion.norms import RECORD
from fedray.llm.catalogue import NAMES
from fedray.llm.loading import describe, load_source
from fedray.llm.source import Source, config_of
from fedray.methods.parts import FUSERS
from fedray.registry.store import Registry, fuser_name
from fedray.training.checkpoint import FOLDER, Checkpoint, Snapshot
from fedray.training.conversations import LabelledPrompt, believed
from fedray.training.data import BATCH
from fedray.training.dataset import dictated, fitting, longest_of, of_world, read_data_set, settings_of_data, to_measure
from fedray.training.dictation import TEXTS, TEXTS_OF, TOKENS_PER_TEXT, TOKENS_PER_WORD, of_vocabularies
from fedray.training.figures import Heatmap
from fedray.training.fuser_trainer import Examples, FuserTraining, accuracy_by_group
from fedray.training.job import Order, Outcome, TrainingJob, TrainingTask, settle
from fedray.training.llms import hashes, pin, registry_of, revisions
from fedray.training.memory import GIB, BatchLoad, Memory, check, estimate, estimate_texts
from fedray.training.pair import Pair
from fedray.training.recipe import FuserRecipe, is_half, precision, recipe_from
from fedray.training.settings import EVERYONE, FuserJob
from fedray.training.text_pair import TextPair
from fedray.training.worker_group import Tell, WorkerGroup
from fedray.types import Artifact
from fedray.world.world import world_of

FuserOrder = Order[FuserJob, FuserRecipe]


class TrainFuser(TrainingJob[FuserJob]):
    """Training of one fuser, or every one that a receiver lacks."""

    name = "train_fuser"

    def tasks(self) -> list[TrainingTask]:
        settings = self.settings
        assert settings.sender is not None
        named = NAMES if settings.sender == EVERYONE else (settings.sender,)
        llms = pin(settings, dict.fromkeys((settings.receiver, *named)))
        senders = self._without_fuser(llms) if settings.sender == EVERYONE else named
        talks = to_measure(settings.data, settings.limit) if self.workers.local and senders else []
        return [self._task(llms[sender], llms[settings.receiver], talks) for sender in senders]

    def _without_fuser(self, llms: Mapping[str, Source]) -> list[str]:
        """List senders whose fuser of this kind into the receiver a federation would not find."""
        settings, registry, weights = self.settings, registry_of(self.settings), hashes(llms)
        wanted = (settings.receiver, weights, settings.fuser.kind, settings.fusion.operator)
        others = [name for name in NAMES if name != settings.receiver]
        without = [name for name in others if registry.fuser_in_use(name, *wanted) is None]
        self.screen.passed_over(registry.problems)
        return without

    def _task(self, sender: Source, receiver: Source, talks: Sequence[LabelledPrompt]) -> TrainingTask:
        """Plan one training. Raises FedrayError where it does not fit."""
        settings, control, recipe = self.settings, self.settings.control, recipe_of(self.settings)
        name = fuser_name(sender.name, receiver.name)
        kind = f"{settings.fuser.kind}-{settings.fusion.operator}" + ("" if control == "none" else f"-{control}")
        decisive = {**asdict(recipe), "answers": settings.learns, "limit": settings.limit, **settings_of_data(settings)}
        checkpoint = Checkpoint(
            settings.root.absolute() / FOLDER / f"{name}.{kind}",
            what=f"the fuser {sender.name} -> {receiver.name}" + ("" if control == "none" else f" (control={control})"),
            llms=hashes({source.name: source for source in (receiver, sender)}),
            settings=decisive,
        )
        memory = _needed(settings, recipe, sender, receiver, talks) if self.workers.local else None
        order = Order(receiver, {sender.name: sender}, {}, recipe, settings, checkpoint, memory)
        params = {"sender": sender.name, "control": control, **decisive}
        return TrainingTask(name if control == "none" else f"{name}-{control}", "fuser", train, order, params)

    def register(self, order: FuserOrder, outcome: Outcome, snapshot: Snapshot) -> Artifact | None:
        if self.settings.control != "none":
            return None
        receiver, sender = outcome.members
        fuser = build_fuser(FuserConfig.from_dict(outcome.config))
        fuser.load_state_dict(snapshot.under("fuser"))
        return Registry(self.settings.root).add_fuser(fuser, sender, receiver, outcome.record)


def run(settings: FuserJob) -> int:
    """Run the job; returns the exit code. Raises FedrayError."""
    pair = f"{settings.sender}--{settings.receiver}"
    title = f"train for {settings.receiver}" if settings.sender == EVERYONE else f"train {pair}"
    return TrainFuser(settle(settings), title, settings.control).run()


def train(order: FuserOrder, group: WorkerGroup, tell: Tell) -> Outcome:
    """Do one worker's part in the training of one fuser."""
    s = order.settings
    (source,) = order.senders.values()
    tiny = s.data.name == "tiny"
    drafts = FUSERS[s.fuser.kind].drafts
    material = (
        (dictated if drafts else of_world)(world_of(s.zoo.path), s.limit, s.seed) if tiny else read_data_set(s, tell)
    )
    talks = (*material.talks, *material.check)
    memory = order.memory or _needed(s, order.recipe, source, order.receiver, talks)
    receiver = load_source(order.receiver, s.device, s.llm_dtype)
    sender = receiver if s.control == "identical" else load_source(source, s.device, s.llm_dtype)
    if material.source:
        material = fitting(material, receiver, [sender], s.data.longest)
    at_once = s.rows if material.source or s.zoo.name != "tiny" else BATCH

    if drafts and not tiny:
        said, held_out = of_vocabularies(sender, receiver, material.talks, s.seed, KeptWords(s.data.without))
        material = replace(material, talks=said, check=held_out)

    def pair(asked: list[LabelledPrompt], phase: str = "", like: Examples | None = None) -> Examples:
        if drafts:
            assert like is None or isinstance(like, TextPair)

            def read(done: int, of: int) -> None:
                tell(phase or "reading texts", done, of, {})

            return TextPair(sender, receiver, asked, order.recipe, like=like, on_done=read)
        if phase and s.learns == "sender":
            asked = believed(sender, asked, on_done=lambda done, of: tell(phase, done, of, {}))
        blind = s.control == "single"
        return Pair(sender, receiver, asked, memory_bytes=s.cache_mb << 20, blind=blind, at_once=at_once)

    asked = pair(material.talks, "" if drafts else "sender answers")
    validated = pair(material.check, "to validate with", asked) if s.validate_every else None
    training = FuserTraining(asked, order.recipe, validated, group, order.checkpoint, s.save_every)
    fuser = training.run(lambda step, of, figures: tell("training", step, of, figures))
    right = validated if drafts and validated else pair(material.check, like=asked)
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
        "answers": "drafts" if drafts else s.learns,
        "recipe": asdict(order.recipe),
        "validation": validation,
        "validation_alone": alone,
        RECORD: norms.to_dict(),
    }
    sides = ("K", "V") if len(weights_RLN) == 2 else ("",)
    values = tuple(map(tuple, weights_RLN.permute(1, 0, 2).flatten(1).tolist()))
    rows = tuple(f"layer {t}" for t in range(weights_RLN.shape[1]))
    columns = tuple(f"{side} head {n}".strip() for side in sides for n in range(weights_RLN.shape[2]))
    heatmap = Heatmap(values, rows, columns, "How much of the sender the fuser lets in")
    peak = {"memory/estimated_gib": memory.total / GIB, "memory/peak_gib": _peak(s.device) / GIB}
    figures, of = {**training.figures(), **peak}, (len(training.pair), training.step, training.resumed_at)
    config = fuser.config.to_dict()
    return Outcome(members, *of, figures, heatmap, record, material.data, validation, alone, config=config)


def _needed(
    s: FuserJob, recipe: FuserRecipe, sender: Source, receiver: Source, talks: Sequence[LabelledPrompt]
) -> Memory:
    """Estimate one worker's memory for these conversations. Raises FedrayError with the figures where there is less."""
    configs, half = (config_of(sender), config_of(receiver)), is_half(recipe, s.device)
    dtype, longest = getattr(torch, s.llm_dtype or "float32"), longest_of(s, talks, receiver, [sender])

    if FUSERS[recipe.kind].drafts:
        load = BatchLoad(s.rows, longest, dtype, False, s.workers)
        tokens = (
            TOKENS_PER_TEXT * (s.limit or TEXTS) if s.data.name == "tiny" else TOKENS_PER_WORD * sum(TEXTS_OF.values())
        )
        found = estimate_texts(*configs, recipe, load, tokens)
        return check(found, s.device, lambda parts: None, s.workers)

    def needed(parts: int = 1) -> Memory:
        return estimate(*configs, recipe, BatchLoad(s.rows // parts, longest, dtype, half, s.workers))

    return check(needed(), s.device, lambda parts: None if s.rows % parts else needed(parts), s.workers)


def _peak(device: str) -> int:
    """Measure peak memory in bytes: of the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def recipe_of(settings: FuserJob) -> FuserRecipe:
    """Make the recipe of settings; one between LLMs in 16 bit computes in 16 bit."""
    half = (settings.precision, settings.llm_dtype) == ("auto", "bfloat16")
    own = {"precision": "bfloat16"} if half else {}
    reads = {"rotary": "removed", "tokens": settings.tokens_read}
    return recipe_from(settings, FuserRecipe, steps=settings.all_steps, **reads, **own)
