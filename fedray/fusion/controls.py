"""Caches that know nothing of the question: what a federation must not gain from."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fedray.llm.cache import KVCache

CONSTANT_TEXT = "hello"  # what the constant cache has read


def noise(cache: KVCache, names: Sequence[str]) -> KVCache:
    """Gaussian noise with the norm of every token's keys and values; row b is drawn from a seed made of names[b]."""
    generators = [torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in names]
    lengths = [int(n) for n in cache.lengths]

    def replaced(tensor_BNTH: Tensor) -> Tensor:
        drawn = torch.zeros_like(tensor_BNTH)
        for b, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
            shape = (length, tensor_BNTH.shape[1], tensor_BNTH.shape[3])  # token by token: padding draws nothing
            drawn[b, :, :length] = torch.randn(shape, generator=generator).transpose(0, 1).to(tensor_BNTH)
        return torch.nn.functional.normalize(drawn, dim=-1) * tensor_BNTH.norm(dim=-1, keepdim=True)

    return _like(cache, *(tuple(map(replaced, side)) for side in (cache.keys, cache.values)))


def constant(cache: KVCache, same: KVCache) -> KVCache:
    """Every token's keys and values replaced by one vector per layer and head: their mean over another, fixed text."""

    def replaced(tensor_BNTH: Tensor, fixed_1NTH: Tensor) -> Tensor:
        return fixed_1NTH.mean(dim=2, keepdim=True).expand_as(tensor_BNTH).contiguous()

    sides = ((cache.keys, same.keys), (cache.values, same.values))
    return _like(cache, *(tuple(map(replaced, ours, fixed)) for ours, fixed in sides))


def _like(cache: KVCache, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> KVCache:
    return KVCache(cache.spec, keys, values, cache.lengths, cache.positions)
