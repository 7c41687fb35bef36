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

from fedray.llm.cache import stacked

ROOM = 64  # tokens of an answer until the cache must grow
GROWTH = 1.5


class SlotLayer(DynamicLayer):
    """A cache layer whose `keys` and `values` are the filled part of larger tensors."""

    def __init__(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        """keys, values: the larger tensors, of which so many tokens are filled."""
        super().__init__()
        _initialize(self, keys)
        self._buffers = [keys, values]
        self._fill(tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, stop = self._tokens, self._tokens + key_states.shape[2]
        if stop > self._buffers[0].shape[2]:
            more = int(stop * GROWTH) - start
            self._buffers = [_standing([[buffer[:, :, :start]]], more)[0] for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.narrow(2, start, stop - start).copy_(states)
        return self._fill(stop)

    def _fill(self, tokens: int) -> tuple[Tensor, Tensor]:
        self._tokens = tokens
        self.keys, self.values = (filled := [buffer.narrow(2, 0, tokens) for buffer in self._buffers])
        return filled[0], filled[1]


class BlockLayer(DynamicLayer):
    """A cache layer in a block, which the layers share: the keys of all, (L, B, N, T, H), and the values of all."""

    def __init__(self, block: list[Tensor], layers: int, index: int) -> None:
        super().__init__()
        self._block, self._layers, self._index = block, layers, index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        _initialize(self, key_states)
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
    keys, values = (_standing([layer[side] for layer in layers], room) for side in (0, 1))
    tokens = keys.shape[3] - room
    cache.layers.extend(SlotLayer(key, value, tokens) for key, value in zip(keys, values, strict=True))
    return cache


def _standing(layers: Sequence[Sequence[Tensor]], room: int) -> Tensor:
    """(L, B, N, T + room, H): every layer's pieces one after the other, copied once to where they will stand."""
    batch, heads, _, dim = layers[0][0].shape
    buffer = layers[0][0].new_empty(len(layers), batch, heads, sum(piece.shape[2] for piece in layers[0]) + room, dim)
    start = 0
    for pieces in zip(*layers, strict=True):
        buffer.narrow(3, start, pieces[0].shape[2]).copy_(stacked(pieces))
        start += pieces[0].shape[2]
    return buffer


def _initialize(layer: DynamicLayer, states: Tensor) -> None:
    """As lazy_initialization, without its two empty tensors, which are the more work on a GPU."""
    layer.dtype, layer.device, layer.is_initialized = states.dtype, states.device, True
