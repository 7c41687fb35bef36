"""What a participant sees of the others: rows of keys and values in front of its own, in the sync layers only.

The others' segments stand before its own, so every row is visible to every token of it; where a row stands is in its
key, which is post-RoPE. Shape legend: B batch, N kv heads, Q new tokens, T own tokens, S others' rows, H head dim.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.methods.fedattn import FedAttn
from fedray.types import KVSpec
from fedray.wire.selection import keep_best, score


@dataclass(frozen=True, slots=True)
class Rows:
    """Others' rows of one layer, padded where visible_BS is False."""

    key_BNSH: Tensor
    value_BNSH: Tensor
    visible_BS: Tensor

    def select(self, index_R: Tensor) -> Rows:
        return Rows(self.key_BNSH[index_R], self.value_BNSH[index_R], self.visible_BS[index_R])


@dataclass(frozen=True, slots=True)
class Own:
    """A participant's own part of one sync layer, as its attention meets it. query: (B, heads, T, H)."""

    layer: int
    query: Tensor
    key_BNTH: Tensor
    value_BNTH: Tensor


class Others:
    """`Beyond` of decoding.py. While a prompt is read, each sync layer that is met asks `meet` for the others' rows;
    they stay for what is decoded afterwards."""

    def __init__(
        self,
        layers: Sequence[int],
        meet: Callable[[Own], Rows | None] | None,
        found: Mapping[int, Rows | None] | None = None,
    ) -> None:
        self._layers, self._meet, self._found = frozenset(layers), meet, dict(found or {})

    def extend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask_B1QK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._meet is not None and layer in self._layers and layer not in self._found:
            self._found[layer] = self._meet(Own(layer, query, key, value))
        rows = self._found.get(layer)
        if rows is None:
            return key, value, mask_B1QK
        hidden = torch.zeros_like(rows.visible_BS, dtype=mask_B1QK.dtype)
        hidden.masked_fill_(~rows.visible_BS, torch.finfo(mask_B1QK.dtype).min)
        hidden_B1QS = hidden[:, None, None].expand(-1, 1, mask_B1QK.shape[2], -1)
        return (
            torch.cat([rows.key_BNSH, key], dim=2),
            torch.cat([rows.value_BNSH, value], dim=2),
            torch.cat([hidden_B1QS, mask_B1QK], dim=3),
        )

    def settle(self) -> None:
        """The prompt is read: from now on only what was found is seen."""
        self._meet = None

    def select(self, index_R: Tensor) -> Others:
        return Others((), None, {layer: rows and rows.select(index_R) for layer, rows in self._found.items()})


def joined(caches: Sequence[KVCache]) -> Rows | None:
    """The rows of several participants' single layers, one behind another; None where there are none."""
    if not caches:
        return None
    keys, values = ([side[0] for side in sides] for sides in zip(*((c.keys, c.values) for c in caches), strict=True))
    return Rows(torch.cat(keys, dim=2), torch.cat(values, dim=2), torch.cat([c.valid_BT() for c in caches], dim=1))


def to_send(own: Own, lengths: Tensor, how: FedAttn, seeds: Sequence[str]) -> KVCache:
    """The rows of a sync layer that a participant sends: ceil(exchange * T), at least one, in their order.

    lengths: (B,), tokens of each row's segment. random: drawn, each row from its seed; mass: those that the
    participant's own tokens look at most; rare: whose keys are least like the segment's mean key (as KeyDiff keeps
    them, arXiv 2504.15364); norm, similar, last: see wire/selection.py.
    """
    batch, heads, tokens, dim = own.key_BNTH.shape
    positions = torch.arange(tokens, device=lengths.device).expand(batch, -1)
    cache = KVCache(KVSpec(1, heads, dim), (own.key_BNTH,), (own.value_BNTH,), lengths, positions)
    if how.exchange >= 1:
        return cache
    match how.score:
        case "random":
            worth_BT = drawn(lengths, tokens, seeds)
        case "mass":
            worth_BT = _mass(own, cache.valid_BT())
        case "rare":
            worth_BT = _rarity(own.key_BNTH.float(), cache.valid_BT())
        case _:
            worth_BT = score(cache, how.score)
    counts = torch.tensor([_share(length, how.exchange) for length in lengths.tolist()], device=lengths.device)
    kept = keep_best(cache, counts, worth_BT)
    return replace(kept, positions=positions[:, : kept.tokens])  # counted anew: nobody reads them, and they take bytes


def drawn(lengths: Tensor, tokens: int, seeds: Sequence[str]) -> Tensor:
    """(B, T) random numbers; a row's depend on its seed and length, not on the batch it is in."""
    worth_BT = torch.zeros(len(lengths), tokens)
    for row, length, seed in zip(worth_BT, lengths.tolist(), seeds, strict=True):
        rng = random.Random(seed)
        row[:length] = torch.tensor([rng.random() for _ in range(length)])
    return worth_BT.to(lengths.device)


def thinned(length: int, share: float, seed: str) -> list[int]:
    """Which tokens of a segment are read, ascending: ceil(share * T), at least one, the last always."""
    others = random.Random(seed).sample(range(length - 1), _share(length, share) - 1)
    return [*sorted(others), length - 1]


def _rarity(key_BNTH: Tensor, valid_BT: Tensor) -> Tensor:
    """(B, T): how little a key points where the mean of its segment's does, mean over heads."""
    valid_B1T1 = valid_BT[:, None, :, None]
    mean_BN1H = (key_BNTH * valid_B1T1).sum(2, keepdim=True) / valid_B1T1.sum(2, keepdim=True)
    return -torch.cosine_similarity(key_BNTH, mean_BN1H, dim=-1).mean(1)


def _share(length: int, share: float) -> int:
    """ceil(share * length), at least one; 0.7 of 10 are 7, whatever a float says."""
    return max(1, math.ceil(share * length - 1e-9))


def _mass(own: Own, valid_BT: Tensor) -> Tensor:
    """(B, T): the attention that each token gets from its own segment, sum over heads and tokens."""
    groups = own.query.shape[1] // own.key_BNTH.shape[1]
    key = own.key_BNTH.repeat_interleave(groups, dim=1).float()
    scores = own.query.float() @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
    tokens = key.shape[2]
    causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device).tril()
    shares = scores.masked_fill(~causal_TT, -math.inf).softmax(-1)
    return (shares * valid_BT[:, None, :, None]).sum((1, 2))
