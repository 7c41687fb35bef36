"""suite=train: a step of training a fuser, against one whose LLMs read prompts as causal LMs do by default.

On a GPU also a step as C2C was trained, its memory against what is foretold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from fedray.benchmark.bench import Bench
from fedray.benchmark.settings import BenchmarkSettings
from fedray.fusion.build import build_fuser
from fedray.llm import decoding
from fedray.llm.loading import load_source
from fedray.llm.model import LLM, Encoded
from fedray.llm.source import Source
from fedray.registry.untrained import WIDTH
from fedray.training import memory
from fedray.training.conversations import LabelledPrompt
from fedray.training.data import Prefilled
from fedray.training.fuser_trainer import FuserLoss, FuserTraining
from fedray.training.pair import EncodedExample, Pair
from fedray.training.recipe import FuserRecipe, fuser_config, is_half

ROWS, ANSWER = 2, 32  # conversations a step; tokens of what is learnt, at least
RECIPE = FuserRecipe(hidden=512)
STEP, PEAK = "train.published_step", "train.published_gib"
PUBLISHED = FuserRecipe(
    "c2c", "mix", hidden=WIDTH, steps=1000, batch_size=16, learning_rate=1e-4, layers="last_aligned"
)
LONGEST = 512
_TEMPLATE = 16  # tokens around a prompt
_SENTENCE = "what is the color of the star? "


def measure(bench: Bench) -> None:
    """Its rows."""
    if bench.wants("train.tokens_per_s"):
        _tokens_per_s(bench)
    if bench.settings.device.startswith("cuda") and bench.wants(STEP, PEAK):
        _published(bench)


def _llms(s: BenchmarkSettings) -> Iterator[LLM]:
    """Load the sender and the receiver."""
    return (load_source(Source(name, s.zoo.name, s.zoo.path), s.device) for name in (s.sender, s.receiver))


def _published(bench: Bench, recipe: FuserRecipe = PUBLISHED, longest: int = LONGEST) -> None:
    """A step of the published size, prompt and answer together of so many tokens."""
    sender, receiver = _llms(bench.settings)
    talks = [_talk(receiver, longest - ANSWER - _TEMPLATE)] * recipe.batch_size
    pair = Pair(sender, receiver, talks, memory_bytes=0)
    (example,) = pair.rows((0,))
    tokens = len(example.own.ids) + len(example.answer)
    half = is_half(recipe, receiver.device.type)
    load_of = memory.BatchLoad(recipe.batch_size, tokens, receiver.model.dtype, half)
    foretold = memory.estimate(sender.model.config, receiver.model.config, recipe, load_of)
    training = FuserTraining(pair, recipe)
    batch = pair.rows(range(recipe.batch_size))
    module = FuserLoss(training.fuser, pair)
    torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds("a published training step", {"step": lambda: training._take_step(module, [batch])}, warm=2)
    bench.row(STEP, seconds["step"], "s")
    bench.row(f"{STEP}.tokens_per_s", recipe.batch_size * tokens / seconds["step"], "token/s")
    taken = torch.cuda.max_memory_allocated()
    bench.row(PEAK, taken / 2**30, "GiB", baseline=foretold.total / 2**30, against="foretold", at_most=1.0)


def _tokens_per_s(bench: Bench) -> None:
    s = bench.settings
    sender, receiver = _llms(s)
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
