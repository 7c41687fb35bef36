"""How many tokens to draft in a round, by how many were accepted so far."""

from __future__ import annotations

import math

FIRST, LONGEST = 4, 16  # draft tokens


def next_gamma(decided: int, accepted: int) -> int:
    """gamma=auto: the longest draft that is more likely accepted whole than not, at the rate seen so far."""
    if decided == 0:
        return FIRST
    rate = min((accepted + 1) / (decided + 2), 0.999)  # one accepted and one rejected more: no rate is 0 or 1
    return max(1, min(LONGEST, math.floor(math.log(0.5) / math.log(rate))))
