"""Which tokens of a draft are accepted, and the token that follows them (SpecFed, arXiv 2604.25777, step 4).

Lossless: whatever the draft says, the tokens that come out are distributed as p. Shape legend: B batch, G draft tokens
(gamma), Q = G + 1 positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def accept(
    p_BQV: Tensor, q_BGV: Tensor, drafts_BG: Tensor, counts_B: Tensor, draws_BR: Tensor
) -> tuple[Tensor, Tensor]:
    """(accepted (B,), token (B,)): how many draft tokens stand, and the token that goes behind them.

    p: what the answer shall be distributed as at every position; q: what the drafts were drawn from; counts: how many
    of a row's drafts there are, the rest is padding; draws: G + 1 uniform numbers from [0, 1) per row.
    """
    count_G = torch.arange(drafts_BG.shape[1], device=counts_B.device)
    # 1. draft token x stands with probability min(1, p(x) / q(x)), as long as all before it do
    p_BG, q_BG = (t[:, : len(count_G)].gather(2, drafts_BG[..., None])[..., 0] for t in (p_BQV, q_BGV))
    stands_BG = (draws_BR[:, :-1] * q_BG < p_BG) & (count_G[None] < counts_B[:, None])
    accepted_B = stands_BG.long().cumprod(1).sum(1)
    # 2. behind a rejected one: norm(max(0, p - q)); behind the last one, if all stand: p
    rows_B = torch.arange(len(accepted_B), device=accepted_B.device)
    follow_BV = p_BQV[rows_B, accepted_B]
    rejected_B = accepted_B < counts_B
    if len(count_G):
        q_BV = q_BGV[rows_B, accepted_B.clamp(max=len(count_G) - 1)]
        residual_BV = (follow_BV - q_BV).clamp(min=0)
        rejected_B = rejected_B & (residual_BV.sum(1) > 0)
        follow_BV = torch.where(rejected_B[:, None], residual_BV, follow_BV)
    return accepted_B, draw(follow_BV, draws_BR[:, -1])


def accept_greedy(p_BQV: Tensor, drafts_BG: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """The same at temperature 0: a draft token stands where it is the likeliest one."""
    best_BQ = p_BQV.argmax(2)
    count_G = torch.arange(drafts_BG.shape[1], device=counts_B.device)
    stands_BG = (best_BQ[:, : len(count_G)] == drafts_BG) & (count_G[None] < counts_B[:, None])
    accepted_B = stands_BG.long().cumprod(1).sum(1)
    return accepted_B, best_BQ[torch.arange(len(accepted_B), device=accepted_B.device), accepted_B]


def draw(weights_BV: Tensor, draws_B: Tensor) -> Tensor:
    """One index per row, as likely as its weight (which need not sum to one), by a uniform number from [0, 1)."""
    sums_BV = weights_BV.double().cumsum(1)
    wanted_B1 = (draws_B.double() * sums_BV[:, -1])[:, None]
    found_B = torch.searchsorted(sums_BV, wanted_B1, right=True)[:, 0]
    last_B = (weights_BV > 0).long().cumsum(1).argmax(1)  # rounding must not draw what has no weight
    return torch.minimum(found_B, last_B)


def acceptance_rate(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """(N,): how likely a draft token is accepted, alpha = sum over x of min(p(x), q(x))."""
    return torch.minimum(p_NV, q_NV).sum(1)


def distribution(logits_NV: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature; at 0, where the likeliest is taken, as they are."""
    return torch.softmax(logits_NV.float() / (temperature if temperature > 0 else 1.0), dim=-1)


def uniform(shape: tuple[int, ...], *purpose: object) -> Tensor:
    """Uniform numbers from [0, 1) that are decided by a purpose: the same call draws the same again."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(shape, generator=generator, dtype=torch.float64)  # float32 has steps of 6e-8


def padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """(B, width) ids, 0 behind the last."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long).reshape(len(rows), width)
