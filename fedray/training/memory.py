"""Estimate of a training's peak memory, before any LLM is loaded.

The training's own code runs once on tensors without storage (torch's meta device), and what it would keep for the
backward pass is added up; so every kind of fuser and LLM is counted as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from fedray.fusion import combine
from fedray.fusion.build import build_fuser
from fedray.fusion.draft import FIRST
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.llm.cache import KVCache, spec_of
from fedray.llm.decoding import ATTENTION
from fedray.llm.memory import count_parameters, numbers, work_bytes
from fedray.llm.model import LLM
from fedray.training.data import BATCH, answer_loss
from fedray.training.recipe import FuserRecipe, fuser_config
from fedray.training.text_pair import MOST_SLOTS
from fedray.types import FedrayError, KVSpec

GIB = 1 << 30
_SHORT = 64  # tokens of the shorter side, where a conversation is nearly all prompt or nearly all answer
_SURROUNDINGS = GIB  # a process with torch in it; on a GPU its context


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of one worker in bytes. llms: frozen weights; fuser: weights, gradients, optimizer; caches: of
    the conversations read at once; activations: kept for the backward pass; passing: the largest temporary.
    """

    llms: int
    fuser: int
    caches: int
    activations: int
    passing: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) + _SURROUNDINGS

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in asdict(self).items())
        return f"about {self.total / GIB:.1f} GiB per worker ({listed})"


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """Batch of one worker. rows: conversations read at once; longest: tokens of each, prompt and answer together;
    dtype: of the LLMs; half: whether the fuser computes in 16 bit; workers: that share a step."""

    rows: int
    longest: int
    dtype: torch.dtype = torch.float32
    half: bool = False
    workers: int = 1


def estimate(sender: PretrainedConfig, receiver: PretrainedConfig, recipe: FuserRecipe, load: BatchLoad) -> Memory:
    """Estimate a fuser's training: the maximum of a conversation nearly all prompt, and one nearly all answer."""
    short = min(_SHORT, load.longest // 2)
    splits = ((load.longest - short, short), (short, load.longest - short))
    return max((_estimate(sender, receiver, recipe, load, *split) for split in splits), key=lambda found: found.total)


def estimate_texts(
    sender: PretrainedConfig, receiver: PretrainedConfig, recipe: FuserRecipe, load: BatchLoad, tokens: int
) -> Memory:
    """Estimate the training of a translator: both LLMs, and in float32 what it reads and learns of so many tokens."""
    specs, size = (spec_of(sender), spec_of(receiver)), load.dtype.itemsize
    reading = max(
        work_bytes(config, BATCH, load.longest, load.longest, str(load.dtype).removeprefix("torch."))
        for config in (sender, receiver)
    )
    config = replace(fuser_config(recipe, *specs), slots=MOST_SLOTS)
    fuser = _on_meta(lambda: build_fuser(config))
    kept = 2 * 4 * tokens * (specs[0].values_per_token() + MOST_SLOTS * specs[1].values_per_token())
    if recipe.layers != FIRST:  # kept in 16 bit; the moments of what is read, and the weights before they lose rank
        inputs, outputs = fuser.get_buffer("shift").numel(), fuser.get_buffer("spread").numel()
        kept = tokens * (10 * inputs + 4 * outputs // MOST_SLOTS) + 4 * inputs * (3 * inputs + 3 * outputs)
    return Memory(
        llms=(count_parameters(sender) + count_parameters(receiver)) * size,
        fuser=16 * numbers(fuser),
        caches=kept,
        activations=0,
        passing=reading,
    )


def estimate_gate(
    receiver: PretrainedConfig,
    senders: Sequence[PretrainedConfig],
    fusers: Sequence[FuserConfig],
    load: BatchLoad,
    kept: int,
) -> Memory:
    """Estimate a worker that measures senders for a gate: all LLMs and fusers, the caches of what it reads at once.

    kept: conversations whose states the gate learns from. An upper bound: all count as long as the longest.
    """
    configs, size, rows, longest = (receiver, *senders), load.dtype.itemsize, load.rows, load.longest
    dtype, measured = str(load.dtype).removeprefix("torch."), min(rows, BATCH)
    answer = max(min(_SHORT, longest // 2), longest - _SHORT)
    sizes = [numbers(_on_meta(lambda config=config: build_fuser(config))) for config in fusers]
    standing = [longest * spec_of(config).values_per_token() * size for config in configs]
    reading = max(work_bytes(config, measured, longest, longest, dtype) for config in configs)
    scoring = measured * (answer * receiver.vocab_size * (4 + size) + 3 * standing[0])  # mapped, before its own
    return Memory(
        llms=sum(map(count_parameters, configs)) * size,
        fuser=sum(sizes) * size + max(sizes, default=0) * 4,  # one of them as it is read
        caches=rows * (sum(standing) + max(standing)) + kept * longest * receiver.hidden_size * size,
        activations=0,
        passing=max(reading, scoring),
    )


def check(
    memory: Memory,
    device: str,
    smaller: Callable[[int], Memory | None],
    workers: int = 1,
    remedy: Callable[[int], str] = lambda parts: f"{parts} times the accumulation fits",
) -> Memory:
    """Check that a training fits, and return its estimate.

    smaller: the estimate when a worker reads its share in so many times more parts, None where it cannot; remedy: the
    advice where that fits. Raises FedrayError with the figures.
    """
    on_gpu = device == "cuda"
    free = available(device) // (1 if on_gpu else workers)
    room = free if on_gpu else free + _SURROUNDINGS  # what surrounds a process on the CPU is there already
    if memory.total <= room:
        return memory
    more = next((k for k in range(2, 1025) if (less := smaller(k)) is not None and less.total <= room), None)
    advice = remedy(more) if more else "choose a smaller hidden or data.longest"
    where = "the GPU" if on_gpu else "this machine"
    raise FedrayError(f"training needs {memory}, and {where} has {free / GIB:.1f} GiB free for it: {advice}")


def available(device: str) -> int:
    """Measure free bytes of this process's first GPU, or of the machine."""
    return int(torch.cuda.mem_get_info(0)[0] if device == "cuda" else psutil.virtual_memory().available)


def _estimate(
    sender: PretrainedConfig, receiver: PretrainedConfig, recipe: FuserRecipe, load: BatchLoad, prompt: int, answer: int
) -> Memory:
    reader, llm = _model(sender, load.dtype), _model(receiver, load.dtype)
    fuser = _on_meta(lambda: build_fuser(fuser_config(recipe, spec_of(sender), spec_of(receiver)))).train()
    parameters = numbers(fuser)
    fuser = fuser.to(torch.bfloat16) if load.half else fuser
    size, rows = load.dtype.itemsize, load.rows
    per_value = 16 + 2 * load.half + 4 * bool(recipe.patience) + 4 * (load.workers > 1)  # the rest: copies of it
    logits = rows * (answer + 1) * receiver.vocab_size
    widest = max(max(config.hidden_size, config.intermediate_size) for config in (sender, receiver))
    reading = rows * prompt * (prompt * (2 + size) + 4 * widest * size)
    return Memory(
        llms=(numbers(reader) + numbers(llm)) * size,
        fuser=parameters * per_value,
        caches=2 * rows * prompt * size * (spec_of(sender).values_per_token() + spec_of(receiver).values_per_token()),
        activations=_kept(fuser, llm, spec_of(sender), spec_of(receiver), load, prompt, answer),
        passing=max(logits * (4 + size), reading, 4 * parameters),  # the loss's gradient; a prompt read; a step taken
    )


def _kept(
    fuser: Fuser, llm: nn.Module, sender: KVSpec, receiver: KVSpec, load: BatchLoad, prompt: int, answer: int
) -> int:
    """Count the bytes that a forward pass keeps, without parameters."""
    weights = {p.untyped_storage()._cdata for module in (fuser, llm) for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.device("meta"):
        own, sent = _cache(receiver, load, prompt), _cache(sender, load, prompt)
        part = combine.Part("sender", fuser, sent, torch.ones(load.rows), ((),) * load.rows)
        last_B1 = torch.zeros(load.rows, 1, dtype=torch.long)
    reader = cast(LLM, SimpleNamespace(model=llm, pad_id=0))
    with saved_tensors_hooks(keep, lambda tensor: tensor), _Attending():
        context = combine.fuse(fuser.config.operator, own, [], [part], model=llm)
        loss_B, _ = answer_loss(reader, context, last_B1, [[0] * answer] * load.rows)
        assert loss_B.requires_grad, "a fuser is trained through the receiver"
    storages = {key: t.untyped_storage() for key, t in kept.items() if key not in weights and t.device.type == "meta"}
    return sum(storage.nbytes() for storage in storages.values())


class _Attention(torch.autograd.Function):
    """Stand-in for a fused attention, which keeps its inputs and its output, no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, *((mask,) if mask is not None else ()))
        return out


class _Attending(TorchFunctionMode):
    """Mode that replaces the attention torch would choose on the meta device, which keeps all scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3], kwargs.get("attn_mask"))
        return func(*args, **kwargs)


def _model(config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    model = _on_meta(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION))
    return model.requires_grad_(False).eval()


def _on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def _cache(spec: KVSpec, load: BatchLoad, tokens: int) -> KVCache:
    shape = (load.rows, spec.kv_heads, tokens, spec.head_dim)
    keys, values = (tuple(torch.empty(shape).to(load.dtype) for _ in range(spec.layers)) for _ in range(2))
    positions = torch.zeros(load.rows, tokens, dtype=torch.long)
    return KVCache(spec, keys, values, torch.full((load.rows,), tokens), positions)
