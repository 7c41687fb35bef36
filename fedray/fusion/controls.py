"""Control messages, which hold nothing of the question: a federation must not gain from them.

A sender sends noise or a constant in place of its cache. Zero, self and soft are what the receiver reads in place of
what the fuser makes of a sender's cache: as many slots, as visible, without anything of the sender's in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedray.fusion.fuser import Changes, Fuser, Projection, Sides
from fedray.fusion.soft import SoftPrompt
from fedray.llm.cache import KVCache
from fedray.types import FedrayError, Layers

CONSTANT_TEXT = "hello"  # what the constant cache has read
SOFT = "soft"  # slots that were trained and depend on nothing
UNSENT = ("zero", "self", SOFT)  # controls that stand in place of what a fuser makes
NOT_MIXED = "control={} is about slots of their own, which fusion=mix has not: choose fusion=concat, or control=noise"
MOMENTS_TEXT = "what is this about, and which of them is it? tell me: the one that it has, or what it is."  # of noise


def noise(cache: KVCache, same: KVCache, names: Sequence[str]) -> KVCache:
    """Replace every token by Gaussian noise with the mean and the variance of every channel over another, fixed text.

    names[b] is the seed of row b. Moments of the row itself would tell of it: its mean alone is read (docs/log.md).
    """
    generators = [torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in names]
    lengths = [int(n) for n in cache.lengths]

    def replaced(tensor_BNTH: Tensor, fixed_1NTH: Tensor) -> Tensor:
        spread_N1H, mean_N1H = torch.std_mean(fixed_1NTH[0].float(), dim=1, keepdim=True)
        drawn = torch.zeros_like(tensor_BNTH)
        for b, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
            shape = (length, tensor_BNTH.shape[1], tensor_BNTH.shape[3])  # token by token: padding draws nothing
            normal_NTH = torch.randn(shape, generator=generator).transpose(0, 1).to(mean_N1H)
            drawn[b, :, :length] = (normal_NTH * spread_N1H + mean_N1H).to(drawn)
        return drawn

    keys, values = map(replaced, cache.keys, same.keys), map(replaced, cache.values, same.values)
    return replace(cache, keys=tuple(keys), values=tuple(values))


def constant(cache: KVCache, same: KVCache) -> KVCache:
    """Replace every token's keys and values by one vector per layer and head: their mean over another, fixed text."""

    def replaced(tensor_BNTH: Tensor, fixed_1NTH: Tensor) -> Tensor:
        return fixed_1NTH.mean(dim=2, keepdim=True).expand_as(tensor_BNTH).contiguous()

    keys, values = map(replaced, cache.keys, same.keys), map(replaced, cache.values, same.values)
    return replace(cache, keys=tuple(keys), values=tuple(values))


class Instead(Fuser):
    """A stand-in for a fuser: of as many slots as it would make, and as visible, zeros, the receiver's own cache, or a
    soft prompt.

    Slots of the receiver's own cache are its tokens, evenly spread over the prompt where there are more or fewer.
    """

    def __init__(
        self, kind: str, fuser: Fuser, own: KVCache, lengths: Sequence[int], soft: SoftPrompt | None = None
    ) -> None:
        """kind: zero, self, or soft, which takes `soft`; lengths: per row the tokens that came, one after another."""
        super().__init__(replace(fuser.config, rotary="kept"))
        lengths = [count * fuser.config.slots for count in lengths]
        self._kind, self._own, self._soft = kind, own, soft
        self._places_S = torch.tensor([t for slots in lengths for t in range(slots)], dtype=torch.long)
        self._rows_S = torch.tensor([b for b, slots in enumerate(lengths) for _ in range(slots)], dtype=torch.long)
        tokens = [t * n // slots for n, slots in zip(own.lengths.tolist(), lengths, strict=True) for t in range(slots)]
        self._tokens_S = torch.tensor(tokens, dtype=torch.long)

    def project(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Projection:
        if self._soft is not None:
            made_keys, made_values = self._soft.at(self._places_S)
        else:
            made_keys, made_values = (tuple(map(self._message, side)) for side in (self._own.keys, self._own.values))
        return Projection(made_keys, made_values, tuple(made.new_zeros(made.shape[:3]) for made in made_keys))

    def _message(self, own_BNTH: Tensor) -> Tensor:
        taken_NSH = own_BNTH[self._rows_S, :, self._tokens_S].transpose(0, 1)
        return (torch.zeros_like(taken_NSH) if self._kind == "zero" else taken_NSH)[None]

    def mix(self, own: Sides, sent: Sides, layers: Layers | None = None) -> Changes:
        raise FedrayError(NOT_MIXED.format(self._kind))
