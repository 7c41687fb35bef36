"""Training of one fuser: LLMs frozen, loss on answer tokens, the senders' and the receiver's prefill done once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedray.fusion import combine
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import Fuser, FuserConfig, MLPFuser, build_fuser
from fedray.llm.decoding import Context
from fedray.llm.model import LLM
from fedray.training.data import Conversation, Prefilled, answer_loss, answers, prefill

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class FuserRecipe:
    """How a fuser is trained."""

    kind: str = "mlp"
    operator: str = "concat"
    hidden: int = 128
    steps: int = 900
    batch_size: int = 96
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    seed: int = 0


class Pair:
    """A sender and a receiver that have both read the same conversations."""

    def __init__(self, sender: Prefilled, receiver: Prefilled, conversations: Sequence[Conversation]) -> None:
        self.sender, self.receiver = sender, receiver
        self.answers = answers(receiver.llm, [c.answer for c in conversations])
        self.groups = [c.group for c in conversations]

    @classmethod
    def read(cls, sender: LLM, receiver: LLM, conversations: Sequence[Conversation]) -> Pair:
        prompts = [c.prompt for c in conversations]
        return cls(prefill(sender, prompts), prefill(receiver, prompts), conversations)

    def __len__(self) -> int:
        return len(self.answers)

    def context(self, fuser: Fuser, rows: list[int]) -> tuple[Context, Prefilled]:
        """What the receiver sees of these rows through the fuser, fully open."""
        sent, own = self.sender.select(rows), self.receiver.select(rows)
        part = combine.Part(sent.llm.name, fuser, sent.cache, torch.ones(len(rows)), tuple(map(tuple, sent.spans)))
        return fused_context(own, [part], fuser.config.operator), own


def fused_context(own: Prefilled, parts: list[combine.Part], operator: str) -> Context:
    if operator == "mix":
        return combine.concat(combine.mix(own.own(), own.spans, parts), [])
    return combine.concat(own.own(), parts)


def train_fuser(pair: Pair, recipe: FuserRecipe, on_step: Progress | None = None) -> Fuser:
    """A fuser for `pair`, trained from a seeded initialization."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    fuser = build_fuser(
        FuserConfig(
            recipe.kind,
            recipe.operator,
            pair.sender.llm.spec,
            pair.receiver.llm.spec,
            hidden=recipe.hidden,
            intermediate=recipe.hidden,
        )
    ).train()
    if isinstance(fuser, MLPFuser):
        sample = pair.sender.cache.select(rng.sample(range(len(pair)), min(len(pair), 512)))
        fuser.standardize(sample.keys, sample.values)
    optimizer = torch.optim.AdamW(fuser.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    mean = {"loss": 0.0, "accuracy": 0.0}
    for step in range(recipe.steps):
        rows = draw(len(pair), recipe.batch_size, rng)
        context, own = pair.context(fuser, rows)
        loss_B, right_B = answer_loss(own.llm, context, own.last_B1, [pair.answers[i] for i in rows])
        optimizer.zero_grad(set_to_none=True)
        loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(fuser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if isinstance(fuser, C2CFuser):
            fuser.anneal((step + 1) / recipe.steps)
        share = 0.05 if step else 1.0
        mean["loss"] += share * (float(loss_B.detach().mean()) - mean["loss"])
        mean["accuracy"] += share * (float(right_B.float().mean()) - mean["accuracy"])
        if on_step:
            on_step(step + 1, recipe.steps, mean)
    return fuser.eval()


def draw(count: int, size: int, rng: random.Random) -> list[int]:
    """A batch of distinct rows out of `count`."""
    chosen: dict[int, None] = {}
    while len(chosen) < min(size, count):
        chosen[rng.randrange(count)] = None
    return list(chosen)


@torch.no_grad()
def accuracy_by_group(pair: Pair, fuser: Fuser | None, batch_size: int = 256) -> dict[str, float]:
    """Share of answers greedy decoding would give, per group; without a fuser the receiver's own."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(pair), batch_size):
        rows = list(range(start, min(start + batch_size, len(pair))))
        if fuser is None:
            own = pair.receiver.select(rows)
            context = combine.concat(own.own(), [])
        else:
            context, own = pair.context(fuser, rows)
        _, right_B = answer_loss(own.llm, context, own.last_B1, [pair.answers[i] for i in rows])
        for row, ok in zip(rows, right_B.tolist(), strict=True):
            right.setdefault(pair.groups[row], []).append(ok)
    return {group: sum(values) / len(values) for group, values in sorted(right.items())}
