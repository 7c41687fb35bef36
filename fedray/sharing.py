"""What FedAttn is told (arXiv 2511.02647). A value, like those of types.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class FedAttn:
    """How participants share one prompt (FedAttn, arXiv 2511.02647; docs/fedattn.md).

    participants: copies of one LLM, each with a segment; the last is the task publisher, who has the question and
    answers. sync_every: H; keys and values are exchanged in the layers with l mod H == offset (-1 is H-1), or where
    `placement` or an explicit list `layers` says. tokens: share of its own tokens that a participant reads at all;
    publisher_tokens: the publisher's. exchange: share of its rows that it sends, drawn or chosen anew by `score` at
    each sync; its own it keeps in full.
    """

    participants: int = 3
    sync_every: int = 2
    offset: int = 0
    placement: Literal["uniform", "shallow", "deep", "progressive", "regressive"] = "uniform"
    layers: tuple[int, ...] = ()
    segments: Literal["even", "sentence"] = "sentence"
    question_apart: bool = True
    tokens: float = 1.0
    publisher_tokens: float = 1.0
    exchange: float = 1.0
    score: Literal["random", "rare", "norm", "similar", "mass", "last"] = "random"

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
