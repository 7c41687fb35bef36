"""Training of a receiver's gate: LLMs and fusers frozen, answer loss plus a price on every unit of traffic."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedray.fusion import combine
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import Gate, GateConfig
from fedray.training.data import Conversation, Prefilled, answer_loss, answers
from fedray.training.fuser_trainer import Progress, fused_context


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """price: loss per unit of weight and question, so that silence pays where a sender brings nothing."""

    operator: str = "concat"
    steps: int = 300
    batch_size: int = 96
    learning_rate: float = 3e-3
    price: float = 0.05
    presence: float = 0.6  # chance that a sender is present in a training question: any subset must work
    seed: int = 0


def train_gate(
    receiver: Prefilled,
    senders: Mapping[str, Prefilled],
    fusers: Mapping[str, Fuser],
    conversations: Sequence[Conversation],
    recipe: GateRecipe,
    on_step: Progress | None = None,
) -> Gate:
    """A gate of `receiver` over all `senders`; all have read the same conversations."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    names = tuple(senders)
    gate = Gate(GateConfig(receiver.llm.name, names, receiver.state_BD.shape[1], recipe.operator)).train()
    optimizer = torch.optim.AdamW(gate.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    targets = answers(receiver.llm, [c.answer for c in conversations])
    mean = {"loss": 0.0, "weight": 0.0}
    for step in range(recipe.steps):
        rows = rng.sample(range(len(targets)), min(recipe.batch_size, len(targets)))
        own = receiver.select(rows)
        present = (torch.rand(len(rows), len(names)) < recipe.presence).float()
        weights_BS = gate(own.state_BD) * present
        parts = [
            combine.Part(name, fusers[name], sent.cache, weights_BS[:, i], tuple(map(tuple, sent.spans)))
            for i, name in enumerate(names)
            for sent in [senders[name].select(rows)]
        ]
        context = fused_context(own, parts, recipe.operator)
        loss_B, _ = answer_loss(own.llm, context, own.last_B1, [targets[i] for i in rows])
        loss = loss_B.mean() + recipe.price * weights_BS.sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        share = 0.05 if step else 1.0
        mean["loss"] += share * (float(loss_B.detach().mean()) - mean["loss"])
        mean["weight"] += share * (float(weights_BS.mean()) - mean["weight"])
        if on_step:
            on_step(step + 1, recipe.steps, mean)
    return gate.eval()
