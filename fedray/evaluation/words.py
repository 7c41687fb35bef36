"""Short words for a row, wherever rows are shown."""

from __future__ import annotations

from collections.abc import Sequence


def who(senders: Sequence[str], order: Sequence[str]) -> str:
    """Who helps: "all 4", "first 2", "all but llama-1b" of the senders in their order, or names."""
    if len(senders) < 2:
        return "".join(senders)
    if set(senders) == set(order):
        return f"all {len(order)}"
    if tuple(senders) == tuple(order[: len(senders)]):
        return f"first {len(senders)}"
    out = [name for name in order if name not in senders]
    return f"all but {out[0]}" if len(out) == 1 and set(senders) < set(order) else " + ".join(senders)


def p_value(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


STARS = "* p<0.05  ** p<0.01  *** p<0.001, McNemar against the receiver alone"


def stars(p: float) -> str:
    """How sure a difference is."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else "n.s."


def per_token(count: float) -> str:
    """Bytes per token; of text there is less than one."""
    return f"{count:,.0f}" if count >= 10 or count == 0 else f"{count:.1f}"
