"""Draws that are decided by what they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(shape: tuple[int, ...], *purpose: object) -> Tensor:
    """Uniform numbers from [0, 1) that are decided by a purpose: the same call draws the same again."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(shape, generator=generator, dtype=torch.float64)  # float32 has steps of 6e-8


def padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """(B, width) ids, 0 behind the last."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long).reshape(len(rows), width)
