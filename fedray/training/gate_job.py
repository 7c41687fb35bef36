"""The body of jobs/train_gate.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fedray.fusion.fuser import FuserConfig
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.llm.catalogue import slug
from fedray.llm.loading import describe, load_source
from fedray.llm.source import Source, config_of
from fedray.methods.method import Method
from fedray.methods.parts import FUSERS
from fedray.registry.store import Registry, fuser_name, gate_name, load_fuser, read_manifest
from fedray.schema import attributes
from fedray.training.checkpoint import FOLDER, Checkpoint, Snapshot
from fedray.training.contributions import Contributions
from fedray.training.conversations import LabelledPrompt
from fedray.training.dataset import fitting, for_gate, longest_of, read_data_set, settings_of_data, to_measure
from fedray.training.figures import Heatmap
from fedray.training.gate_trainer import GateRecipe, GateTraining
from fedray.training.job import Order, Outcome, TrainingJob, TrainingTask, settle
from fedray.training.llms import hashes, pin, registry_of, revisions
from fedray.training.memory import GIB, BatchLoad, Memory, check, estimate_gate
from fedray.training.recipe import recipe_from
from fedray.training.settings import GateJob
from fedray.training.worker_group import Tell, WorkerGroup
from fedray.types import Artifact, FedrayError
from fedray.world.world import world_of

GateOrder = Order[GateJob, GateRecipe]


class TrainGate(TrainingJob[GateJob]):
    """Training of one gate."""

    name = "train_gate"

    def tasks(self) -> list[TrainingTask]:
        settings = self.settings
        llms = pin(settings, (settings.receiver, *settings.senders))
        deepest = config_of(llms[settings.receiver]).num_hidden_layers
        if max(settings.layers) > deepest:
            there = [layer for layer in settings.layers if layer <= deepest]
            raise FedrayError(
                f"layers={list(settings.layers)}: {settings.receiver} has {deepest} layers, name no deeper one, as in "
                f"'layers={there}'"
            )
        return [self._task(llms)]

    def _task(self, llms: Mapping[str, Source]) -> TrainingTask:
        """Plan the training. Raises FedrayError where a fuser is missing, and where it does not fit."""
        settings, registry, weights = self.settings, registry_of(self.settings), hashes(llms)
        receiver, senders = settings.receiver, {name: llms[name] for name in settings.senders}
        kind = settings.fuser.kind
        recipe = recipe_from(settings, GateRecipe, fuser=kind if FUSERS[kind].drafts else None)
        fusers = {sender: _fuser(settings, registry, sender, weights) for sender in senders}
        self.screen.passed_over(registry.problems)
        decisive = {
            **asdict(recipe),
            "fuser": {**asdict(settings.fuser), **asdict(settings.fusion)} if recipe.fuser else kind,
            "limit": settings.limit,
            "senders": settings.senders,
            "fusers": {sender: artifact.hash for sender, artifact in fusers.items()},
            **settings_of_data(settings),
        }
        name = gate_name(receiver)
        checkpoint = Checkpoint(
            settings.root.absolute() / FOLDER / f"{name}.{settings.fuser.kind}-{settings.fusion.operator}",
            what=f"the gate of {receiver} for {', '.join(settings.senders)}",
            llms=weights,
            settings=decisive,
        )
        talks = to_measure(settings.data, settings.limit) if self.workers.local else []
        memory = _needed(settings, llms[receiver], senders, fusers, talks) if self.workers.local else None
        order = Order(llms[receiver], senders, fusers, recipe, settings, checkpoint, memory)
        return TrainingTask(name, "gate", train, order, decisive)

    def register(self, order: GateOrder, outcome: Outcome, snapshot: Snapshot) -> Artifact:
        gate = GateNetwork(GateConfig.from_dict(snapshot.values["gate"]))
        gate.load_state_dict(snapshot.under("gate"))
        return Registry(self.settings.root).add_gate(gate, outcome.members[0], outcome.record)


def run(settings: GateJob) -> int:
    """Run the job; returns the exit code. Raises FedrayError."""
    return TrainGate(settle(settings), f"train {gate_name(settings.receiver)}").run()


def train(order: GateOrder, group: WorkerGroup, tell: Tell) -> Outcome:
    """Do one worker's part in the training of one gate."""
    s = order.settings
    drafts = FUSERS[s.fuser.kind].drafts
    material = for_gate(world_of(s.zoo.path), s.limit, drafts) if s.data.name == "tiny" else read_data_set(s, tell)
    talks = (*material.talks, *material.check)
    memory = order.memory or _needed(s, order.receiver, order.senders, order.fusers, talks)
    receiver = load_source(order.receiver, s.device, s.llm_dtype)
    senders = {name: load_source(source, s.device, s.llm_dtype) for name, source in order.senders.items()}
    if material.source:
        material = fitting(material, receiver, list(senders.values()), s.data.longest)
    dtype, sets = receiver.model.dtype, {"train": material.talks, "validation": material.check}
    asking = (
        Contributions(receiver, senders, order.fusers, Method(**attributes(s, "fuser", "fusion"))) if drafts else None
    )
    fusers = {} if asking else {n: load_fuser(artifact, s.device).to(dtype) for n, artifact in order.fusers.items()}
    training = GateTraining(receiver, senders, fusers, sets, order.recipe, group, order.checkpoint, s.at_once, asking)
    gate = training.run(tell)
    trust = training.mean_weights()
    steps = order.recipe.steps * len(training.trials)
    members = (describe(receiver), *map(describe, senders.values()))
    record = {
        **material.record,
        **revisions(members),
        **training.record(),
        "fusers": {slug(name): artifact.hash for name, artifact in order.fusers.items()},
    }
    values = tuple(tuple(row.values()) for row in trust.values())
    heatmap = Heatmap(values, tuple(trust), tuple(order.fusers), "Whom the gate trusts for what")
    of = (len(training.sets["train"]), steps, training.resumed_at * order.recipe.steps)
    figures = {"validation/worth": training.worth, "layer": gate.config.layer}
    figures["memory/estimated_gib"] = memory.total / GIB
    return Outcome(members, *of, figures, heatmap, record, material.data, trust=trust)


def _needed(
    s: GateJob,
    receiver: Source,
    senders: Mapping[str, Source],
    fusers: Mapping[str, Artifact],
    talks: Sequence[LabelledPrompt],
) -> Memory:
    """Estimate one worker's memory for these conversations. Raises FedrayError with the figures where there is less."""
    configs = config_of(receiver), [config_of(source) for source in senders.values()]
    maps = [FuserConfig.from_dict(read_manifest(Path(artifact.path)).config) for artifact in fusers.values()]
    dtype = getattr(torch, s.llm_dtype or "float32")
    longest = longest_of(s, talks, receiver, list(senders.values()))

    def needed(parts: int = 1) -> Memory:
        return estimate_gate(*configs, maps, BatchLoad(max(1, s.at_once // parts), longest, dtype), s.limit or 0)

    return check(needed(), s.device, needed, s.workers, lambda parts: f"at_once={max(1, s.at_once // parts)} fits")


def _fuser(settings: GateJob, registry: Registry, sender: str, weights: Mapping[str, str]) -> Artifact:
    """Find the fuser in use between a sender and the receiver. Raises FedrayError where there is none."""
    receiver, kind, operator = settings.receiver, settings.fuser.kind, settings.fusion.operator
    found = registry.fuser_in_use(sender, receiver, weights, kind, operator)
    if found is None:
        hub = "" if settings.zoo.name == "tiny" else f"zoo={settings.zoo.name} "
        raise FedrayError(
            f"a gate needs the fusers of its senders, and there is no fuser={kind} fusion={operator} for {sender} -> "
            f"{receiver}: train it with jobs/train_fuser.py {hub}sender={sender} receiver={receiver} fuser={kind} "
            f"fusion={operator}, or leave {sender} out{registry.passed_over(fuser_name(sender, receiver))}"
        )
    return found
