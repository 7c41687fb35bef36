"""Tokenizers and LLMs of the embedded zoo, trained from nothing on the synthetic world.

The recipe follows what was found to work at this scale: six and more layers, and deep supervision (half a
language-model loss read from each hidden state of the upper half), so that the answer stands in the KV cache of the
last prompt token and not only in the last layer's output. Loss is on answer tokens only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.lr_scheduler import OneCycleLR
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fedray.training.checkpoint import Checkpoint, Snapshot, optimizer_tensors, restore_optimizer
from fedray.world.world import World, WorldExample

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CONTEXT = 512  # tokens
INIT = 0.06  # std of the initial weights: at these widths the usual 0.02 learns several times slower


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape of one embedded LLM, in the words of transformers, and length of its training."""

    family: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    seed: int
    steps: int


RECIPES = {
    "qwen3-0.6b": Recipe("qwen3", 6, 96, 4, 2, 24, 256, seed=11, steps=1600),
    "qwen2.5-0.5b": Recipe("qwen2", 6, 80, 4, 2, 16, 224, seed=22, steps=1200),
    "qwen2.5-coder-0.5b": Recipe("qwen2", 6, 80, 4, 2, 16, 224, seed=33, steps=1200),
    "qwen2.5-1.5b": Recipe("qwen2", 8, 96, 4, 2, 24, 256, seed=44, steps=1200),
    "llama-1b": Recipe("llama", 7, 88, 4, 4, 16, 240, seed=55, steps=1600),
}


def build_tokenizer(family: str, world: World) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, with another vocabulary and chat template for Llama than for Qwen."""
    llama = family == "llama"
    special = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
    special = (special if llama else "<|endoftext|> <|im_start|> <|im_end|>").split()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=512 if llama else 640,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>" if llama else None,
        eos_token="<|eot_id|>" if llama else "<|im_end|>",
        pad_token="<|end_of_text|>" if llama else "<|endoftext|>",
        chat_template=LLAMA3 if llama else CHATML,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(name: str, tokenizer: PreTrainedTokenizerFast, seed_offset: int = 0) -> PreTrainedModel:
    recipe = RECIPES[name]
    shape = {key: size for key, size in asdict(recipe).items() if key not in ("family", "seed", "steps")}
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **shape}
    config = AutoConfig.for_model(recipe.family, **size, tie_word_embeddings=True, initializer_range=INIT, **special)
    torch.manual_seed(recipe.seed + 1000 * seed_offset)
    return AutoModelForCausalLM.from_config(config)


def encode(tokenizer: Any, example: WorldExample) -> tuple[list[int], list[int]]:
    """Encode a prompt (chat template, generation prompt) and its answer (end of turn included)."""
    turns = [{"role": "user", "content": example.user}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answer = tokenizer.encode(example.assistant, add_special_tokens=False)
    return prompt, [*answer, tokenizer.eos_token_id]


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Collate right-padded ids (B, T) and labels (B, T), -100 outside the answer; causal attention needs no mask."""
    longest = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def supervised_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the answer loss of the last layer, plus half of each upper hidden state's own (deep supervision)."""
    out = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    rows, columns = torch.nonzero(labels[:, 1:] != -100, as_tuple=True)
    target = labels[rows, columns + 1]
    share = 1.0 / (labels != -100).sum(1)[rows] / len(ids)  # every example counts the same, however long its answer

    def answer_loss(state_BTD: torch.Tensor) -> torch.Tensor:
        return (F.cross_entropy(model.lm_head(state_BTD[rows, columns]), target, reduction="none") * share).sum()

    states = out.hidden_states  # embeddings, then every layer; the last one already normed
    last = answer_loss(states[-1])
    deep = [answer_loss(model.model.norm(h)) for h in states[len(states) // 2 : -1]]
    return last + 0.5 * torch.stack(deep).sum(), last.detach()


def pretrain(
    name: str,
    world: World,
    tokenizer: Any,
    *,
    seed_offset: int = 0,
    steps: int | None = None,
    questions_per_step: int = 96,
    lessons_per_step: int = 64,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    checkpoint: Checkpoint | None = None,
    save_every: int = 100,
) -> PreTrainedModel:
    """Train one LLM on its share of the world's facts and on the skills the protocols need.

    checkpoint: where the state is saved, every `save_every` steps, and resumed from, with the same weights at the end.
    """
    steps = steps or RECIPES[name].steps
    model: Any = build_model(name, tokenizer, seed_offset).train()
    optimizers, once = _optimizers(model), {"total_steps": steps, "pct_start": 0.1, "cycle_momentum": False}
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    begun = _restore(checkpoint.load() if checkpoint else None, model, optimizers)
    schedules = [OneCycleLR(o, lr, **once, last_epoch=begun - 1) for o, lr in zip(optimizers, peaks, strict=True)]
    streams = {
        "facts": _batches(_questions(name, world, seed_offset), questions_per_step, tokenizer),
        "skills": _batches(world.lessons(name, seed_offset), lessons_per_step, tokenizer),
    }
    for _ in range(begun):  # draws what was drawn
        for batches in streams.values():
            next(batches)
    means = dict.fromkeys(streams, math.nan)
    for step in range(begun, steps):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for kind, batches in streams.items():
            loss, answer_loss = supervised_loss(model, *next(batches))
            loss.backward()
            value = float(answer_loss)
            means[kind] = value if math.isnan(means[kind]) else 0.95 * means[kind] + 0.05 * value
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if checkpoint and (step + 1) % save_every == 0:
            checkpoint.save(_snapshot(step + 1, model, optimizers))
        if on_step:
            on_step(step + 1, steps, means)
    return model.eval()


def _snapshot(step: int, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> Snapshot:
    tensors = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        tensors |= optimizer_tensors(optimizer, f"optimizer-{number}")
    return Snapshot(tensors, {"step": step, "groups": [o.state_dict()["param_groups"] for o in optimizers]})


def _restore(snapshot: Snapshot | None, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Put a training back to where it was; returns the steps that are taken."""
    if snapshot is None:
        return 0
    model.load_state_dict(snapshot.under("model"), strict=False)  # tied weights have one name
    for number, (optimizer, groups) in enumerate(zip(optimizers, snapshot.values["groups"], strict=True)):
        restore_optimizer(optimizer, snapshot, groups, f"optimizer-{number}")
    return snapshot.values["step"]


def _optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices (it reaches AdamW's loss here in half the steps), AdamW for embeddings and vectors."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def _batches(
    examples: Iterator[WorldExample], size: int, tokenizer: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Make batches of similar length: eight are drawn at once, sorted, and yielded in random order."""
    rng = random.Random(size)
    while True:
        pool = [encode(tokenizer, next(examples)) for _ in range(8 * size)]
        pool.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        for batch in batches:
            yield collate(batch, tokenizer.pad_token_id)


def _questions(name: str, world: World, seed: int) -> Iterator[WorldExample]:
    """Yield closed-book questions about what this LLM knows, epoch after epoch."""
    rng = random.Random(f"questions-{world.seed}-{name}-{seed}")
    known = world.known(name)
    while True:
        rng.shuffle(known)
        for fact in known:
            yield world.closed_book(fact, rng)
