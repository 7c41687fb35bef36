"""Caches that know nothing, of the same norms: what a federation must not gain from."""

from __future__ import annotations

import torch
from torch import Tensor

from fedray.llm.cache import KVCache


def without_knowledge(cache: KVCache, control: str, seed: int) -> KVCache:
    """The cache replaced by "noise" (drawn per token) or a "constant" (one vector per layer and head for all)."""
    generator = torch.Generator().manual_seed(seed)

    def replaced(tensor_BNTH: Tensor) -> Tensor:
        batch, heads, tokens, dim = tensor_BNTH.shape
        shape = (batch, heads, tokens, dim) if control == "noise" else (1, heads, 1, dim)
        random = torch.randn(shape, generator=generator).to(tensor_BNTH)
        norm = tensor_BNTH.norm(dim=-1, keepdim=True)
        if control == "constant":
            norm = norm.mean(dim=(0, 2), keepdim=True).expand_as(norm)
        return random / random.norm(dim=-1, keepdim=True) * norm

    keys, values = (tuple(map(replaced, side)) for side in (cache.keys, cache.values))
    return KVCache(cache.spec, keys, values, cache.lengths, cache.positions)
