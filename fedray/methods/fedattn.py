"""Settings of FedAttn (arXiv 2511.02647): in which layers participants exchange, and who reads which segment.

A prompt's segments are contiguous, one per participant, the task publisher's last. Text only: nothing is tokenized. A
cut changes no token of Qwen's and Llama 3's: it lies before the first line that shows something after line breaks, or
in front of a single space, where their pre-tokenizers begin a new piece. GPT-2's kind joins blank lines in front of a
cut, which it reads apart elsewhere. No part is blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from fedray.errors import FedrayError
from fedray.methods.method import Method, ProtocolSettings, Wire
from fedray.prompts import notes_prompt
from fedray.schema import within
from fedray.text import one_line

_LINE = r"(?<=\n)(?=[^\S\r\n]*\S)"  # a blank line belongs to what stands above it
_CUTS = {
    "even": re.compile(_LINE + r"|(?<=\S)(?= \S)"),  # between words
    "sentence": re.compile(_LINE + r"|(?<=[.?!])(?= \S)"),
}


@dataclass(frozen=True)
class FedAttn(ProtocolSettings):
    """How participants share one prompt (FedAttn, arXiv 2511.02647; docs/fedattn.md).

    participants: copies of one LLM, each with a segment; the last is the task publisher, who has the question and
    answers. sync_every: H; keys and values are exchanged in the layers with l mod H == offset (-1 is H-1), or where
    `placement` or an explicit list `layers` says. tokens: share of its own tokens that a participant reads at all;
    publisher_tokens: the publisher's. exchange: share of its rows that it sends, drawn or chosen anew by `score` at
    each sync; its own it keeps in full.
    """

    name: str = field(default="fedattn", init=False)
    participants: int = within(3, 1, 64)
    sync_every: int = within(1, 1)
    offset: int = 0
    placement: Literal["uniform", "shallow", "deep", "progressive", "regressive"] = "uniform"
    layers: tuple[int, ...] = ()
    segments: Literal["even", "sentence"] = "sentence"
    question_apart: bool = True
    tokens: float = 1.0
    publisher_tokens: float = 1.0
    exchange: float = 1.0
    score: Literal["random", "rare", "norm", "similar", "mass", "last"] = "random"
    crosses = "cache"
    copies = True
    reads = ("on_missing",)

    def canonical(self, method: Method) -> Method:
        score = self.score if self.exchange < 1 else FedAttn.score
        return replace(super().canonical(method), protocol=replace(self, score=score), wire=Wire(method.wire.codec))

    def described(self) -> list[str]:
        return [str(self)]

    def __str__(self) -> str:
        """As in N=3, H=2, exchange 50% random: what differs from the published way is named."""
        said = [f"N={self.participants}"]
        if self.layers:
            said.append(f"layers {'+'.join(map(str, self.layers))}")
        else:
            said.append(f"H={self.sync_every}")
            said += [f"offset {self.offset}"] * (self.offset != 0)
            said += [self.placement] * (self.placement != "uniform")
        said += ["even"] * (self.segments == "even") + ["question not apart"] * (not self.question_apart)
        said += [f"tokens {self.tokens:.0%}"] * (self.tokens < 1)
        said += [f"publisher {self.publisher_tokens:.0%}"] * (self.publisher_tokens < 1)
        said += [f"exchange {self.exchange:.0%} {self.score}"] * (self.exchange < 1)
        return ", ".join(said)


def sync_layers(how: FedAttn, depth: int) -> tuple[int, ...]:
    """The sync layers of an LLM of `depth` layers, ascending; every placement has as many as `uniform`.

    uniform: those with l mod H == offset. shallow, deep: evenly over the first or last half (over more where half has
    not as many). progressive: the gaps shrink with depth, l_i = L (1 - (1 - i/S)²); regressive: they grow,
    l_i = L (i/S)². >>> sync_layers(FedAttn(sync_every=3), 6) gives (0, 3).
    Raises FedrayError where H is beyond the depth, where all layers sync and are to be placed, and where an explicit
    layer is not there.
    """
    if how.layers:
        beyond = [layer for layer in how.layers if not 0 <= layer < depth]
        if beyond:
            raise FedrayError(f"protocol.layers names layer {beyond[0]}: the LLM's go from 0 to {depth - 1}")
        return tuple(sorted(set(how.layers)))
    if not 1 <= how.sync_every <= depth:
        raise FedrayError(
            f"protocol.sync_every={how.sync_every} must be from 1 to {depth}, the layers of the LLM: beyond it nobody "
            "would hear of the others"
        )
    if how.sync_every == 1 and how.placement != "uniform":
        raise FedrayError(
            f"protocol.placement={how.placement} says which layers sync where not all do: add protocol.sync_every=2 or "
            "more"
        )
    uniform = range(how.offset % how.sync_every, depth, how.sync_every)
    count = len(uniform)
    match how.placement:
        case "uniform":
            return tuple(uniform)
        case "shallow" | "deep":
            within = max(count, (depth + 1) // 2)
            first = 0 if how.placement == "shallow" else depth - within
            return tuple(first + i * within // count for i in range(count))
        case "progressive":
            wished = [round(depth * (1 - (1 - i / count) ** 2)) for i in range(count)]
        case "regressive":
            wished = [round(depth * (i / count) ** 2) for i in range(count)]
    return _apart(wished, depth)


def _apart(wished: list[int], depth: int) -> tuple[int, ...]:
    """Strictly ascending and inside the depth, each as near to where it was wished as the others let it."""
    layers: list[int] = []
    for i, layer in enumerate(wished):
        lowest = layers[-1] + 1 if layers else 0
        layers.append(min(max(layer, lowest), depth - len(wished) + i))
    return tuple(layers)


def segments(prompt: str, how: FedAttn, document: str = "") -> tuple[str, ...]:
    """The parts of a prompt, which joined are the prompt; document: notes that stand above it.

    With `question_apart` the last part is the prompt under its document, or the last sentence where there is none.
    Raises FedrayError where there are fewer parts than participants.
    """
    prompt = prompt.strip()
    whole = notes_prompt(document.splitlines(), prompt)
    if how.participants == 1:
        return (whole,)
    last = len(whole) - len(prompt)  # where the question begins
    if how.question_apart and not last:
        last = max((match.start() for match in _CUTS["sentence"].finditer(whole)), default=0)
    end = last if how.question_apart else len(whole)
    possible = [match.start() for match in _CUTS[how.segments].finditer(whole) if match.start() < end]
    wanted = how.participants - 1 - how.question_apart
    if (how.question_apart and not last) or len(possible) < wanted:
        raise too_many(how, len(possible) + 1 + (how.question_apart and last > 0), whole)
    cuts = [*_even(possible, wanted, end), *([last] if how.question_apart else [])]
    return tuple(whole[a:b] for a, b in pairwise([0, *cuts, len(whole)]))


def id_segments(ids: Sequence[int], how: FedAttn) -> tuple[tuple[int, ...], ...]:
    """A prompt's token ids in even parts. Raises FedrayError where there are fewer ids than participants."""
    if len(ids) < how.participants:
        raise too_many(how, len(ids), f"{len(ids)} token ids")
    cuts = [len(ids) * k // how.participants for k in range(how.participants + 1)]
    return tuple(tuple(ids[a:b]) for a, b in pairwise(cuts))


def too_many(how: FedAttn, there: int, prompt: str) -> FedrayError:
    shown = one_line(prompt)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    unit = "words" if how.segments == "even" else "sentences"
    return FedrayError(
        f"protocol.participants={how.participants} are more than the segments of {shown!r}, which has {there} (the "
        f"context in {unit}{', the question apart' if how.question_apart else ''}): ask with more context, or take "
        f"fewer participants{'' if how.segments == 'even' else ', or protocol.segments=even'}"
    )


def _even(possible: Sequence[int], wanted: int, end: int) -> list[int]:
    """`wanted` ascending cuts, each the nearest to its even share that leaves enough for those after it."""
    cuts: list[int] = []
    first = 0
    for k in range(1, wanted + 1):
        left = range(first, len(possible) - (wanted - k))
        best = min(left, key=lambda i: abs(possible[i] - end * k / (wanted + 1)))
        cuts.append(possible[best])
        first = best + 1
    return cuts
