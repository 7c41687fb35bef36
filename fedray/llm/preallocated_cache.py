"""Preallocated caches of transformers. Shapes: (B, N, T, H) as in cache.py.

A prompt is read into one block for all layers, so that it travels as one. A cache for decoding has room to grow:
transformers' own cache copies every layer's whole cache for every token.
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
    """A cache layer whose `keys` and `values` are the filled part of larger tensors."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], room: int = ROOM) -> None:
        """keys, values: pieces of the cache, which are concatenated into the new tensors."""
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self._buffers = [_concatenated(pieces, room) for pieces in (keys, values)]
        self._fill(sum(piece.shape[2] for piece in keys))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, stop = self._tokens, self._tokens + key_states.shape[2]
        if stop > self._buffers[0].shape[2]:
            more = int(stop * GROWTH) - start
            self._buffers = [_concatenated([buffer[:, :, :start]], more) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        return self._fill(stop)

    def _fill(self, tokens: int) -> tuple[Tensor, Tensor]:
        self._tokens = tokens
        self.keys, self.values = (filled := [buffer[:, :, :tokens] for buffer in self._buffers])
        return filled[0], filled[1]


class BlockLayer(DynamicLayer):
    """A cache layer in a block, which the layers share: the keys of all, (L, B, N, T, H), and the values of all."""

    def __init__(self, block: list[Tensor], layers: int, index: int) -> None:
        super().__init__()
        self._block, self._layers, self._index = block, layers, index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        if not self._block:
            self._block += [states.new_empty(self._layers, *states.shape) for states in (key_states, value_states)]
        keys, values = self._block
        self.keys, self.values = keys[self._index].copy_(key_states), values[self._index].copy_(value_states)
        return self.keys, self.values


def block(layers: int) -> DynamicCache:
    """Make an empty cache for one pass over a whole prompt, not to be added to afterwards."""
    cache, shared = DynamicCache(), []
    cache.layers.extend(BlockLayer(shared, layers, index) for index in range(layers))
    return cache


def slots(layers: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], room: int = ROOM) -> DynamicCache:
    """Concatenate every layer's pieces of keys and values in a new cache with room to grow.

    In training, whose gradients do not pass through in-place writes, it is transformers' own.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for layer in layers for side in layer for p in side):
        return DynamicCache([(torch.cat(list(keys), dim=2), torch.cat(list(values), dim=2)) for keys, values in layers])
    cache = DynamicCache()
    cache.layers.extend(SlotLayer(keys, values, room) for keys, values in layers)
    return cache


def _concatenated(pieces: Sequence[Tensor], room: int) -> Tensor:
    batch, heads, _, dim = pieces[0].shape
    tokens = sum(piece.shape[2] for piece in pieces)
    buffer = pieces[0].new_empty(batch, heads, tokens + room, dim)
    torch.cat(list(pieces), dim=2, out=buffer[:, :, :tokens])
    return buffer
