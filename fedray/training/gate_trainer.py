"""Training of a receiver's gate: LLMs and fusers frozen, only the gate's few weights move.

What every sender brings to every training question is measured once: the probability of the right answer with that
sender's cache, minus the probability alone. The gate then learns to open where the gain is worth its price, which is
the expected accuracy of a receiver that lets sender s in with chance w_s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedray.fusion import combine
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.llm.catalogue import slug
from fedray.llm.chat import encode_turns
from fedray.llm.model import LLM, Encoded
from fedray.schema import attributes
from fedray.training.checkpoint import Checkpoint, Snapshot
from fedray.training.contributions import Contributions
from fedray.training.conversations import LabelledPrompt, Role
from fedray.training.data import BATCH, Prefilled, answer_loss, answers, read, states
from fedray.training.worker_group import Progress, Tell, WorkerGroup


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """Hyperparameters of a gate's training.

    price: gain in the probability of a right answer from which a sender is worth its weight. layers, starts: the states
    the gate may read, and how many restarts each has; the best on validation questions is kept.
    """

    operator: str = "concat"
    steps: int = 500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    price: float = 0.05
    layers: tuple[int, ...] = (0, 1, 3)
    starts: int = 3
    seed: int = 0
    fuser: str | None = None  # the kind it is for; None: any that takes the senders' prompts


class GateTraining:
    """Resumable training of a receiver's gate over its senders, from measured gains to the best of several starts.

    sets: questions to train on ("train") and to choose by ("validation"). checkpoint: where what was measured and
    the best gate so far are saved, and resumed from. at_once: questions read at a time. Raises FedrayError where the
    checkpoint is of another training. contributions: measures in place of the fusers here, where senders do more than
    read a prompt.
    """

    def __init__(
        self,
        receiver: LLM,
        senders: Mapping[str, LLM],
        fusers: Mapping[str, Fuser],
        sets: Mapping[str, Sequence[LabelledPrompt]],
        recipe: GateRecipe,
        group: WorkerGroup | None = None,
        checkpoint: Checkpoint | None = None,
        at_once: int = BATCH,
        contributions: Contributions | None = None,
    ) -> None:
        self._at_once, self._contributions = at_once, contributions
        self.receiver, self.senders, self.fusers, self.sets, self.recipe = receiver, senders, fusers, sets, recipe
        self.group, self._checkpoint = group or WorkerGroup(), checkpoint
        self.gate: GateNetwork | None = None
        self.worth = -1.0  # of the best gate, on validation questions
        self._tried = 0
        self._gains: dict[str, Tensor] = {}
        snapshot = checkpoint.load() if checkpoint else None
        if snapshot:
            self._restore(snapshot)
        self.resumed_at = self._tried

    @property
    def trials(self) -> list[tuple[int, int]]:
        """Combinations of layer and start."""
        return [(layer, start) for layer in self.recipe.layers for start in range(self.recipe.starts)]

    def run(self, tell: Tell = lambda phase, step, of, figures: None) -> GateNetwork:
        """Measure, try every start at every layer, and return the best gate."""
        for split, talks in self.sets.items():
            if split not in self._gains:
                self._gains[split] = self._measure(talks, partial(tell, f"measuring {split}"))
                self._save()
        recipe, trials = self.recipe, self.trials
        seen: dict[str, Prefilled] = {}
        for number, (layer, start) in enumerate(trials):
            if number < self._tried:
                continue
            if start == 0 or not seen:
                seen = {split: self._read(talks, layer) for split, talks in self.sets.items()}

            def on_step(step: int, of: int, figures: Mapping[str, float], before: int = number * recipe.steps) -> None:
                tell("training", before + step, of * len(trials), figures)

            seeded = replace(recipe, seed=recipe.seed + start)
            gate = train_gate(seen["train"], tuple(self.senders), self._gains["train"], seeded, layer, on_step)
            value = validate_gate(gate, seen["validation"], self._gains["validation"], recipe.price)
            if value > self.worth or self.gate is None:
                self.worth, self.gate = value, gate
            self._tried = number + 1
            self._save()
        assert self.gate is not None, "a recipe tries at least one layer"
        return self.gate

    def mean_weights(self) -> dict[str, dict[str, float]]:
        """Map groups of validation questions to each sender's mean weight by the best gate."""
        assert self.gate is not None
        weights_QS = weigh(self.gate, self._read(self.sets["validation"], self.gate.config.layer))
        groups = [talk.group for talk in self.sets["validation"]]
        rows_of = {group: torch.tensor([g == group for g in groups]) for group in sorted(set(groups))}
        means = {group: weights_QS[rows].mean(0).tolist() for group, rows in rows_of.items()}
        return {group: dict(zip(self.senders, mean, strict=True)) for group, mean in means.items()}

    def record(self) -> dict[str, Any]:
        """Describe the training for a manifest."""
        assert self.gate is not None
        recipe, layer = self.recipe, self.gate.config.layer
        own = {"questions": len(self.sets["train"]), "layer": layer, "validation": self.worth}
        return {**own, "steps": recipe.steps, "price": recipe.price}

    def _read(self, talks: Sequence[LabelledPrompt], layer: int) -> Prefilled:
        return states(self.receiver, _encoded(self.receiver, talks, "receiver"), layer, self._at_once)

    def _measure(self, talks: Sequence[LabelledPrompt], on_done: Progress) -> Tensor:
        """Measure this worker's share of gains; only the caches of questions read at a time are in memory."""
        gains_QS = torch.zeros(len(talks), len(self.senders))
        starts = range(0, len(talks), self._at_once)
        for done, start in enumerate(starts[self.group.rank :: self.group.size], 1):
            batch = talks[start : start + self._at_once]
            gains_QS[start : start + len(batch)] = self._gains_of(batch)
            on_done(min(done * self.group.size, len(starts)), len(starts), {})
        return self.group.all_reduce(gains_QS)

    def _gains_of(self, batch: Sequence[LabelledPrompt]) -> Tensor:
        if self._contributions is not None:
            return self._contributions.measure(batch)
        own = read(self.receiver, _encoded(self.receiver, batch, "receiver"))
        sent = {name: read(llm, _encoded(llm, batch, "sender")) for name, llm in self.senders.items()}
        return measure_gains(own, sent, self.fusers, batch, self.recipe.operator)

    # -- what a checkpoint holds --------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._checkpoint is None or self.group.rank:
            return
        tensors = {f"gains.{split}": gains for split, gains in self._gains.items()}
        values: dict[str, Any] = {"tried": self._tried, "worth": self.worth, "gate": None}
        if self.gate is not None:
            tensors |= {f"gate.{name}": tensor for name, tensor in self.gate.state_dict().items()}
            values["gate"] = self.gate.config.to_dict()
        self._checkpoint.save(Snapshot(tensors, values))

    def _restore(self, snapshot: Snapshot) -> None:
        self._gains = snapshot.under("gains")
        self._tried, self.worth = snapshot.values["tried"], snapshot.values["worth"]
        if snapshot.values["gate"]:
            self.gate = GateNetwork(GateConfig.from_dict(snapshot.values["gate"])).to(self.receiver.device).eval()
            self.gate.load_state_dict(snapshot.under("gate"))


def _encoded(llm: LLM, talks: Sequence[LabelledPrompt], role: Role) -> list[Encoded]:
    return [encode_turns(llm, talk.turns(role)) for talk in talks]


@torch.no_grad()
def measure_gains(
    receiver: Prefilled,
    senders: Mapping[str, Prefilled],
    fusers: Mapping[str, Fuser],
    conversations: Sequence[LabelledPrompt],
    operator: str,
    group: WorkerGroup | None = None,
) -> Tensor:
    """Measure the gain (Q, S): p(answer | question, sender s's cache) - p(answer | question).

    p is per token (geometric mean). Every worker measures a share of the questions.
    """
    group = group or WorkerGroup()
    targets = answers(receiver.llm, [c.answer for c in conversations])
    rows_of = [list(range(i, min(i + BATCH, len(targets)))) for i in range(0, len(targets), BATCH)]
    gains_QS = torch.zeros(len(targets), len(senders))
    for rows in rows_of[group.rank :: group.size]:
        own = receiver.select(rows)

        def probability(parts: list[combine.Part], own: Prefilled = own, rows: list[int] = rows) -> Tensor:
            context = combine.fuse(operator, own.own(), own.spans, parts, "parallel", None, own.llm.model)
            loss_B, _ = answer_loss(own.llm, context, own.last_B1, [targets[i] for i in rows])
            return torch.exp(-loss_B).cpu()

        alone_B = probability([])
        helped = [probability([sender.select(rows).part(fusers[name])]) for name, sender in senders.items()]
        gains_QS[rows] = torch.stack(helped, dim=1) - alone_B[:, None]
    return group.all_reduce(gains_QS)


def train_gate(
    receiver: Prefilled,
    senders: Sequence[str],
    gains_QS: Tensor,
    recipe: GateRecipe,
    layer: int,
    on_step: Progress = lambda step, of, figures: None,
) -> GateNetwork:
    """Train the gate of `receiver` over `senders`, whose gains on the questions the receiver has read are gains_QS.

    receiver.state_BTD must hold the states after `layer` layers.
    """
    state_QTD, valid_QT = receiver.state_BTD, receiver.cache.valid_BT()
    assert state_QTD is not None, "prefill the receiver with state_layer"
    torch.manual_seed(recipe.seed)
    names = slug(receiver.llm.name), tuple(map(slug, senders))
    config = GateConfig(*names, state_QTD.shape[2], layer=layer, **attributes(recipe, "operator", "fuser"))
    gate = GateNetwork(config).to(state_QTD.device).train()
    optimizer = torch.optim.AdamW(gate.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        rows = torch.randint(len(state_QTD), (min(recipe.batch_size, len(state_QTD)),))
        weights_BS = gate(state_QTD[rows].float(), valid_QT[rows])
        gain = worth(weights_BS, gains_QS[rows].to(weights_BS), recipe.price)
        optimizer.zero_grad(set_to_none=True)
        (-gain).backward()
        optimizer.step()
        schedule.step()
        means = {f"weight/{s}": w for s, w in zip(senders, weights_BS.detach().mean(0).tolist(), strict=True)}
        on_step(step + 1, recipe.steps, {"gain": float(gain.detach()), **means})
    return gate.eval()


def worth(weights_BS: Tensor, gains_BS: Tensor, price: float) -> Tensor:
    """Compute the expected gain per question of letting sender s in with probability w_s, less its price."""
    return (weights_BS * (gains_BS - price)).sum(1).mean()


@torch.no_grad()
def weigh(gate: GateNetwork, receiver: Prefilled) -> Tensor:
    """Compute the weights (Q, S) of all questions the receiver has read."""
    assert receiver.state_BTD is not None
    return gate(receiver.state_BTD.float(), receiver.cache.valid_BT()).cpu()


def validate_gate(gate: GateNetwork, receiver: Prefilled, gains_QS: Tensor, price: float) -> float:
    """Compute `worth` on questions the gate was not trained on."""
    return float(worth(weigh(gate, receiver), gains_QS, price))
