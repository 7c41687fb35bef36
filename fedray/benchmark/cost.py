"""The phases of a request beside their lower bounds, and how they grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import DynamicCache

from fedray.benchmark.bench import Bench
from fedray.benchmark.pair import BenchmarkPair, Exchanges, prompt
from fedray.evaluation.figures.base import COLORS, save
from fedray.fusion.combine import Part, concat, mix
from fedray.llm import decoding
from fedray.llm.cache import KVCache, layers_of
from fedray.llm.memory import numbers

LENGTHS = (64, 128, 256, 512, 1024, 2048)
SENDERS = (1, 2, 3, 4)
ANSWER = 16  # tokens decoded to measure one


def reading(pair: BenchmarkPair, name: str, tokens: int) -> Callable[[], Any]:
    """Prepare one member's prefill."""
    llm, ids = pair.members[name].llm, prompt(tokens)
    return lambda: decoding.prefill(llm.model, [ids], llm.pad_id)


def fusing(pair: BenchmarkPair, tokens: int) -> Callable[[], Any]:
    own, spans, part = _read(pair, tokens)
    return torch.no_grad()(lambda: mix(own, spans, [part]))


def stepping(pair: BenchmarkPair, tokens: int) -> Callable[[], Any]:
    """Prepare a decode step on top of a cache."""
    model, (own, _, _) = pair.members[pair.receiver].llm.model, _read(pair, tokens)
    ids = own.lengths.new_zeros(1, 1)
    return torch.no_grad()(lambda: decoding.step(model, concat(own, []), ids))


def phases(bench: Bench, pair: BenchmarkPair) -> None:
    """Measure seconds of each phase of a request, beside a lower bound.

    It is operations over the rate of a large product or bytes over a copy's bandwidth, whichever is more.
    """
    tokens = bench.settings.tokens
    if not bench.wants("request.phase"):
        return
    receiver, sender = (pair.members[name].llm.model for name in (pair.receiver, pair.plan.senders[0]))
    size = receiver.dtype.itemsize
    rate, bandwidth = rates(bench, receiver.dtype, receiver.device)
    body = {name: numbers(model.model.layers) for name, model in (("receiver", receiver), ("sender", sender))}
    fuser, head = numbers(pair.fuser()), numbers(receiver.lm_head)
    once = {"prefill": body["receiver"], f"prefill[{pair.plan.senders[0]}]": body["sender"], "fuse": fuser}
    floors = {phase: max(2 * n * tokens / rate, n * size / bandwidth) for phase, n in once.items()}
    floors["decode"] = (body["receiver"] + head) * size / bandwidth
    found = [pair.ask(tokens).usage.seconds for _ in range(bench.settings.repeats + 1)][1:]
    for phase in found[0]:
        name = f"request.phase.{phase.partition('[')[0]}{'.sender' * ('[' in phase)}"
        seconds = median(of_run[phase] for of_run in found)
        bench.row(name, seconds, "s", baseline=floors.get(phase), against="operations and bytes")
    bench.row("request.phase.floor", sum(floors.values()), "s")


def decode(bench: Bench, pair: BenchmarkPair) -> None:
    """Measure seconds per decoded token, beside a cache that is copied for every token (transformers' DynamicCache)."""
    model, (own, _, _) = pair.members[pair.receiver].llm.model, _read(pair, bench.settings.tokens)
    ids = own.lengths.new_zeros(1, 1)

    @torch.no_grad()
    def answer(grown: Callable[[decoding.Context], decoding.Context]) -> None:
        context = grown(concat(own, []))
        for _ in range(ANSWER):
            decoding.step(model, context, ids)

    def copied(context: decoding.Context) -> decoding.Context:
        context.cache = DynamicCache(layers_of(context.cache))
        return context

    ways = {"slots": lambda: answer(lambda context: context), "dynamic": lambda: answer(copied)}
    seconds = bench.seconds("decoding", ways)
    slots, dynamic = seconds["slots"] / ANSWER, seconds["dynamic"] / ANSWER
    bench.row("request.decode_s_per_token", slots, "s", baseline=dynamic, against="DynamicCache", at_most=1.05)


def growth(bench: Bench, pair: BenchmarkPair) -> None:
    """Measure seconds to the first token and bytes on the wire, by the prompt's length and the number of senders."""
    by_length = {n: _asked(bench, pair.with_senders(1), n) for n in LENGTHS if n <= bench.settings.longest}
    by_senders = {n: _asked(bench, pair.with_senders(n), bench.settings.tokens) for n in SENDERS}
    for what, found in (("tokens", by_length), ("senders", by_senders)):
        for n, (seconds, size) in found.items():
            bench.row(f"request.seconds_at_{n}_{what}", seconds, "s")
            bench.row(f"request.bytes_at_{n}_{what}", size, "byte")
    draw(by_length, by_senders, bench.settings.output / "figures" / "growth.png", f"zoo={bench.settings.zoo.name}")


def draw(
    by_length: dict[int, tuple[float, int]], by_senders: dict[int, tuple[float, int]], path: Path, of: str
) -> Path:
    """Draw both against both; the line through the first and the last point shows what linear growth would be."""
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    grid = figure.subplots(2, 2)
    for column, (found, label) in enumerate(((by_length, "prompt tokens"), (by_senders, "senders"))):
        for row, (unit, scale) in enumerate((("seconds to the first token", 1.0), ("MiB on the wire", 2.0**-20))):
            axes = grid[row][column]
            x, y = np.array(list(found)), np.array([of_n[row] * scale for of_n in found.values()])
            axes.plot(x, y, "o-", color=COLORS[0])
            axes.plot(x[[0, -1]], y[[0, -1]], "--", color=COLORS[1], linewidth=1)
            axes.set(xlabel=label, ylabel=unit)
            axes.set_ylim(bottom=0)
    figure.suptitle(f"What one more token and one more sender cost\n{of}", fontsize=11)
    return save(figure, path)


def _asked(bench: Bench, exchanges: Exchanges, tokens: int) -> tuple[float, int]:
    exchanges.ask(tokens)
    usages = [exchanges.ask(tokens).usage for _ in range(max(1, bench.settings.repeats // 3))]
    return median(usage.seconds["total"] for usage in usages), usages[0].payload_bytes


def _read(pair: BenchmarkPair, tokens: int) -> tuple[KVCache, list[list[tuple[int, int]]], Part]:
    """Prefill the receiver's cache of a prompt, and a sender's share in it."""
    ids, sender = prompt(tokens), pair.plan.senders[0]
    caches = {name: decoding.prefill(pair.members[name].llm.model, [ids], 0)[0] for name in (pair.receiver, sender)}
    own = caches[pair.receiver]
    part = Part(sender, pair.fuser(), caches[sender], own.lengths.new_ones(1, dtype=torch.float32))
    return own.crop(own.lengths - 1), [[(i, i + 1) for i in range(tokens)]], part


def rates(bench: Bench, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Operations per second of a large product, and bytes per second of a copy (read and written)."""
    side, size = (8192, 1 << 32) if device.type == "cuda" else (2048, 1 << 28)  # long enough for a clock
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source: Tensor = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = bench.seconds("the machine", {"product": lambda: a @ b, "copy": lambda: target.copy_(source)})
    return 2 * side**3 / seconds["product"], 2 * source.numel() / seconds["copy"]
