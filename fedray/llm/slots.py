"""A transformers cache with room to grow: a decoded token writes its keys and values where they belong.

transformers' own copies every layer's whole cache for every token. Shapes: (B, N, T, H) as in cache.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens of an answer until the cache must grow
GROWTH = 1.5


class SlotLayer(DynamicLayer):
    """One layer: `keys` and `values` are the filled part of larger tensors."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], room: int = ROOM) -> None:
        """Pieces of the cache, one after the other: copied once to where they will stand."""
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self._buffers = [_standing(pieces, room) for pieces in (keys, values)]
        self._fill(sum(piece.shape[2] for piece in keys))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, stop = self._tokens, self._tokens + key_states.shape[2]
        if stop > self._buffers[0].shape[2]:
            more = int(stop * GROWTH) - start
            self._buffers = [_standing([buffer[:, :, :start]], more) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        return self._fill(stop)

    def _fill(self, tokens: int) -> tuple[Tensor, Tensor]:
        self._tokens = tokens
        self.keys, self.values = (filled := [buffer[:, :, :tokens] for buffer in self._buffers])
        return filled[0], filled[1]


def slots(layers: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], room: int = ROOM) -> DynamicCache:
    """A cache of its own, in which every layer's pieces of keys and values stand one after the other.

    In training, whose gradients do not pass through writing in place, it is transformers' own.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for layer in layers for side in layer for p in side):
        return DynamicCache([(torch.cat(list(keys), dim=2), torch.cat(list(values), dim=2)) for keys, values in layers])
    cache = DynamicCache()
    cache.layers.extend(SlotLayer(keys, values, room) for keys, values in layers)
    return cache


def _standing(pieces: Sequence[Tensor], room: int) -> Tensor:
    batch, heads, _, dim = pieces[0].shape
    tokens = sum(piece.shape[2] for piece in pieces)
    buffer = pieces[0].new_empty(batch, heads, tokens + room, dim)
    torch.cat(list(pieces), dim=2, out=buffer[:, :, :tokens])
    return buffer
