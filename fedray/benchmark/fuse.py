"""suite=fuse: the published fuser in the form fedray runs it, against layer by layer with every gate computed."""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from torch import Tensor

from fedray.benchmark.bench import Bench
from fedray.benchmark.cost import rates
from fedray.benchmark.settings import BenchmarkSettings
from fedray.benchmark.wire_actors import random_cache
from fedray.border import Border
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.combine import Part
from fedray.fusion.combine import fuse as fuse_into
from fedray.fusion.fuser import Sides
from fedray.llm.cache import KVCache, spec_of
from fedray.llm.loading import default_dtype
from fedray.llm.memory import numbers
from fedray.llm.products import pack_matrices
from fedray.llm.source import Source, config_of
from fedray.methods.method import Compile
from fedray.registry.untrained import build_untrained, random_artifact
from fedray.settings.check import cpp_compiler
from fedray.types import FedrayError, MemberInfo

ROWS = ("fuse.over_layerwise", "fuse.groups_over_layers", "fuse.groups_differ", "fuse.half_closed_over_open")
WHOLE, FLOOR, MS = "fuse.whole_over_fuser", "fuse.over_floor", "fuse.ms"
COMPILED = "fuse.compiled_over_plain"  # where torch.compile can run: on a GPU, or with a C++ compiler
MODES: tuple[Compile, ...] = get_args(Compile)  # on a CPU the first
WARM = 4  # CUDA graphs are recorded in the second call
READ_MS = 5.0  # on a GPU, in 16 bit, one sender
APART = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}  # rounding is all that may differ


def measure(bench: Bench) -> None:
    """Measure the rows, in 32 bit and in the precision that fedray picks."""
    on_gpu = bench.settings.device.startswith("cuda")
    picked = default_dtype(bench.settings.zoo.name, bench.settings.device)
    for dtype in dict.fromkeys(("float32", picked)):
        if bench.wants(*(f"{row}.{dtype}" for row in ROWS)):
            _rows(bench, dtype)
        if bench.wants(*(f"{row}.{dtype}" for row in (WHOLE, FLOOR, MS))):
            _whole(bench, dtype)
        for mode in MODES if on_gpu else MODES[:1]:
            if bench.wants(f"{COMPILED}.{mode}.{dtype}") and (on_gpu or cpp_compiler() is not None):
                _compiled(bench, dtype, mode)


@torch.no_grad()
def _rows(bench: Bench, dtype: str) -> None:
    s = bench.settings
    fuser, plain = (_fuser(s, dtype) for _ in range(2))
    pack_matrices(fuser)  # as members have it
    own, sent = map(_sides, _caches(s, dtype))

    def fuse() -> None:
        fuser.mix(own, sent)

    def in_form(grouped: bool) -> list[Tensor]:
        plain.grouped = grouped
        return [change for side in plain.mix(own, sent) for change in side if change is not None]

    def published() -> None:
        for t, (layer, projector) in enumerate(zip(plain.layers, plain.projectors, strict=True)):
            projector(sent[0][layer], sent[1][layer], own[0][t], own[1][t])

    most = 0.5 if s.device.startswith("cuda") else 1.1  # a CPU has nothing to gain where every gate is open
    ways = {"ours": fuse, "published": published}
    bench.compare(f"{ROWS[0]}.{dtype}", f"fusing in {dtype}", ways, "layer by layer", at_most=most)
    forms = {"groups": partial(in_form, True), "layers": partial(in_form, False)}
    bench.compare(f"{ROWS[1]}.{dtype}", f"forms in {dtype}", forms, "layers one by one")
    groups, layers = (torch.stack(in_form(grouped)).float() for grouped in (True, False))
    apart = float((groups - layers).norm() / layers.norm())
    bench.row(f"{ROWS[2]}.{dtype}", apart, "of the norm", at_most=APART[dtype])

    def gates(logit: float) -> None:
        for projector in fuser.projectors:
            projector.value_gate_logit.fill_(logit)  # pyright: ignore
        fuser.eval()  # which gates are open is asked anew
        if own[0][0].is_cuda:
            fuser.mix(own, sent)  # and answered once, for many requests

    ways, before = {"half": fuse, "open": fuse}, {"half": partial(gates, -1.0), "open": partial(gates, 1.0)}
    bench.compare(f"{ROWS[3]}.{dtype}", f"closed gates in {dtype}", ways, "all open", before=before, at_most=0.65)


@torch.no_grad()
def _whole(bench: Bench, dtype: str) -> None:
    """All that a receiver does of fusing (tokens found, changes checked and added, room made for the answer) against
    the fuser alone; and that against its floor, its operations or its weights read once."""
    s = bench.settings
    fuser = _fuser(s, dtype)
    pack_matrices(fuser)
    own, sent = _caches(s, dtype)
    spans = [[(i, i + 1) for i in range(s.tokens)]]
    weight_B = own.lengths.new_ones(1, dtype=torch.float32)
    part = Part(s.sender, fuser, sent, weight_B, (tuple(spans[0]),), lengths=(s.tokens,))

    def whole() -> None:
        border = Border()
        fuse_into("mix", own, spans, [part], border=border)
        if border.refused:
            raise FedrayError(f"what is to be measured failed: {border.refused[s.sender]}")

    ways = {"whole": whole, "fuser": partial(fuser.mix, _sides(own), _sides(sent))}
    seconds = bench.compare(f"{WHOLE}.{dtype}", f"all of fusing in {dtype}", ways, "the fuser alone")
    count, size = numbers(fuser), own.keys[0].itemsize
    rate, bandwidth = rates(bench, own.keys[0].dtype, own.keys[0].device)
    floor = max(2 * count * s.tokens / rate, count * size / bandwidth)
    bench.row(f"{FLOOR}.{dtype}", seconds["fuser"], "s", baseline=floor, against="operations, or weights read once")
    if s.device.startswith("cuda"):
        most = None if dtype == "float32" else READ_MS
        bench.row(f"{MS}.{dtype}", seconds["whole"] * 1e3, "ms", at_most=most)


@torch.no_grad()
def _compiled(bench: Bench, dtype: str, mode: Compile) -> None:
    """By torch.compile against as members have it."""
    own, sent = map(_sides, _caches(bench.settings, dtype))
    fast, plain = (_fuser(bench.settings, dtype).for_inference(how) for how in (mode, None))
    ways = {"compiled": lambda: fast.mix(own, sent), "plain": lambda: plain.mix(own, sent)}
    bench.compare(f"{COMPILED}.{mode}.{dtype}", f"compiled in {dtype}", ways, "as it is", warm=WARM)


def _members(s: BenchmarkSettings) -> tuple[MemberInfo, MemberInfo]:
    """Describe the sender and the receiver as far as a fuser depends on them; their weights are not loaded."""
    specs = {name: spec_of(config_of(Source(name, s.zoo.name))) for name in (s.sender, s.receiver)}
    sender, receiver = (MemberInfo(n, "", 0, spec, "", "", "cpu", "", "", 0, 0) for n, spec in specs.items())
    return sender, receiver


def _fuser(s: BenchmarkSettings, dtype: str) -> C2CFuser:
    """Build a fuser of the published size, every gate open."""
    fuser = build_untrained(random_artifact(*_members(s), "c2c", "mix"), s.device).to(getattr(torch, dtype))
    assert isinstance(fuser, C2CFuser)
    return fuser


def _caches(s: BenchmarkSettings, dtype: str) -> tuple[KVCache, KVCache]:
    """The receiver's own, and what was sent."""
    sent, own = (_on(s.device, random_cache(m.spec, s.tokens, getattr(torch, dtype))) for m in _members(s))
    return own, sent


def _on(device: str, cache: KVCache) -> KVCache:
    keys, values = (tuple(layer.to(device) for layer in side) for side in (cache.keys, cache.values))
    return KVCache(cache.spec, keys, values, cache.lengths.to(device), cache.positions.to(device))


def _sides(cache: KVCache) -> Sides:
    return cache.keys, cache.values
