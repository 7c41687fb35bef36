"""A cache that grows and rolls back, for protocols with many exchanges.

Shape legend: B batch, Q tokens read at once, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedray.llm import decoding
from fedray.llm.cache import KVCache, filled, layers_of
from fedray.llm.decoding import Context


@dataclass(slots=True)
class Track:
    """A batch of texts and their cache. ids[b]: the tokens of row b in `context`, from its first one on."""

    context: Context
    ids: list[list[int]]

    @classmethod
    def of(cls, cache: KVCache, ids: Sequence[Sequence[int]]) -> Track:
        """Start from a prefilled cache, which stays as it is."""
        layers = list(zip(cache.keys, cache.values, strict=True))
        return cls(Context(DynamicCache(layers), cache.valid_BT(), cache.lengths.clone()), [list(row) for row in ids])

    @torch.no_grad()
    def crop(self, lengths: Sequence[int]) -> None:
        """Roll back to the first lengths[b] tokens of every row. Raises ValueError where a row has fewer."""
        if any(keep > len(row) for keep, row in zip(lengths, self.ids, strict=True)):
            raise ValueError(f"a cache of {[len(row) for row in self.ids]} tokens cannot be cropped to {list(lengths)}")
        context, longest = self.context, max(lengths)
        keep_B = context.next_position_B.new_tensor(lengths)
        visible_BS = context.visible_BS & (context.visible_BS.cumsum(1) <= keep_B[:, None])
        prefix_BS = filled(keep_B, visible_BS.shape[1])
        if bool((visible_BS == prefix_BS).all()):
            layers = [(key[:, :, :longest], value[:, :, :longest]) for key, value in layers_of(context.cache)]
        else:  # rows were rolled back by different lengths: close their gaps
            index_BS = visible_BS.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
            index_B1S1 = index_BS[:, None, :, None]
            layers = [tuple(t.take_along_dim(index_B1S1, 2) for t in pair) for pair in layers_of(context.cache)]
        self.context = Context(DynamicCache(layers), prefix_BS[:, :longest], keep_B)
        self.ids = [row[:keep] for row, keep in zip(self.ids, lengths, strict=True)]

    @torch.no_grad()
    def read(self, model: Any, more: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Read further tokens of every row (or none) in one forward pass; returns logits (B, Q, V), right-padded."""
        ids_BQ, valid_BQ = decoding.pad([list(row) for row in more], pad_id, model.device)
        logits_BQV = decoding.step(model, self.context, ids_BQ, valid_BQ, all_logits=True)
        for row, new in zip(self.ids, more, strict=True):
            row.extend(new)
        return logits_BQV
