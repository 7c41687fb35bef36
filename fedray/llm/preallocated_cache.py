"""Caches of transformers that write where keys and values will stay. Shapes: (B, N, T, H) as in cache.py.

A prompt is read into one block for all layers, so that it travels as one. What is decoded on has room to grow:
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
    """One layer: `keys` and `values` are the filled part of larger tensors."""

    def __init__(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        """The larger tensors, of which so many tokens are filled."""
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
    """One layer of a prompt of known length, in its place in a block."""

    def __init__(self, block: PreallocatedBlock, index: int) -> None:
        super().__init__()
        self._block, self._index = block, index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        _initialize(self, key_states)
        self.keys, self.values = self._block.write(self._index, key_states, value_states)
        return self.keys, self.values


class PreallocatedBlock:
    """The keys of all layers in one tensor, (L, B, N, T, H), and the values in another."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._sides: list[Tensor] = []

    def write(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values; returns where they stand."""
        if not self._sides:
            self._sides = [states.new_empty(self._layers, *states.shape) for states in (key, value)]
        places = [side[index].copy_(states) for side, states in zip(self._sides, (key, value), strict=True)]
        return places[0], places[1]


def block(layers: int) -> DynamicCache:
    """An empty cache for one pass over a whole prompt, not to be added to afterwards."""
    cache, made = DynamicCache(), PreallocatedBlock(layers)
    cache.layers.extend(BlockLayer(made, index) for index in range(layers))
    return cache


def slots(layers: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], room: int = ROOM) -> DynamicCache:
    """A cache of its own, in which every layer's pieces of keys and values stand one after the other.

    In training, whose gradients do not pass through writing in place, it is transformers' own.
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
