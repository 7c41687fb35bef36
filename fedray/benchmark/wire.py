"""suite=wire: a cache from one actor to another, against a memory copy and against plain tensors."""

from __future__ import annotations

import torch

from fedray.benchmark.bench import Bench
from fedray.benchmark.station import hop, random_cache
from fedray.types import KVSpec
from fedray.wire.codecs import are_finite

SPEC, TOKENS, DTYPE = KVSpec(28, 8, 128), 512, "bfloat16"  # Qwen3-0.6B's: 56 layers of keys and values, 56 MiB
ACTORS = ("wire.actor_to_actor", "wire.over_plain_tensors", "wire.finite_check")


def measure(bench: Bench) -> None:
    """Its rows."""
    if bench.wants(*ACTORS):
        _across_actors(bench)


def _across_actors(bench: Bench) -> None:
    """56 MiB from actor to actor on one node, cloned and checked where they arrive."""
    cache = random_cache(SPEC, TOKENS, getattr(torch, DTYPE))
    layers = (*cache.keys, *cache.values)
    source = torch.cat([layer.flatten().view(torch.uint8) for layer in layers])
    target = torch.empty_like(source)
    with hop(bench.settings.ray, SPEC, TOKENS, DTYPE) as between:
        ways = {
            "payload": between.payload,
            "tensors": between.tensors,
            "nothing": between.nothing,
            "copy": lambda: target.copy_(source),
            "check": lambda: are_finite([extreme for layer in layers for extreme in layer.aminmax()]),
        }
        seconds = bench.seconds("the wire", ways, warm=3)
    floor = seconds["nothing"] + 2 * seconds["copy"]
    payload = seconds["payload"]
    bench.row("wire.actor_to_actor", payload, "s", baseline=floor, against="call + 2 copies", at_most=2.0)
    bench.row("wire.over_plain_tensors", seconds["tensors"], "s", baseline=payload, against="payload", at_least=5.0)
    bench.row("wire.finite_check", seconds["check"], "s", baseline=payload, against="payload")
