"""Compare the token ids of two prompts, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the token ids of a common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
