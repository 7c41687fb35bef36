"""suite=train: a step of training a fuser, against one whose LLMs read prompts as causal LMs do by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedray.benchmark.bench import Bench
from fedray.fusion.build import build_fuser
from fedray.llm import decoding
from fedray.llm.loading import load
from fedray.llm.model import LLM, Encoded
from fedray.training.conversations import LabelledPrompt
from fedray.training.data import Prefilled
from fedray.training.fuser_trainer import FuserLoss
from fedray.training.pair import EncodedExample, Pair
from fedray.training.recipe import FuserRecipe, fuser_config

ROWS, ANSWER = 2, 32  # conversations a step; tokens of what is learnt, at least
RECIPE = FuserRecipe(hidden=512)
_SENTENCE = "what is the color of the star? "


def measure(bench: Bench) -> None:
    """Measure the rows."""
    if not bench.wants("train.tokens_per_s"):
        return
    s = bench.settings
    sender, receiver = (
        load(name, zoo=s.zoo.name, folder=s.zoo.path, device=s.device) for name in (s.sender, s.receiver)
    )
    talks = [_talk(receiver, s.tokens)] * ROWS
    ours, usual = (kind(sender, receiver, talks, memory_bytes=0) for kind in (Pair, WithAllLogits))
    torch.manual_seed(s.seed)
    fuser = build_fuser(fuser_config(RECIPE, sender.spec, receiver.spec)).to(receiver.device, receiver.model.dtype)
    steps = {name: _step(FuserLoss(fuser.train(), pair)) for name, pair in (("ours", ours), ("usual", usual))}
    seconds = bench.seconds("a training step", steps)
    tokens = sum(len(example.own.ids) + len(example.answer) for example in ours.rows(range(ROWS)))
    fast, slow = (tokens / seconds[name] for name in ("ours", "usual"))
    bench.row("train.tokens_per_s", fast, "token/s", baseline=slow, against="logits of whole prompts")


class WithAllLogits(Pair):
    """Pair whose LLMs compute the logits of every prompt token, which nothing needs."""

    def sent(self, batch: Sequence[EncodedExample]) -> Prefilled:
        _all_logits(self.sender, [example.sent for example in batch])
        return super().sent(batch)

    def own(self, batch: Sequence[EncodedExample]) -> Prefilled:
        _all_logits(self.receiver, [example.own for example in batch])
        return super().own(batch)


@torch.no_grad()
def _all_logits(llm: LLM, encoded: Sequence[Encoded]) -> None:
    """Compute what those logits cost on top: the output matrix, over states of the right shape."""
    ids_BT, _ = decoding.pad([e.ids for e in encoded], llm.pad_id, llm.device)
    llm.model.lm_head(llm.model.get_input_embeddings()(ids_BT)).float()


def _step(module: FuserLoss) -> Callable[[], None]:
    """Make a training step: forward, backward and AdamW's update of all conversations."""
    optimizer = torch.optim.AdamW(module.fuser.parameters(), 1e-5)
    batch = module.pair.rows(range(ROWS))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_B, _ = module(batch)
        loss_B.mean().backward()
        optimizer.step()

    return step


def _talk(llm: LLM, tokens: int) -> LabelledPrompt:
    """Make a conversation whose prompt is about so many tokens to the LLM."""

    def repeat(wanted: int) -> str:
        text = _SENTENCE
        while len(llm.encode_answer(text)) < wanted:
            text += _SENTENCE
        return text

    return LabelledPrompt(repeat(tokens), repeat(ANSWER))
