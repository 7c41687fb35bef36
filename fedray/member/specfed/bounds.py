"""What a round's reconstruction lost, against the paper's bounds (SpecFed, arXiv 2604.25777).

Shape legend: W workers, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedray.member.specfed.acceptance import acceptance_rate
from fedray.member.specfed.reconstruction import average, l1
from fedray.methods.specfed import Speculation
from fedray.wire.distributions import SparseRows


def figures(
    entries: Sequence[SparseRows], weights_WN: Tensor, p_NV: Tensor, q_NV: Tensor | None, drafts_N: Tensor | None
) -> Speculation:
    """Kept mass of every position; where workers sent whole distributions, Delta and |Delta alpha| beside their bounds.

    p_NV: the average as it was reconstructed; q_NV: what the draft at a position was drawn from, drafts_N: where there
    is one (None: the likeliest token was drafted, and nothing is said of alpha).
    """
    voted_N = weights_WN.sum(0) > 0
    shares_WN = weights_WN / weights_WN.sum(0).clamp(min=torch.finfo(weights_WN.dtype).tiny)
    kept_WN = torch.stack([e.at_all(e.probabilities_NK.sum(1).clamp(max=1.0)) for e in entries])
    found = Speculation(positions=int(voted_N.sum()), kept=float((shares_WN * kept_WN).sum()))
    if any(e.whole_NV is None for e in entries) or not bool(voted_N.any()):
        return found
    # 1. what was left out of the whole distributions: epsilon_i, and with it the bounds
    vocabulary = p_NV.shape[1]
    wholes = [e.at_all(e.whole_NV) for e in entries if e.whole_NV is not None]
    exact_NV = average([_as_wide(whole, vocabulary) for whole in wholes], weights_WN)
    kept_exactly = [(e, e.whole_NV.gather(1, e.ids_NK)) for e in entries if e.whole_NV is not None]
    left_out = [e.at_all(1 - kept_NK.sum(1)) for e, kept_NK in kept_exactly]
    rounded = [e.at_all(l1(e.probabilities_NK, kept_NK) / kept_NK.sum(1)) for e, kept_NK in kept_exactly]
    bound_N, rounding_N = (2 * (shares_WN * torch.stack(of)).sum(0) for of in (left_out, rounded))
    # 2. Delta <= 2 sum w epsilon, beside what float16 rounds
    all_N = l1(p_NV, exact_NV) + (1 - exact_NV.sum(1)).clamp(min=0)  # what was not mapped is missing too
    delta_N = all_N[voted_N]
    found += Speculation(
        measured=len(delta_N),
        delta=float(delta_N.sum()),
        delta_bound=float(bound_N[voted_N].sum()),
        rounding=float(rounding_N[voted_N].sum()),
        delta_most=float(delta_N.max()),
        delta_excess=float((delta_N - (bound_N + rounding_N)[voted_N]).max()),
    )
    if q_NV is None or drafts_N is None or not bool((drafts_N & voted_N).any()):
        return found
    # 3. |Delta alpha| <= Delta / 2 <= sum w epsilon
    at_N = drafts_N & voted_N
    reconstructed_N, exact_N = (acceptance_rate(p[at_N], q_NV[at_N]) for p in (p_NV, exact_NV))
    gap_N = (reconstructed_N - exact_N).abs()
    return found + Speculation(
        drafts_measured=len(gap_N),
        gap=float(gap_N.sum()),
        gap_bound=float(bound_N[at_N].sum()) / 2,
        gap_most=float(gap_N.max()),
        gap_excess=float((gap_N - all_N[at_N] / 2).max()),
    )


def _as_wide(distribution_NV: Tensor, vocabulary: int) -> Tensor:
    """Without columns beyond the server's vocabulary, and with zeros where a worker has fewer."""
    return torch.nn.functional.pad(distribution_NV, (0, vocabulary - distribution_NV.shape[1]))
