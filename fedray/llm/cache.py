"""The KV cache as a frozen value with its KV space.

Shape legend: B batch, N kv heads, T tokens, H head dim, L layers. Keys are post-RoPE, as transformers keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedray.types import KVSpec


@dataclass(frozen=True, slots=True)
class KVCache:
    """A batch of caches, right-padded: row b holds lengths[b] valid tokens, then padding that nobody may read.

    keys, values: one (B, N, T, H) tensor per layer; lengths: (B,) int64; positions: (B, T) int64, the positions the
    keys were rotated with.
    """

    spec: KVSpec
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor
    positions: Tensor

    def __post_init__(self) -> None:
        batch, tokens = self.positions.shape
        want = (batch, self.spec.kv_heads, tokens, self.spec.head_dim)
        if len(self.keys) != self.spec.layers or len(self.values) != self.spec.layers:
            raise ValueError(f"KVCache of {self.spec}: expected {self.spec.layers} layers, got {len(self.keys)}")
        for tensor in (*self.keys, *self.values):
            if tuple(tensor.shape) != want:
                raise ValueError(f"KVCache of {self.spec}: expected layers of shape {want}, got {tuple(tensor.shape)}")

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    @property
    def tokens(self) -> int:
        """Slots per row, padding included."""
        return self.positions.shape[1]

    def valid_BT(self) -> Tensor:
        """Compute the mask (B, T) of slots that hold a token of their row."""
        return filled(self.lengths, self.tokens)

    def select(self, rows: list[int]) -> KVCache:
        """Select rows, without the padding they do not need; all rows are the cache itself."""
        if rows == list(range(self.batch)):
            return self
        index = self.lengths.new_tensor(rows)
        lengths = self.lengths[index]
        longest = int(lengths.max()) if rows else 0
        keys, values = (tuple(t[index, :, :longest] for t in side) for side in (self.keys, self.values))
        return KVCache(self.spec, keys, values, lengths, self.positions[index, :longest])

    def scatter(self, rows: tuple[int, ...], batch: int) -> KVCache:
        """Scatter rows into a batch: row rows[b] is this cache's row b, and every other row is empty."""
        if rows == tuple(range(batch)):
            return self
        index = self.lengths.new_tensor(rows)

        def spread(tensor: Tensor) -> Tensor:
            if not any(tensor.stride()):  # zeros without memory of their own: a layer that nobody sent
                return tensor[:1].expand(batch, *tensor.shape[1:])
            return tensor.new_zeros(batch, *tensor.shape[1:]).index_copy(0, index, tensor)

        keys, values = (tuple(map(spread, side)) for side in (self.keys, self.values))
        return KVCache(self.spec, keys, values, spread(self.lengths), spread(self.positions))

    def crop(self, lengths: Tensor) -> KVCache:
        """Crop every row to its first lengths[b] tokens."""
        longest = int(lengths.max())
        keys, values = (tuple(t[:, :, :longest] for t in side) for side in (self.keys, self.values))
        return KVCache(self.spec, keys, values, torch.minimum(self.lengths, lengths), self.positions[:, :longest])

    def gather(self, tokens: Sequence[Sequence[int]]) -> KVCache:
        """Gather some tokens of every row, in their order."""
        lengths = self.lengths.new_tensor([len(row) for row in tokens])
        longest = max(map(len, tokens), default=0)
        index_BT = self.lengths.new_tensor([[*row, *[0] * (longest - len(row))] for row in tokens])
        index_B1T1, sides = index_BT[:, None, :, None], (self.keys, self.values)
        keys, values = (tuple(t.take_along_dim(index_B1T1, 2) for t in side) for side in sides)
        return KVCache(self.spec, keys, values, lengths, self.positions.gather(1, index_BT))

    def counted(self) -> KVCache:
        """The same tokens, at positions from 0 on."""
        return replace(self, positions=counted(self.tokens, self.positions).expand(self.batch, -1))

    @classmethod
    def from_dynamic(cls, cache: DynamicCache, lengths: Tensor, positions: Tensor) -> KVCache:
        """Convert a cache of transformers."""
        keys, values = zip(*layers_of(cache), strict=True)
        _, kv_heads, _, head_dim = keys[0].shape
        return cls(KVSpec(len(keys), kv_heads, head_dim), keys, values, lengths, positions)


def counted(slots: int, like: Tensor) -> Tensor:
    """Count slots from 0 on, on the device of a tensor: (T,)."""
    return torch.arange(slots, device=like.device)


def filled(lengths_B: Tensor, slots: int) -> Tensor:
    """Compute the mask (B, T) of each row's first lengths_B[b] slots."""
    return counted(slots, lengths_B)[None] < lengths_B[:, None]


def side_by_side(flat_1NS: Tensor, lengths: Sequence[int]) -> Tensor:
    """Pad rows that lie one after another in (1, N, S, ...) with zeros to the longest: (B, N, T, ...).

    A view where all rows are as long, and of zeros without memory of their own.
    """
    batch, longest, flat_NS = len(lengths), max(lengths, default=0), flat_1NS[0]
    if not any(flat_1NS.stride()):
        return flat_1NS[:, :, :1].expand(batch, -1, longest, *flat_1NS.shape[3:])
    if any(length < longest for length in lengths):
        valid_BT = filled(torch.tensor(lengths), longest)
        padded_NS = flat_NS.new_zeros(flat_NS.shape[0], batch * longest, *flat_NS.shape[2:])
        flat_NS = padded_NS.index_copy_(1, valid_BT.flatten().nonzero()[:, 0].to(flat_NS.device), flat_NS)
    return flat_NS.unflatten(1, (batch, longest)).transpose(0, 1)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one, (L, ...), never to be written to: a GPU takes longer to start small works than to
    do them.

    A view where they lie at equal distances in one block, as the layers of a prompt that was read do; else a copy.
    """
    first, places = tensors[0], [tensor.data_ptr() for tensor in tensors]
    step = places[1] - places[0] if len(places) > 1 else 0
    block = first.untyped_storage()
    even = step > 0 and places == list(range(places[0], places[0] + step * len(places), step))
    inside = even and places[-1] < block.data_ptr() + block.nbytes()  # so nobody else's memory lies between
    layout = (first.shape, first.stride(), first.dtype)
    alike = inside and all((x.shape, x.stride(), x.dtype) == layout for x in tensors)
    if not alike or step % first.itemsize or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return torch.stack(list(tensors))
    return first.as_strided((len(tensors), *first.shape), (step // first.itemsize, *first.stride()))


def layers_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Get keys and values of every layer. Raises ValueError for layers that are not plain attention."""
    layers: list[tuple[Tensor, Tensor]] = []
    for index, layer in enumerate(cache.layers):
        key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(key, Tensor) or not isinstance(value, Tensor):
            raise ValueError(f"layer {index} ({type(layer).__name__}) holds no keys and values to exchange")
        layers.append((key, value))
    return layers


def spec_of(config: Any) -> KVSpec:
    """Derive the KV space of a transformers configuration."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVSpec(config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_dim)
