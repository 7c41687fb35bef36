"""The four types of federated inference: {homogeneous, heterogeneous} x {token, cache} (FedRefine, Appendix A)."""

from __future__ import annotations

from collections.abc import Iterable

from fedray.types import MemberInfo

CROSSING = {
    "c2c": "cache",
    "t2t": "token",
    "route": "token",
    "ensemble": "token",
    "fedattn": "cache",
    "specfed": "token",
}


def kind_of(protocol: str, members: Iterable[MemberInfo]) -> str | None:
    """As in "heterogeneous cache"; None where nothing crosses.

    members: all that take part. They are homogeneous where they share architecture, cache space and tokenizer: a cache
    or a token of one then means the same position in another, whatever its weights.
    """
    if protocol not in CROSSING:
        return None
    shapes = [(member.family, member.spec, member.tokenizer_hash) for member in members]
    if len(shapes) < 2:
        return None
    return f"{'homogeneous' if len(set(shapes)) == 1 else 'heterogeneous'} {CROSSING[protocol]}"
