"""What the server of SpecFed keeps of a batch between rounds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedray.types import Round


@dataclass(slots=True)
class Drafts:
    """answers: the tokens of every row so far (of a worker: with the last drafts that it was told); room: how many it
    may have in all; drafts: of the round under way, and q_BGV what they were drawn from (None where they are the
    likeliest ones); stuck: rows whose next position nobody had a distribution for, and which are not drafted for in the
    next round; rounds: that have been decided, and reply: of the last one."""

    answers: list[list[int]]
    room: list[int]
    ended: list[bool]
    drafts: list[list[int]] = field(default_factory=list)
    q_BGV: Tensor | None = None
    stuck: set[int] = field(default_factory=set)
    rounds: int = 0
    reply: Round | None = None

    def active(self) -> tuple[int, ...]:
        return tuple(b for b, ended in enumerate(self.ended) if not ended)

    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.answers))


def uniform(shape: tuple[int, ...], *purpose: object) -> Tensor:
    """Uniform numbers from [0, 1) that are decided by a purpose: the same call draws the same again."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.rand(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True)))


def padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """(B, width) ids, 0 behind the last."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long).reshape(len(rows), width)
