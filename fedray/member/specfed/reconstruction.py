"""From top-K entries to distributions again, and from these to one average (SpecFed, arXiv 2604.25777, step 3).

With rho the kept mass and epsilon = 1 - rho, the L1 error of one distribution is 2 epsilon under `renorm` and at most
that under `spread`; of the weighted average it is at most 2 sum_i w_i epsilon_i, and the acceptance rate is off by at
most half of the average's error. Shape legend: N positions, K entries kept, V vocabulary, W workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

RENORM, SPREAD = "renorm", "spread"


def reconstruct(ids_NK: Tensor, probabilities_NK: Tensor, vocabulary: int, how: str) -> Tensor:
    """(N, V) distributions. renorm: the kept entries, scaled to sum to one; spread: the kept entries as they are, the
    missing mass spread evenly over the others. ids: ascending in every row; those beyond the vocabulary are left out
    and count as missing mass."""
    if ids_NK.shape[1] == vocabulary and bool((ids_NK[:, -1] == vocabulary - 1).all()):  # ascending: all are there
        return probabilities_NK / probabilities_NK.sum(1, keepdim=True)
    inside_NK = ids_NK < vocabulary
    kept_NK = torch.where(inside_NK, probabilities_NK, 0.0)
    found_NV = kept_NK.new_zeros(len(kept_NK), vocabulary + 1)  # the last column takes what lies beyond
    if how == SPREAD:
        others_N = vocabulary - inside_NK.sum(1)
        found_NV += ((1 - kept_NK.sum(1)).clamp(min=0) / others_N.clamp(min=1))[:, None]
    found_NV = found_NV.scatter(1, ids_NK.clamp(max=vocabulary), kept_NK)[:, :vocabulary]
    return found_NV / found_NV.sum(1, keepdim=True).clamp(min=torch.finfo(found_NV.dtype).tiny)


def average(distributions_WNV: list[Tensor], weights_WN: Tensor) -> Tensor:
    """(N, V): the workers' weighted average; at every position the weights are scaled to sum to one."""
    shares_WN = weights_WN / weights_WN.sum(0).clamp(min=torch.finfo(weights_WN.dtype).tiny)
    total_NV = torch.zeros_like(distributions_WNV[0])
    for share_N, found_NV in zip(shares_WN, distributions_WNV, strict=True):
        total_NV += share_N[:, None] * found_NV
    return total_NV


def l1(one_NV: Tensor, two_NV: Tensor) -> Tensor:
    """(N,): the sum of absolute differences, between 0 and 2."""
    return (one_NV - two_NV).abs().sum(1)
