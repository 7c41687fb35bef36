"""suite=request: the first token against the published sequence, floor, text, a second turn, Ray, one more sender."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from fedray.benchmark import cost, second_turn, throughput
from fedray.benchmark.bench import Bench
from fedray.benchmark.pair import BenchmarkPair, prompt, spread
from fedray.benchmark.published import PHASES
from fedray.llm.loading import default_dtype
from fedray.types import FedrayError

FIRST = "request.first_token_over_published"
FLOOR, TEXT = "request.first_token_over_floor", "request.ttft_t2t_over_c2c"
OVER_LOCAL, TWO = "request.ray_over_local", "request.two_senders_over_one"
HINT = 64  # tokens that a sender of T2T writes


def measure(bench: Bench) -> None:
    """Measure the rows. One pair of LLMs is in memory at a time, but for ray_over_local."""
    s = bench.settings
    picked = default_dtype(s.zoo.name, s.device)
    if bench.wants(FIRST, "request.published"):
        _first_token(bench, BenchmarkPair(s), picked)
    if bench.wants(FLOOR, TEXT, "request.phase", "request.decode", second_turn.ROW, OVER_LOCAL):
        pair = BenchmarkPair(s, picked)
        _floor(bench, pair)
        cost.phases(bench, pair)
        cost.decode(bench, pair)
        second_turn.over_whole(bench, pair)
        if bench.wants(TEXT):
            ways = {"t2t": partial(pair.tell, s.tokens, HINT), "c2c": partial(pair.ask, s.tokens)}
            bench.compare(TEXT, "text", ways, f"C2C in {picked}", at_least=2.5)
        if bench.wants(OVER_LOCAL):
            _over_local(bench, pair, picked)
        del pair
    if bench.wants(TWO):
        _two_senders(bench, picked)
    if bench.wants("request.seconds", "request.bytes"):
        cost.growth(bench, BenchmarkPair(s, picked, copies=max(cost.SENDERS)))
    throughput.rows(bench)


def _first_token(bench: Bench, pair: BenchmarkPair, picked: str) -> None:
    """Measure fedray's path and the published sequence in turns, in 32 bit and in the precision that fedray picks."""
    tokens = bench.settings.tokens
    ids = prompt(tokens)
    first: dict[str, int] = {}
    split: dict[str, list[dict[str, float]]] = {}

    def published(dtype: str) -> None:
        first[dtype] = int(pair.published.first_token(ids).argmax())
        split.setdefault(dtype, []).append(pair.published.seconds)

    def ours(dtype: str) -> None:
        (token,) = pair.ask(tokens).rows[0].tokens
        if dtype == "float32" and token != first[dtype]:
            raise FedrayError(f"fedray's first token {token} is not the published sequence's {first[dtype]}")

    ways: dict[str, Callable[[], Any]] = {}
    before: dict[str, Callable[[], Any]] = {}
    for dtype in dict.fromkeys(("float32", picked)):
        for name, way in (("published", published), ("ours", ours)):
            ways[f"{name} {dtype}"] = partial(way, dtype)
            before[f"{name} {dtype}"] = partial(pair.to, dtype, packed=name == "ours")
    seconds = bench.seconds("the first token", ways, before=before)
    for dtype in split:
        name = FIRST if dtype == "float32" else f"{FIRST}.{dtype}"
        against, value = f"fedray in {dtype}", seconds[f"published {dtype}"]
        bench.row(name, value, "s", baseline=seconds[f"ours {dtype}"], against=against, at_least=1.5)
        for phase in PHASES:
            bench.row(f"request.published.{phase}.{dtype}", median(found[phase] for found in split[dtype][1:]), "s")
    value, own = seconds["published float32"], seconds[f"ours {picked}"]
    bench.row(f"{FIRST}.auto", value, "s", baseline=own, against=f"fedray in {picked}", at_least=2.5)


def _floor(bench: Bench, pair: BenchmarkPair) -> None:
    """Measure the first token against the slowest prefill, fusing, and one decode step, each by itself."""
    if not bench.wants(FLOOR):
        return
    tokens, cores = bench.settings.tokens, torch.get_num_threads()
    alone = {name: cost.reading(pair, name, tokens) for name in (pair.receiver, pair.plan.senders[0])}
    parts = {**alone, "fuse": cost.fusing(pair, tokens), "step": cost.stepping(pair, tokens)}
    share = max(1, cores // len(alone))  # prefills run side by side, each with its share of the cores
    before = dict.fromkeys(alone, partial(torch.set_num_threads, share))
    rest = dict.fromkeys(("fuse", "step", "whole"), partial(torch.set_num_threads, cores))
    ways = {**parts, "whole": partial(pair.ask, tokens)}
    seconds = bench.seconds("the floor", ways, before={**before, **rest})
    floor = max(seconds[name] for name in alone) + seconds["fuse"] + seconds["step"]
    bench.row(FLOOR, seconds["whole"], "s", baseline=floor, against="prefill + fuse + one step", at_most=1.3)


def _over_local(bench: Bench, pair: BenchmarkPair, dtype: str) -> None:
    s = bench.settings
    with spread(s, (s.sender,), dtype) as remote:
        ways = {"ray": partial(remote.ask, s.tokens), "local": partial(pair.ask, s.tokens)}
        bench.compare(OVER_LOCAL, "Ray", ways, "in process", at_most=1.1)


def _two_senders(bench: Bench, dtype: str) -> None:
    """Measure two senders of one size, each with a core of its own."""
    s = bench.settings
    both = (s.sender, s.second)
    with spread(s, both, dtype) as remote:
        ways = {"two": partial(remote.read, both, s.tokens), "one": partial(remote.read, both[:1], s.tokens)}
        bench.compare(TWO, "two senders", ways, "one sender", at_most=1.25)
