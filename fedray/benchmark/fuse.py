"""suite=fuse: the published fuser in the form fedray runs it, against layer by layer with every gate computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fedray.benchmark.bench import Bench
from fedray.benchmark.settings import BenchmarkSettings
from fedray.benchmark.wire_actors import random_cache
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import Sides
from fedray.llm.cache import KVCache, spec_of
from fedray.llm.loading import default_dtype
from fedray.llm.products import pack_matrices
from fedray.llm.source import Source, config_of
from fedray.registry.random_fuser import build_random, random_artifact
from fedray.settings.check import cpp_compiler
from fedray.types import MemberInfo

ROWS = ("fuse.over_layerwise", "fuse.groups_over_layers", "fuse.half_closed_over_open")
COMPILED = "fuse.compiled_over_plain"  # where torch.compile can run: on a GPU, or with a C++ compiler
READ_MS = 5.0  # on a GPU, bf16, one sender


def measure(bench: Bench) -> None:
    """Measure the rows, in 32 bit and in the precision that fedray picks."""
    picked = default_dtype(bench.settings.zoo.name, bench.settings.device)
    for dtype in dict.fromkeys(("float32", picked)):
        names = [f"{row}.{dtype}" for row in ROWS]
        if bench.wants(*names):
            _rows(bench, dtype)
        can_compile = bench.settings.device.startswith("cuda") or cpp_compiler() is not None
        if can_compile and bench.wants(f"{COMPILED}.{dtype}"):
            _compiled(bench, dtype)


@torch.no_grad()
def _rows(bench: Bench, dtype: str) -> None:
    s = bench.settings
    fuser, plain = (_fuser(s, dtype) for _ in range(2))
    pack_matrices(fuser)  # as members have it
    own, sent = _caches(s, dtype)

    def fuse() -> None:
        fuser.mix(own, sent)

    def in_form(grouped: bool) -> None:
        plain.grouped = grouped
        plain.mix(own, sent)

    def published() -> None:
        for t, (layer, projector) in enumerate(zip(plain.layers, plain.projectors, strict=True)):
            projector(sent[0][layer], sent[1][layer], own[0][t], own[1][t])

    ways: dict[str, Callable[[], None]] = {"ours": fuse, "published": published}
    seconds = bench.seconds(f"fusing in {dtype}", ways)
    on_gpu = s.device.startswith("cuda")
    most = 0.5 if on_gpu else 1.1  # a CPU has nothing to gain where every gate is open
    ours, layerwise = seconds["ours"], seconds["published"]
    bench.row(f"{ROWS[0]}.{dtype}", ours, "s", baseline=layerwise, against="layer by layer", at_most=most)
    if on_gpu:
        bench.row(f"fuse.seconds.{dtype}", ours * 1e3, "ms", at_most=READ_MS)
    both = bench.seconds(f"forms in {dtype}", {"groups": partial(in_form, True), "layers": partial(in_form, False)})
    bench.row(f"{ROWS[1]}.{dtype}", both["groups"], "s", baseline=both["layers"], against="layers one by one")

    def gates(logit: float) -> None:
        for projector in fuser.projectors:
            projector.value_gate_logit.fill_(logit)  # pyright: ignore
        fuser.eval()  # which gates are open is asked anew

    some: dict[str, Callable[[], None]] = {"half": fuse, "open": fuse}
    before = {"half": partial(gates, -1.0), "open": partial(gates, 1.0)}
    seconds = bench.seconds(f"closed gates in {dtype}", some, before=before)
    bench.row(f"{ROWS[2]}.{dtype}", seconds["half"], "s", baseline=seconds["open"], against="all open", at_most=0.65)


@torch.no_grad()
def _compiled(bench: Bench, dtype: str) -> None:
    """Measure torch.compile against the fuser as members have it."""
    own, sent = _caches(bench.settings, dtype)
    fast, plain = (_fuser(bench.settings, dtype).for_inference(mode) for mode in ("default", None))
    ways = {"compiled": lambda: fast.mix(own, sent), "plain": lambda: plain.mix(own, sent)}
    seconds = bench.seconds(f"compiled in {dtype}", ways)
    bench.row(f"{COMPILED}.{dtype}", seconds["compiled"], "s", baseline=seconds["plain"], against="as it is")


def _members(s: BenchmarkSettings) -> tuple[MemberInfo, MemberInfo]:
    """Describe the sender and the receiver."""
    return _info(s.sender, s.zoo.name), _info(s.receiver, s.zoo.name)


def _fuser(s: BenchmarkSettings, dtype: str) -> C2CFuser:
    """Build a fuser of the published size, every gate open."""
    fuser = build_random(random_artifact(*_members(s), "c2c", "mix"), s.device).to(getattr(torch, dtype))
    assert isinstance(fuser, C2CFuser)
    return fuser


def _caches(s: BenchmarkSettings, dtype: str) -> tuple[Sides, Sides]:
    """Make the receiver's own cache, and the one that was sent."""
    sent, own = (_sides(random_cache(m.spec, s.tokens, getattr(torch, dtype)), s.device) for m in _members(s))
    return own, sent


def _info(name: str, zoo: str) -> MemberInfo:
    """Describe an LLM as far as its fuser depends on it; its weights are not loaded."""
    return MemberInfo(name, "", 0, spec_of(config_of(Source(name, zoo))), "", "", "cpu", "", "", 0, 0)


def _sides(cache: KVCache, device: str) -> Sides:
    keys, values = (tuple(layer.to(device) for layer in side) for side in (cache.keys, cache.values))
    return keys, values
