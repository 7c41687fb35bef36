"""Fit a linear map of low rank in closed form: ridge regression, then the directions that matter most.

Shape legend: M rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 20  # one row in so many chooses the penalty
PENALTIES = (0.03, 0.1, 0.3, 1.0)  # on a row's inputs, which are in standard deviations
AT_ONCE = 1024  # outputs


@dataclass(frozen=True, slots=True)
class Ridge:
    """weight_IO: from inputs to targets, both in standard deviations; mean_O, spread_O: of the targets; factor_II:
    factor @ factor.T are the second moments of the inputs."""

    weight_IO: Tensor
    mean_O: Tensor
    spread_O: Tensor
    factor_II: Tensor


def ridge(inputs_MI: Tensor, targets_MO: Tensor, held_out_M: Tensor) -> Ridge:
    """Fit targets by inputs in standard deviations, with the penalty that tells the held-out rows best.

    targets_MO may be in 16 bit; what is computed of them at once are some outputs.
    """
    known_MI = inputs_MI[~held_out_M]
    moments = zip(*_moments(known_MI, targets_MO[~held_out_M]), strict=True)
    mean_O, spread_O, both_IO = (torch.cat(parts, dim=-1) for parts in moments)
    moments_II = known_MI.T @ known_MI / len(known_MI)
    some = torch.randperm(len(mean_O), generator=torch.Generator().manual_seed(0))[: AT_ONCE // 2]
    wanted_MO = (targets_MO[held_out_M][:, some].float() - mean_O[some]) / spread_O[some]
    tried = {}
    for penalty in PENALTIES:
        made_MO = inputs_MI[held_out_M] @ torch.cholesky_solve(both_IO[:, some], _factor(moments_II, penalty))
        tried[float((made_MO - wanted_MO).square().mean())] = penalty
    solved = torch.cholesky_solve(both_IO, _factor(moments_II, tried[min(tried)]))
    return Ridge(solved, mean_O, spread_O, _factor(moments_II, PENALTIES[0]))


def low_rank(fits: Sequence[Ridge], rank: int) -> tuple[Tensor, Tensor]:
    """Factor the weights of fits of the same inputs together: (I, R), and (R, O) of all their outputs.

    Of that rank it loses least on rows like the first fit's (reduced-rank regression).
    """
    weight_IO = torch.cat([fit.weight_IO for fit in fits], dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        *_, right_OR = torch.svd_lowrank(fits[0].factor_II.T @ weight_IO, q=min(rank, *weight_IO.shape), niter=2)
    return weight_IO @ right_OR, right_OR.T


def _moments(inputs_MI: Tensor, targets_MO: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Mean and spread of the targets, and their products with the inputs."""
    found = []
    for some_MO in targets_MO.split(AT_ONCE, dim=1):
        wanted_MO = some_MO.float()
        mean_O, spread_O = wanted_MO.mean(0), wanted_MO.std(0).clamp(min=1e-4)
        found.append((mean_O, spread_O, inputs_MI.T @ ((wanted_MO - mean_O) / spread_O) / len(inputs_MI)))
    return found


def _factor(moments_II: Tensor, penalty: float) -> Tensor:
    return torch.linalg.cholesky(moments_II + penalty * torch.eye(len(moments_II)))
