"""Which tokens and layers of a cache are worth their bytes.

Tokens have a score each, and the best of every row travel; the last always does: where a prompt ends an LLM has
gathered what it would answer. Layers are chosen by their place alone, the same for every prompt.
Shape legend: B batch, N kv heads, T tokens, H head dim.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.methods.method import Wire
from fedray.types import KVSpec, Layers

SCORES = ("last", "norm", "similar", "random")
LAYER_SCORES = ("spread", "deep", "middle", "shallow", "random")


def select(cache: KVCache, layers: Layers | None, wire: Wire, seed: int = 0) -> tuple[KVCache, Layers]:
    """What of a cache is sent: some tokens of it, and some of `layers`, which are those that are read (None: all)."""
    return keep_tokens(cache, wire.keep, wire.score, seed), layers_sent(cache.spec, layers, wire, seed)


def layers_sent(spec: KVSpec, layers: Layers | None, wire: Wire, seed: int = 0) -> Layers:
    """Choose those of the layers that are read (None: all) which are sent, alike at a sender and at its receiver."""
    everything = tuple(range(spec.layers))
    return keep_layers(layers or (everything, everything), wire.keep_layers, wire.layer_score, seed)


def keep_layers(read: Layers, share: float, how: str = "spread", seed: int = 0) -> Layers:
    """A `share` of the layers whose keys or values are read, at least one, in their order.

    spread: at equal distances, the last and the first among them; deep: the last ones; middle; shallow: the first ones;
    random: the control.
    """
    layers = sorted({*read[0], *read[1]})
    if share >= 1 or not layers:
        return read
    everybody, count = len(layers), math.ceil(round(len(layers) * share, 6))
    match how:
        case "spread":
            steps = max(count - 1, 1)
            places = [everybody - 1 - (2 * i * (everybody - 1) + steps - 1) // (2 * steps) for i in range(count)]
        case "deep":
            places = range(everybody - count, everybody)
        case "middle":
            places = range((everybody - count) // 2, (everybody + count) // 2)
        case "shallow":
            places = range(count)
        case "random":
            places = random.Random(seed).sample(range(everybody), count)
        case _:
            raise ValueError(f"score {how!r} of layers; choose one of {', '.join(LAYER_SCORES)}")
    chosen = {layers[place] for place in places}
    keys, values = (tuple(layer for layer in side if layer in chosen) for side in read)
    return keys, values


def score(cache: KVCache, how: str, seed: int = 0) -> Tensor:
    """(B, T), higher is more worth.

    last: later tokens; norm: small keys, which attention favours (Devoto et al., arXiv 2406.11430); similar: keys that
    point where the last token's does, mean over layers and heads; random: the control.
    """
    match how:
        case "last":
            return torch.arange(cache.tokens, device=cache.lengths.device).expand(cache.batch, -1).float()
        case "norm":
            return -torch.stack([key.float().norm(dim=-1).mean(1) for key in cache.keys]).mean(0)
        case "similar":
            last_B111 = (cache.lengths - 1)[:, None, None, None]
            return torch.stack([_similarity(key.float(), last_B111) for key in cache.keys]).mean(0)
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return torch.rand(cache.batch, cache.tokens, generator=generator).to(cache.lengths.device)
    raise ValueError(f"score {how!r}; choose one of {', '.join(SCORES)}")


def keep_tokens(cache: KVCache, share: float, how: str = "last", seed: int = 0) -> KVCache:
    """The best `share` of every row's tokens, at least one, in their order; positions say which they were."""
    if share >= 1:
        return cache
    worth_BT = score(cache, how, seed).scatter(1, (cache.lengths - 1)[:, None], math.inf)
    return keep_best(cache, (cache.lengths * share).ceil().long().clamp(min=1), worth_BT)


def keep_best(cache: KVCache, lengths: Tensor, worth_BT: Tensor) -> KVCache:
    """Of every row the lengths[b] tokens that are worth most, in their order; positions say which they were."""
    worth_BT = worth_BT.masked_fill(~cache.valid_BT(), -math.inf)
    order_BT = worth_BT.argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    kept = torch.arange(order_BT.shape[1], device=order_BT.device)[None] < lengths[:, None]
    index_BT = order_BT.masked_fill(~kept, cache.tokens).sort(dim=1).values.clamp(max=cache.tokens - 1)
    index_BNTH = index_BT[:, None, :, None].expand(-1, cache.spec.kv_heads, -1, cache.spec.head_dim)
    keys, values = (tuple(layer.gather(2, index_BNTH) for layer in side) for side in (cache.keys, cache.values))
    positions = cache.positions.gather(1, index_BT)
    return replace(cache, keys=keys, values=values, lengths=lengths, positions=positions)


def _similarity(key_BNTH: Tensor, last_B111: Tensor) -> Tensor:
    last_BN1H = key_BNTH.gather(2, last_B111.expand(-1, key_BNTH.shape[1], 1, key_BNTH.shape[3]))
    return torch.cosine_similarity(key_BNTH, last_BN1H, dim=-1).mean(1)
