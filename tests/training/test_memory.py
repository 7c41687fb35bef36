"""What training takes in memory, counted before anything is loaded, beside what it really keeps."""

from __future__ import annotations

import pytest
import torch
from tiny import random_llm
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedray.fusion import combine
from fedray.fusion.build import build_fuser
from fedray.llm.cache import KVCache
from fedray.training.data import answer_loss
from fedray.training.memory import GIB, BatchLoad, Memory, _kept, check, estimate
from fedray.training.recipe import FuserRecipe, fuser_config
from fedray.types import FedrayError, KVSpec

SENDER, RECEIVER = "llama-1b", "qwen3-0.6b"
LOAD = BatchLoad(rows=4, longest=96)


def cache(spec: KVSpec, tokens: int) -> KVCache:
    torch.manual_seed(0)
    sides = [tuple(torch.randn(4, spec.kv_heads, tokens, spec.head_dim) for _ in range(spec.layers)) for _ in range(2)]
    positions = torch.arange(tokens)[None].expand(4, -1).contiguous()
    return KVCache(spec, sides[0], sides[1], torch.full((4,), tokens), positions)


def really_kept(recipe: FuserRecipe, prompt: int, answer: int) -> int:
    """Bytes a real forward pass keeps for the backward pass, parameters and what the caches hold anyway left out."""
    receiver, spec = random_llm(RECEIVER), random_llm(SENDER).spec
    fuser = build_fuser(fuser_config(recipe, spec, receiver.spec)).train()
    own, sent = cache(receiver.spec, prompt), cache(spec, prompt)
    known = {p.untyped_storage().data_ptr() for m in (fuser, receiver.model) for p in (*m.parameters(), *m.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    spans = [[(i, i + 1) for i in range(prompt)]] * 4
    part = combine.Part(SENDER, fuser, sent, torch.ones(4), tuple(map(tuple, spans)))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        context = combine.fuse(recipe.operator, own, spans, [part], model=receiver.model)
        answer_loss(receiver, context, torch.zeros(4, 1, dtype=torch.long), [[5] * answer] * 4)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


@pytest.mark.parametrize(("kind", "operator"), [("mlp", "mix"), ("c2c", "mix"), ("mlp", "concat")])
@pytest.mark.parametrize(("prompt", "answer"), [(80, 16), (16, 80)])
def test_activations_are_counted_as_they_are(kind: str, operator: str, prompt: int, answer: int) -> None:
    recipe = FuserRecipe(kind=kind, operator=operator, hidden=64)
    receiver, spec = random_llm(RECEIVER), random_llm(SENDER).spec
    with torch.device("meta"):
        fuser = build_fuser(fuser_config(recipe, spec, receiver.spec)).train()
        llm = type(receiver.model)(receiver.model.config).requires_grad_(False)
    llm.set_attn_implementation(receiver.model.config._attn_implementation)
    counted = _kept(fuser, llm, spec, receiver.spec, LOAD, prompt, answer)
    assert counted == pytest.approx(really_kept(recipe, prompt, answer), rel=0.1)


def estimated(recipe: FuserRecipe, load: BatchLoad) -> Memory:
    configs = (random_llm(name).model.config for name in (SENDER, RECEIVER))
    return estimate(*configs, recipe, load)


def test_an_estimate_follows_what_is_trained() -> None:
    recipe = FuserRecipe(kind="c2c", operator="mix", hidden=64)
    base = estimated(recipe, LOAD)
    weights = sum(p.numel() * 4 for name in (SENDER, RECEIVER) for p in random_llm(name).model.parameters())
    fuser = build_fuser(fuser_config(recipe, random_llm(SENDER).spec, random_llm(RECEIVER).spec))
    assert base.llms == weights and base.fuser == 16 * sum(p.numel() for p in fuser.parameters())
    twice = estimated(recipe, BatchLoad(rows=8, longest=96))
    assert twice.activations == pytest.approx(2 * base.activations, rel=0.01) and twice.caches == 2 * base.caches
    half = estimated(recipe, BatchLoad(rows=4, longest=96, dtype=torch.bfloat16, half=True))
    assert half.llms == base.llms // 2 and half.activations < 0.7 * base.activations and half.fuser > base.fuser


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    huge, fits = Memory(0, 0, 0, 1 << 50, 0), Memory(0, 0, 0, 0, 0)
    check(fits, "cpu", lambda parts: None)
    with pytest.raises(FedrayError, match=r"about 104857\d\.\d GiB per worker.*free for it: 8 times the accumulation"):
        check(huge, "cpu", lambda parts: fits if parts == 8 else None)
    with pytest.raises(FedrayError, match=r"choose a smaller hidden or data.longest"):
        check(huge, "cpu", lambda parts: huge)
    assert huge.total > 1 << 50 and fits.total <= GIB
