"""Select the tokens and layers of a cache that are sent.

Tokens have a score each, and the best of every row are sent; the last always is: where a prompt ends an LLM has
gathered what it would answer. Layers are selected by their index alone, the same for every prompt.
Shape legend: B batch, N kv heads, T tokens, H head dim.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from fedray.llm.cache import KVCache, counted, filled
from fedray.methods.method import Wire
from fedray.types import KVSpec, Layers

SCORES = ("last", "norm", "similar", "random")
LAYER_SCORES = ("spread", "deep", "middle", "shallow", "random")


def select(cache: KVCache, layers: Layers | None, wire: Wire, seed: int = 0) -> tuple[KVCache, Layers]:
    """Select what of a cache is sent: some tokens, and some of `layers`, which are those that are read (None: all)."""
    return keep_tokens(cache, wire.keep, wire.score, seed), layers_sent(cache.spec, layers, wire, seed)


def layers_sent(spec: KVSpec, layers: Layers | None, wire: Wire, seed: int = 0) -> Layers:
    """Select those of the layers that are read (None: all) which are sent, alike at a sender and at its receiver."""
    everything = tuple(range(spec.layers))
    return keep_layers(layers or (everything, everything), wire.keep_layers, wire.layer_score, seed)


def keep_layers(read: Layers, share: float, how: str = "spread", seed: int = 0) -> Layers:
    """Select a `share` of the layers whose keys or values are read, at least one, in their order.

    spread: at equal distances, the last and the first among them; deep: the last ones; middle; shallow: the first ones;
    random: the control.
    """
    layers = sorted({*read[0], *read[1]})
    if share >= 1 or not layers:
        return read
    everybody, count = len(layers), math.ceil(round(len(layers) * share, 6))
    steps = max(count - 1, 1)
    places = {
        "spread": [everybody - 1 - (2 * i * (everybody - 1) + steps - 1) // (2 * steps) for i in range(count)],
        "deep": range(everybody - count, everybody),
        "middle": range((everybody - count) // 2, (everybody + count) // 2),
        "shallow": range(count),
        "random": random.Random(seed).sample(range(everybody), count),
    }
    if how not in places:
        raise ValueError(f"score {how!r} of layers; choose one of {', '.join(LAYER_SCORES)}")
    chosen = {layers[place] for place in places[how]}
    keys, values = (tuple(layer for layer in side if layer in chosen) for side in read)
    return keys, values


def score(cache: KVCache, how: str, seed: int = 0) -> Tensor:
    """Score tokens: (B, T), higher is better.

    last: later tokens; norm: small keys, which attention favours (Devoto et al., arXiv 2406.11430); similar: keys that
    point where the last token's does, mean over layers and heads; random: the control.
    """
    match how:
        case "last":
            return counted(cache.tokens, cache.lengths).expand(cache.batch, -1).float()
        case "norm":
            return -torch.stack([key.float().norm(dim=-1).mean(1) for key in cache.keys]).mean(0)
        case "similar":
            last_B111 = (cache.lengths - 1)[:, None, None, None]
            pairs = ((key.float(), key.float().take_along_dim(last_B111, 2)) for key in cache.keys)
            return torch.stack([torch.cosine_similarity(*pair, dim=-1).mean(1) for pair in pairs]).mean(0)
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(cache.batch, cache.tokens, generator=generator).to(cache.lengths.device)
    raise ValueError(f"score {how!r}; choose one of {', '.join(SCORES)}")


def keep_tokens(cache: KVCache, share: float, how: str = "last", seed: int = 0) -> KVCache:
    """Keep the best `share` of every row's tokens, at least one, in their order; positions say which they were."""
    if share >= 1:
        return cache
    worth_BT = score(cache, how, seed).scatter(1, (cache.lengths - 1)[:, None], math.inf)
    return keep_best(cache, (cache.lengths * share).ceil().long().clamp(min=1), worth_BT)


def keep_best(cache: KVCache, lengths: Tensor, worth_BT: Tensor) -> KVCache:
    """Keep of every row the lengths[b] tokens of the highest score, in their order; positions say which they were."""
    worth_BT = worth_BT.masked_fill(~cache.valid_BT(), -math.inf)
    order_BT = worth_BT.argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    index_BT = (
        order_BT.masked_fill(~filled(lengths, order_BT.shape[1]), cache.tokens)
        .sort(dim=1)
        .values.clamp(max=cache.tokens - 1)
    )
    index_B1T1 = index_BT[:, None, :, None]
    keys, values = (tuple(t.take_along_dim(index_B1T1, 2) for t in side) for side in (cache.keys, cache.values))
    positions = cache.positions.gather(1, index_BT)
    return replace(cache, keys=keys, values=values, lengths=lengths, positions=positions)
