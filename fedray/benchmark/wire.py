"""suite=wire: a cache from one actor to another, against a memory copy and against plain tensors."""

from __future__ import annotations

import time
from functools import partial

import torch

from fedray.benchmark.bench import Bench
from fedray.benchmark.wire_actors import hop, random_cache
from fedray.llm.cache import KVCache, spec_of
from fedray.llm.decoding import prefill
from fedray.llm.loading import load
from fedray.llm.shapes import config_of
from fedray.methods.parts import CODECS
from fedray.types import KVSpec
from fedray.wire.codecs import are_finite, relative_error
from fedray.wire.payload import pack, unpack
from fedray.wire.selection import keep_tokens
from fedray.world.world import World

SPEC, TOKENS, DTYPE = KVSpec(28, 8, 128), 512, "bfloat16"  # Qwen3-0.6B's: 56 layers of keys and values, 56 MiB
ACTORS = ("wire.actor_to_actor", "wire.over_plain_tensors", "wire.finite_check")


SENDERS = ("qwen2.5-0.5b", "qwen2.5-coder-0.5b", "qwen2.5-1.5b", "llama-1b")
LIMITS = {"int8": 0.52, "int4": 0.30}  # of the bytes without a codec
KEEP = 0.3  # of the tokens, beside int4
WARM = 20  # rounds until every process has touched every page of the store
REST_S = 0.05  # torch's threads go on spinning for a while


def measure(bench: Bench) -> None:
    """Measure the rows."""
    if bench.wants(*ACTORS):
        _across_actors(bench)
    if bench.wants("wire.bytes."):
        _bytes(bench)
    if bench.wants("wire.bytes_per_token"):
        _four_senders(bench)
    if bench.wants("wire.error", "wire.codec"):
        _codecs(bench)


def _bytes(bench: Bench) -> None:
    """Count bytes of the sender's cache of a prompt, all that is sent with it included."""
    cache = random_cache(_spec(bench, bench.settings.sender), bench.settings.tokens, torch.bfloat16)
    whole = pack("sender", cache, [0]).nbytes
    for codec, limit in LIMITS.items():
        size = pack("sender", cache, [0], codec=codec).nbytes
        bench.row(f"wire.bytes.{codec}", size, "B", baseline=whole, against="bfloat16", at_most=limit)


def _four_senders(bench: Bench) -> None:
    """Count bytes of four senders' caches, for each token of the prompt."""
    tokens, whole, sent = bench.settings.tokens, 0, 0
    for name in SENDERS:
        cache = random_cache(_spec(bench, name), tokens, torch.bfloat16)
        whole += pack(name, cache, [0]).nbytes
        sent += pack(name, keep_tokens(cache, KEEP), [0], codec="int4").nbytes
    row = "wire.bytes_per_token.four_senders"
    bench.row(row, sent / tokens, "B/token", at_most=8192)
    bench.row(f"{row}.share", sent / tokens, "B/token", baseline=whole / tokens, against="bfloat16, every token")


def _codecs(bench: Bench) -> None:
    """Measure a codec's error on a cache of an LLM, and the seconds of a round trip of 56 MiB."""
    cache = _read(bench.settings.sender)
    for codec in LIMITS:
        for side, error in relative_error(cache, codec).items():
            bench.row(f"wire.error.{codec}.{side}", error, "of the norm")
    cache = random_cache(SPEC, TOKENS, getattr(torch, DTYPE))

    def round_trip(codec: str) -> None:
        unpack(pack("sender", cache, [0], codec=codec))

    seconds = bench.seconds("codecs", {codec: partial(round_trip, codec) for codec in CODECS})
    for codec in LIMITS:
        bench.row(f"wire.codec.{codec}", seconds[codec], "s", baseline=seconds["none"], against="no codec")


def _spec(bench: Bench, name: str) -> KVSpec:
    return spec_of(config_of(name)) if bench.settings.zoo.name == "shapes" else load(name).spec


def _read(name: str) -> KVCache:
    """Prefill questions of the tiny world in a trained LLM: random numbers have no channels to lose."""
    llm = load(name)
    prompts = [fact.ask() for fact in World(0).facts[:16]]
    return prefill(llm.model, [llm.encode(prompt).ids for prompt in prompts], llm.pad_id)[0]


def _across_actors(bench: Bench) -> None:
    """Measure 56 MiB from actor to actor on one node, cloned and validated where they arrive."""
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
        rest = dict.fromkeys(ways, partial(time.sleep, REST_S))
        seconds = bench.seconds("the wire", ways, warm=WARM, before=rest)
    floor = seconds["nothing"] + 2 * seconds["copy"]
    payload = seconds["payload"]
    bench.row("wire.actor_to_actor", payload, "s", baseline=floor, against="call + 2 copies", at_most=2.0)
    bench.row("wire.over_plain_tensors", seconds["tensors"], "s", baseline=payload, against="payload", at_least=5.0)
    bench.row("wire.finite_check", seconds["check"], "s", baseline=payload, against="payload")
