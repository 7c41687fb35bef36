"""Token ids of two prompts, compared. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many token ids are the same from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
