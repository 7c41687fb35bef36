"""Prefix caching: of a prompt whose prefix was read before, only the rest goes through the LLM.

Prefixes are compared by token ids, so that whatever a chat template makes of a longer conversation, the caches are
those of the whole prompt. Shape legend: B batch, N kv heads, T and Q tokens, H head dim, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.llm.cache import KVCache, counted, layers_of
from fedray.llm.decoding import Context, extend, is_cache_enough, keeping, pad
from fedray.llm.preallocated_cache import slots


@dataclass(frozen=True, slots=True)
class Known:
    """The prefixes of a batch of prompts: cache.lengths[b] tokens of row b, and, where a gate reads them, their hidden
    states (B, T, D), slot by slot as in the cache."""

    cache: KVCache
    state_BTD: Tensor | None = None


@torch.no_grad()
def read_on(
    model: Any, ids: list[list[int]], pad_id: int, known: Known, state_layer: int | None = None
) -> tuple[KVCache, Tensor | None]:
    """Prefill prompts, as decoding.prefill, of which row b begins with known.cache.lengths[b] tokens that were read.
    `known` stays as it is."""
    before = known.cache
    rest = [row[length:] for row, length in zip(ids, before.lengths.tolist(), strict=True)]
    ids_BQ, valid_BQ = pad(rest, pad_id, model.device)
    if not any(rest):
        return before, known.state_BTD
    layers = [([key], [value]) for key, value in zip(before.keys, before.values, strict=True)]
    context = Context(slots(layers, room=ids_BQ.shape[1]), before.valid_BT(), before.lengths)
    kept: list[Tensor] = []
    with keeping(model, state_layer, kept):
        extend(model, context, ids_BQ, valid_BQ, cache_only=is_cache_enough(model, state_layer))
    lengths = context.next_position_B
    longest = int(lengths.max())
    # rows whose known parts are not equally long have padding between known and new: valid slots go to the front
    order_BT = (~context.visible_BS).int().argsort(dim=1, stable=True)[:, :longest]
    positions = counted(longest, lengths)[None].expand(len(ids), -1).contiguous()
    ragged = not torch.equal(order_BT, positions)

    def in_order(tensor_BNSH: Tensor) -> Tensor:
        if ragged:
            return tensor_BNSH.take_along_dim(order_BT[:, None, :, None], 2)
        return tensor_BNSH[:, :, :longest]

    keys, values = (tuple(map(in_order, side)) for side in zip(*layers_of(context.cache), strict=True))
    cache = KVCache(before.spec, keys, values, lengths, positions)
    if not kept:
        return cache, None
    assert known.state_BTD is not None
    return cache, in_order(torch.cat([known.state_BTD, kept[0]], dim=1)[:, None])[:, 0]
