"""What stands around a fuser is the same few operations however many layers there are: a GPU has to start each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedray.border import Border
from fedray.fusion import combine
from fedray.fusion.build import build_fuser
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm.cache import KVCache
from fedray.types import KVSpec

TOKENS = 6
VIEWS = {"select", "unbind", "as_strided", "view", "transpose", "slice", "expand", "detach", "permute", "unsqueeze"}


class Works(TorchDispatchMode):
    """Counts operations that a device has to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def cache(spec: KVSpec) -> KVCache:
    keys, values = (torch.randn(spec.layers, 1, spec.kv_heads, TOKENS, spec.head_dim).unbind() for _ in range(2))
    return KVCache(spec, keys, values, torch.tensor([TOKENS]), torch.arange(TOKENS)[None])


def made(layers: int, grouped: bool = True) -> tuple[C2CFuser, KVCache, combine.Part]:
    torch.manual_seed(layers)
    sender, receiver = KVSpec(layers, 2, 4), KVSpec(layers, 3, 4)
    fuser = build_fuser(FuserConfig("c2c", "mix", sender, receiver, hidden=16, intermediate=16)).eval()
    assert isinstance(fuser, C2CFuser)
    fuser.grouped = grouped
    for name, parameter in fuser.named_parameters():
        if name.endswith("gate_logit"):
            parameter.data.fill_(-1.0 if name.startswith("projectors.1.key") else 1.0)
    spans = tuple((i, i + 1) for i in range(TOKENS))
    part = combine.Part("sender", fuser, cache(sender), torch.full((1,), 0.5), (spans,), lengths=(TOKENS,))
    return fuser, cache(receiver), part


@torch.no_grad()
def test_operations_do_not_grow_with_layers() -> None:
    counts = []
    for layers in (5, 9):
        _, own, part = made(layers)
        spans = [list(part.spans[0])]
        combine.fuse("mix", own, spans, [part], border=Border())  # which gates are open is asked once
        with Works() as works:
            combine.fuse("mix", own, spans, [part], border=Border())
        counts.append(works.counts)
    assert counts[0] == counts[1] and sum(counts[0].values()) < 100, counts


@pytest.mark.parametrize("grouped", [True, False])
@torch.no_grad()
def test_they_give_what_layers_one_by_one_give(grouped: bool) -> None:
    fuser, own, part = made(4, grouped)
    mixed = combine.mix(own, [list(part.spans[0])], [part], border=Border())
    for t, (s, projector) in enumerate(zip(fuser.layers, fuser.projectors, strict=True)):
        wanted = projector(part.cache.keys[s], part.cache.values[s], own.keys[t], own.values[t])
        for got, before, change in zip(
            (mixed.keys[t], mixed.values[t]), (own.keys[t], own.values[t]), wanted, strict=True
        ):
            torch.testing.assert_close(got, before + 0.5 * change, atol=1e-6, rtol=1e-5)
    assert torch.equal(mixed.keys[1], own.keys[1]), "its gate is closed"
    context = combine.concat(mixed, [])
    for layer, key in zip(context.cache.layers, mixed.keys, strict=True):
        assert torch.equal(layer.keys, key)  # pyright: ignore[reportArgumentType]
