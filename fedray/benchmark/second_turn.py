"""A conversation's second turn, which is read on from the first, against reading the whole conversation anew."""

from __future__ import annotations

from functools import partial

from fedray.benchmark.bench import Bench
from fedray.benchmark.pair import BenchmarkPair, prompt
from fedray.types import Answer, FedrayError, Talk

ROW = "request.turn_over_whole"
MORE = 32  # tokens of the first turn's answer and the second question


def over_whole(bench: Bench, pair: BenchmarkPair) -> None:
    """Measure seconds to the second turn's first token. Both fuse all of it: what is saved are the prefills."""
    if not bench.wants(ROW):
        return
    tokens = bench.settings.tokens
    ids, talk = prompt(tokens + MORE), Talk(session="conversation")
    answers: dict[str, Answer] = {}

    def ask(way: str, talk: Talk | None) -> None:
        answers[way] = pair.read_on(ids, talk)

    ways = {"turn": partial(ask, "turn", talk), "whole": partial(ask, "whole", None)}
    before = {"turn": partial(pair.read_on, ids[:tokens], talk)}  # what was read beyond the first turn is dropped
    seconds = bench.seconds("a second turn", ways, before=before)
    pair.group.release(talk.session, pair.group.members)
    read, exact = answers["turn"].usage.read_tokens, pair.group.members[pair.receiver].dtype == "float32"
    if set(read.values()) != {MORE} or (exact and answers["turn"].rows[0].tokens != answers["whole"].rows[0].tokens):
        raise FedrayError(
            f"a second turn of {MORE} tokens read {dict(read)}, or is answered differently than the whole"
        )
    bench.row(ROW, seconds["turn"], "s", baseline=seconds["whole"], against=f"all {tokens + MORE} tokens read anew")
