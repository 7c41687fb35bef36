"""Settings of SpecFed (arXiv 2604.25777), how many tokens it drafts in a round, and what its rounds come to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from fedray.methods.method import Method, ProtocolSettings
from fedray.schema import within

FIRST, LONGEST = 4, 16  # draft tokens
DRAFT, WORKERS = "qwen2.5-0.5b", ("qwen2.5-1.5b", "qwen2.5-coder-0.5b")


@dataclass(frozen=True)
class SpecFed(ProtocolSettings):
    """How a draft and its workers answer together (SpecFed, arXiv 2604.25777).

    draft: an LLM at the server in the receiver's place, "none" drafts nothing; gamma: tokens drafted per round, "auto"
    follows the acceptance rate, 0 is draft=none; top_k: entries of a distribution that travel, an integer counts them,
    a float is their share of the vocabulary; weights: of the workers in the plan's order, None is the same for all;
    weigh: by these or, row by row, by the server's gate; vocab: what of workers with another vocabulary: their tokens
    are mapped by their bytes, or they are refused; patience_s: longest that a round waits for a worker, None waits for
    ever; measure: workers send whole distributions beside, for Delta alone.
    """

    name: str = field(default="specfed", init=False)
    draft: str | None = None
    gamma: int | Literal["auto"] = 4
    top_k: int | float = 0.01
    reconstruct: Literal["renorm", "spread"] = "spread"
    weights: tuple[float, ...] | None = within(None, 0)
    weigh: Literal["fixed", "gate"] = "fixed"
    vocab: Literal["map", "strict"] = "map"
    patience_s: float | None = within(None, 0.001)
    measure: bool = False
    crosses = "token"
    receiver = DRAFT
    senders = WORKERS
    reads = ("on_missing",)

    def weighs(self, method: Method) -> bool:
        return self.weigh == "gate"

    def draws(self) -> bool:
        return self.gamma == "auto"  # the acceptance of all rows

    def canonical(self, method: Method) -> Method:
        """Who drafts is the receiver by now; where all entries travel, their reconstruction makes no difference."""
        own = replace(self, draft=None) if self.draft != "none" and self.gamma else replace(self, draft="none", gamma=0)
        whole = isinstance(self.top_k, float) and self.top_k == 1
        return replace(super().canonical(method), protocol=replace(own, reconstruct="spread") if whole else own)

    @property
    def baseline(self) -> SpecFed:
        """The same without drafts, whole distributions sent."""
        return replace(self, draft="none", gamma=0, top_k=1.0, reconstruct="spread", measure=False)

    @property
    def share(self) -> float | None:
        """The share of a distribution's entries that travels; None where `top_k` counts them."""
        return self.top_k if isinstance(self.top_k, float) else None

    def described(self) -> list[str]:
        drafts = f"gamma {self.gamma}" if self.gamma else "no drafts"
        return [drafts, f"K {self.top_k}", self.reconstruct, *["measured"] * self.measure]


@dataclass(frozen=True, slots=True)
class Speculation:
    """What rounds of SpecFed came to. A position is a place in an answer for which a distribution was reconstructed.

    drafted, decided, accepted: draft tokens of every round, those that were looked at (up to the first rejection), and
    those that stand; turns: how often a row went on, of all rows and rounds; emitted: answer tokens; forwards: of all
    workers, each over a whole batch; verified: positions that workers sent; payload_bytes: of what they sent; kept: sum
    over `positions` of the workers' weighted kept mass, 1 - epsilon; unmapped: sum over `translated` positions, of
    workers with another vocabulary, of the mass on tokens that the server's lacks.
    Where whole distributions were at hand: delta, delta_bound, rounding: sums over `measured` positions of Delta, of
    its bound 2 sum w epsilon, and of what float16 adds to it; gap, gap_bound: the same over `drafts_measured` positions
    of |Delta alpha| and of sum w epsilon; _most: the largest; _excess: the most by which one was above its bound,
    rounding included, which for the gap is Delta / 2 (negative: none was).
    """

    drafted: tuple[int, ...] = ()
    decided: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    turns: int = 0
    emitted: int = 0
    forwards: int = 0
    verified: int = 0
    payload_bytes: int = 0
    positions: int = 0
    kept: float = 0.0
    translated: int = 0
    unmapped: float = 0.0
    measured: int = 0
    delta: float = 0.0
    delta_bound: float = 0.0
    rounding: float = 0.0
    delta_most: float = 0.0
    delta_excess: float = -2.0
    drafts_measured: int = 0
    gap: float = 0.0
    gap_bound: float = 0.0
    gap_most: float = 0.0
    gap_excess: float = -1.0

    @property
    def rounds(self) -> int:
        return len(self.drafted)

    @property
    def acceptance(self) -> float | None:
        """Share of the draft tokens looked at that were accepted."""
        return sum(self.accepted) / sum(self.decided) if sum(self.decided) else None

    def __add__(self, other: Speculation) -> Speculation:
        """Both together: rounds one after another, sums added, the larger extremes."""
        most = ("delta_most", "delta_excess", "gap_most", "gap_excess")
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Speculation(**{name: max(pair) if name in most else pair[0] + pair[1] for name, pair in pairs.items()})

    def figures(self) -> dict[str, float | None]:
        """Means: tokens_per_forward: of one row and one forward pass of every worker; bytes_per_position: of what one
        worker sends; bytes_per_token: of what all send per token of an answer; epsilon: missing mass; Delta and Delta
        alpha with their bounds, where they were measured."""

        def per(total: float, count: int) -> float | None:
            return total / count if count else None

        return {
            "rounds": self.rounds,
            "drafted_per_round": per(sum(self.drafted), self.turns),
            "accepted_per_round": per(sum(self.accepted), self.turns),
            "acceptance": self.acceptance,
            "tokens_per_forward": per(self.emitted, self.turns),
            "bytes_per_position": per(self.payload_bytes, self.verified),
            "bytes_per_token": per(self.payload_bytes, self.emitted),
            "epsilon": None if not self.positions else max(0.0, 1 - self.kept / self.positions),
            "unmapped": per(self.unmapped, self.translated),
            "delta": per(self.delta, self.measured),
            "delta_bound": per(self.delta_bound, self.measured),
            "delta_most": self.delta_most if self.measured else None,
            "gap": per(self.gap, self.drafts_measured),
            "gap_bound": per(self.gap_bound, self.drafts_measured),
            "gap_most": self.gap_most if self.drafts_measured else None,
            "excess": max(self.delta_excess, self.gap_excess) if self.measured else None,
        }


def next_gamma(decided: int, accepted: int) -> int:
    """gamma=auto: the longest draft that is more likely accepted whole than not, at the rate seen so far."""
    if decided == 0:
        return FIRST
    rate = min((accepted + 1) / (decided + 2), 0.999)  # one accepted and one rejected more: no rate is 0 or 1
    return max(1, min(LONGEST, math.floor(math.log(0.5) / math.log(rate))))
