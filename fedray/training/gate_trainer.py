"""Training of a receiver's gate: LLMs and fusers frozen, only the gate's few weights move.

What every sender brings to every training question is measured once: the probability of the right answer with that
sender's cache, minus the probability alone. The gate then learns to open where the gain is worth its price, which is
the expected accuracy of a receiver that lets sender s in with chance w_s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.fusion import combine
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import Gate, GateConfig
from fedray.training.data import BATCH, Conversation, Prefilled, answer_loss, answers
from fedray.training.fuser_trainer import Progress, fused_context


@dataclass(frozen=True, slots=True)
class GateRecipe:
    """price: how much likelier a right answer must become for a sender to be let in."""

    operator: str = "concat"
    steps: int = 500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    price: float = 0.05
    seed: int = 0


@torch.no_grad()
def measure_gains(
    receiver: Prefilled,
    senders: Mapping[str, Prefilled],
    fusers: Mapping[str, Fuser],
    conversations: Sequence[Conversation],
    operator: str,
    on_done: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Gain (Q, S): p(answer | question, sender s's cache) - p(answer | question), p per token (geometric mean)."""
    targets = answers(receiver.llm, [c.answer for c in conversations])
    rows_of = [list(range(i, min(i + BATCH, len(targets)))) for i in range(0, len(targets), BATCH)]
    gains: list[Tensor] = []
    for done, rows in enumerate(rows_of):
        own = receiver.select(rows)

        def probability(parts: list[combine.Part], own: Prefilled = own, rows: list[int] = rows) -> Tensor:
            context = fused_context(own, parts, operator)
            loss_B, _ = answer_loss(own.llm, context, own.last_B1, [targets[i] for i in rows])
            return torch.exp(-loss_B)

        alone_B = probability([])
        helped = []
        for name, sender in senders.items():
            sent = sender.select(rows)
            spans = tuple(map(tuple, sent.spans))
            helped.append(probability([combine.Part(name, fusers[name], sent.cache, torch.ones(len(rows)), spans)]))
        gains.append(torch.stack(helped, dim=1) - alone_B[:, None])
        if on_done:
            on_done(done + 1, len(rows_of))
    return torch.cat(gains)


def train_gate(
    receiver: Prefilled,
    senders: Sequence[str],
    gains_QS: Tensor,
    recipe: GateRecipe,
    layer: int,
    on_step: Progress | None = None,
) -> Gate:
    """The gate of `receiver` over `senders`, whose gains on the questions the receiver has read are gains_QS.

    receiver.state_BTD must hold the states after `layer` layers.
    """
    state_QTD, valid_QT = receiver.state_BTD, receiver.cache.valid_BT()
    assert state_QTD is not None, "prefill the receiver with state_layer"
    torch.manual_seed(recipe.seed)
    config = GateConfig(receiver.llm.name, tuple(senders), state_QTD.shape[2], recipe.operator, layer)
    gate = Gate(config).train()
    optimizer = torch.optim.AdamW(gate.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    for step in range(recipe.steps):
        rows = torch.randint(len(state_QTD), (min(recipe.batch_size, len(state_QTD)),))
        weights_BS = gate(state_QTD[rows], valid_QT[rows])
        gain = worth(weights_BS, gains_QS[rows], recipe.price)
        optimizer.zero_grad(set_to_none=True)
        (-gain).backward()
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step + 1, recipe.steps, {"gain": float(gain.detach()), "weight": float(weights_BS.detach().mean())})
    return gate.eval()


def worth(weights_BS: Tensor, gains_BS: Tensor, price: float) -> Tensor:
    """Expected gain per question of letting sender s in with chance w_s, its price paid."""
    return (weights_BS * (gains_BS - price)).sum(1).mean()


@torch.no_grad()
def validate_gate(gate: Gate, receiver: Prefilled, gains_QS: Tensor, price: float) -> float:
    """`worth` on questions the gate was not trained on."""
    assert receiver.state_BTD is not None
    return float(worth(gate(receiver.state_BTD, receiver.cache.valid_BT()), gains_QS, price))
