"""The body of jobs/train_gate.py."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedray.fusion.gating import Gate, GateConfig
from fedray.fusion.registry import SHIPPED, Registry, gate_name, load_fuser
from fedray.llm.catalogue import EMBEDDED
from fedray.llm.loading import describe, load
from fedray.report import Data
from fedray.training.checkpoint import FOLDER, Checkpoint, Snapshot
from fedray.training.conversations import conversations
from fedray.training.crew import Crew, Tell
from fedray.training.figures import Heatmap
from fedray.training.gate_trainer import GateRecipe, GateTraining
from fedray.training.job import Job, Outcome, Task, hashes
from fedray.training.material import Material, fitting, of_data_set, said_of
from fedray.training.settings import GateJob
from fedray.training.workers import Work
from fedray.types import Artifact, FedrayError
from fedray.zoo.world import World, seed_of


@dataclass(frozen=True, slots=True)
class Order:
    """One gate to train, as every worker is told."""

    receiver: str
    fusers: Mapping[str, Artifact]  # by sender
    recipe: GateRecipe
    settings: GateJob
    zoo: Path | None
    checkpoint: Checkpoint


def run(settings: GateJob) -> int:
    """Do the job; returns the exit code. Raises FedrayError."""
    return Job(settings, "train_gate").run([_task(settings)])


def train(order: Order, crew: Crew, tell: Tell) -> Outcome:
    """One worker's part in the training of one gate."""
    s, zoo = order.settings, order.zoo
    material = _material(s, zoo, tell)
    receiver = load(order.receiver, zoo=s.zoo.name, device=s.device, dtype=s.llm_dtype, folder=zoo)
    senders = {
        name: load(name, zoo=s.zoo.name, device=s.device, dtype=s.llm_dtype, folder=zoo) for name in order.fusers
    }
    if material.source:
        material = fitting(material, (receiver, *senders.values()), s.data.longest)
    deepest = receiver.spec.layers
    if max(order.recipe.layers) > deepest:
        raise FedrayError(
            f"layers={list(order.recipe.layers)}: {receiver.name} has {deepest} layers, name no deeper one"
        )
    dtype = receiver.model.dtype
    training = GateTraining(
        receiver,
        senders,
        {name: load_fuser(artifact, s.device).to(dtype) for name, artifact in order.fusers.items()},
        {"train": material.talks, "validation": material.check},
        order.recipe,
        crew=crew,
        checkpoint=order.checkpoint,
        at_once=s.at_once,
    )
    gate = training.run(tell)
    trust = training.mean_weights()
    steps = order.recipe.steps * len(training.trials)
    record = {
        **material.record,
        "questions": len(training.sets["train"]),
        "steps": order.recipe.steps,
        "price": order.recipe.price,
        "layer": gate.config.layer,
        "fusers": {name: artifact.hash for name, artifact in order.fusers.items()},
        "validation": training.worth,
    }
    heatmap = Heatmap(
        values=tuple(tuple(row.values()) for row in trust.values()),
        rows=tuple(trust),
        columns=tuple(order.fusers),
        title="Whom the gate trusts for what",
    )
    return Outcome(
        (describe(receiver), *map(describe, senders.values())),
        len(training.sets["train"]),
        steps,
        training.resumed_at * order.recipe.steps,
        {"validation/worth": training.worth, "layer": gate.config.layer},
        heatmap,
        record,
        trust=trust,
        data=(Data(**asdict(material.source)),) if material.source else (),
    )


def _material(s: GateJob, zoo: Path | None, tell: Tell) -> Material:
    """Of the world: a question for each fact, in an order of its own; validation is never cut short."""
    if s.data.name != "tiny":
        tell("reading", 0, s.limit or 1, {})
        return of_data_set(s.data, s.limit, s.seed, lambda done, of: tell("reading", done, of, {}))
    world = World(seed_of(zoo or EMBEDDED))
    talks = conversations(world, "train")
    random.Random(world.seed).shuffle(talks)
    return Material(talks[: s.limit], conversations(world, "validation"), {"world_seed": world.seed})


def _task(settings: GateJob) -> Task:
    receiver, zoo = settings.receiver, settings.zoo.path
    name = gate_name(receiver)
    recipe = GateRecipe(
        operator=settings.fusion,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        price=settings.price,
        layers=settings.layers,
        starts=settings.starts,
        seed=settings.seed,
    )
    fusers = {sender: _fuser(settings, sender) for sender in settings.senders}
    data = {
        "fuser": settings.fuser,
        "limit": settings.limit,
        "senders": settings.senders,
        "fusers": {sender: artifact.hash for sender, artifact in fusers.items()},
        **said_of(settings, zoo),
    }
    checkpoint = Checkpoint(
        settings.root.absolute() / FOLDER / f"{name}.{settings.fuser}-{settings.fusion}",
        what=f"the gate of {receiver} for {', '.join(settings.senders)}",
        llms=hashes((receiver, *settings.senders), zoo),
        settings={**asdict(recipe), **data},
    )

    def register(outcome: Outcome, snapshot: Snapshot) -> Artifact:
        gate = Gate(GateConfig.from_dict(snapshot.values["gate"]))
        gate.load_state_dict(snapshot.under("gate"))
        return Registry(settings.root).add_gate(gate, outcome.members[0], outcome.record)

    order = Order(receiver, fusers, recipe, settings, zoo and zoo.absolute(), checkpoint)
    params = {"receiver": receiver, "zoo": settings.zoo.name, "workers": settings.workers}
    return Task(
        name, "gate", settings.senders, Work(train, order), checkpoint, register, {**params, **asdict(recipe), **data}
    )


def _fuser(settings: GateJob, sender: str) -> Artifact:
    """The fuser in use between a sender and the receiver. Raises FedrayError where there is none."""
    receiver, zoo, kind, operator = settings.receiver, settings.zoo.path, settings.fuser, settings.fusion
    registry = Registry(settings.root.absolute(), SHIPPED if zoo is None else zoo.absolute() / "registry")
    found = registry.fuser_in_use(sender, receiver, hashes((sender, receiver), zoo), kind, operator)
    if found is None:
        raise FedrayError(
            f"a gate needs the fusers of its senders, and there is no fuser={kind} fusion={operator} for {sender} -> "
            f"{receiver}: train it with jobs/train_fuser.py sender={sender} receiver={receiver} fuser={kind} "
            f"fusion={operator}, or leave {sender} out"
        )
    return found
