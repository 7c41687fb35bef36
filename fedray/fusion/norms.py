"""Validate the norms of a sender's keys and values by their range in its fuser's training.

A token's norm is the 2-norm of its keys (or values) in one layer, all heads together. Norms do not detect other signs,
another prompt's cache, or random numbers of the right size.
Shape legend: L layers, N kv heads, S tokens, H head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.types import FedrayError, KVSpec, Layers
from fedray.wire.codecs import SIDES

# Honest caches of zoo=tiny, controls and odd prompts among them, had norms from 0.40 times the smallest to 1.21 times
# the largest in training (docs/log.md): both bounds lie more than three times further out.
BELOW, ABOVE = 1 / 8, 4.0
LARGEST = 1e4  # root mean square of a token's numbers, where no training has left a range
RECORD = "norms"  # its key in a manifest's record of training

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Norms:
    """Per sender layer the smallest and the largest norm of a token, of keys and of values."""

    keys: tuple[Range, ...]
    values: tuple[Range, ...]

    def to_dict(self) -> dict[str, list[list[float]]]:
        return {side: [[float(f"{norm:.4g}") for norm in pair] for pair in getattr(self, side)] for side in SIDES}

    @classmethod
    def from_dict(cls, record: Any, layers: int) -> Norms:
        """Read and validate what `to_dict` made for a sender of so many layers. Raises ValueError."""
        try:
            keys, values = ([(float(low), float(high)) for low, high in record[side]] for side in SIDES)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{RECORD} holds no pairs of numbers for keys and values") from error
        sound = all(0 <= low <= high < math.inf for low, high in (*keys, *values))
        if not sound or len(keys) != layers or len(values) != layers:
            raise ValueError(f"{RECORD} is not a smallest and a largest number for each of {layers} layers")
        return cls(tuple(keys), tuple(values))


def norms_of(caches: Iterable[KVCache]) -> Norms:
    """Measure the range over all valid tokens of some caches of one LLM."""
    lowest: list[Tensor] = []
    highest: list[Tensor] = []
    for cache in caches:
        valid_BT = cache.valid_BT()
        for side in (cache.keys, cache.values):
            found_LS = torch.stack([token_norms(layer)[valid_BT] for layer in side])
            low_L, high_L = found_LS.aminmax(dim=1)
            lowest.append(low_L)
            highest.append(high_L)
    ranges = []
    for side in (0, 1):
        low_L, high_L = torch.stack(lowest[side::2]).amin(0), torch.stack(highest[side::2]).amax(0)
        ranges.append(tuple(zip(low_L.tolist(), high_L.tolist(), strict=True)))
    return Norms(*ranges)


def token_norms(numbers: Tensor) -> Tensor:
    """Compute norms over heads and head dim: (..., N, tokens, H) -> (..., tokens), float32.

    Each head's in the precision of the numbers, a fast pass of torch's; a few bits are enough here.
    """
    return torch.linalg.vector_norm(numbers, dim=-1).float().norm(dim=-2)


def check_norms(sent: tuple[Tensor, Tensor], layers: Layers, spec: KVSpec, norms: Norms | None) -> None:
    """Validate keys and values (L, N, S, H) of the layers that came by the range in training. Raises FedrayError.

    None: the fuser's training has recorded none, and a bound that no LLM comes near is used.
    """
    for side, numbers_LNSH, chosen in zip(SIDES, sent, layers, strict=True):
        if not numbers_LNSH.numel():
            continue
        norms_LS = token_norms(numbers_LNSH)
        low_L, high_L = norms_LS.amin(1), norms_LS.amax(1)  # aminmax wakes all threads for so few numbers
        largest = LARGEST * math.sqrt(spec.kv_heads * spec.head_dim)
        for layer, low, high in zip(chosen, low_L.tolist(), high_L.tolist(), strict=True):
            lowest, highest = (0.0, largest) if norms is None else getattr(norms, side)[layer]
            if norms is not None:
                lowest, highest = lowest * BELOW, highest * ABOVE
            if not lowest <= low <= high <= highest:
                raise FedrayError(
                    f"its {side} in layer {layer} have norms of {low:.3g} to {high:.3g} per token, where "
                    f"{lowest:.3g} to {highest:.3g} are allowed{'' if norms is None else ' after training'}"
                )
