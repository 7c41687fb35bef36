"""Control caches, which hold nothing of the question: a federation must not gain from them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedray.llm.cache import KVCache

CONSTANT_TEXT = "hello"  # what the constant cache has read


def noise(cache: KVCache, names: Sequence[str]) -> KVCache:
    """Draw Gaussian noise with the norm of every token's keys and values; names[b] is the seed of row b."""
    generators = [torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in names]
    lengths = [int(n) for n in cache.lengths]

    def replaced(tensor_BNTH: Tensor) -> Tensor:
        drawn = torch.zeros_like(tensor_BNTH)
        for b, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
            shape = (length, tensor_BNTH.shape[1], tensor_BNTH.shape[3])  # token by token: padding draws nothing
            drawn[b, :, :length] = torch.randn(shape, generator=generator).transpose(0, 1).to(tensor_BNTH)
        return torch.nn.functional.normalize(drawn, dim=-1) * tensor_BNTH.norm(dim=-1, keepdim=True)

    return replace(cache, keys=tuple(map(replaced, cache.keys)), values=tuple(map(replaced, cache.values)))


def constant(cache: KVCache, same: KVCache) -> KVCache:
    """Replace every token's keys and values by one vector per layer and head: their mean over another, fixed text."""

    def replaced(tensor_BNTH: Tensor, fixed_1NTH: Tensor) -> Tensor:
        return fixed_1NTH.mean(dim=2, keepdim=True).expand_as(tensor_BNTH).contiguous()

    keys, values = map(replaced, cache.keys, same.keys), map(replaced, cache.values, same.values)
    return replace(cache, keys=tuple(keys), values=tuple(values))
