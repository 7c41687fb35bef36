"""What a federation did, as counters and histograms of Ray's metrics endpoint (Prometheus).

Names and figures alone: no prompt and no answer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.util.metrics import Counter, Histogram

from fedray.types import Answer

SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
WEIGHTS = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]


class Meters:
    """The meters of one federation, told apart by their receiver."""

    def __init__(self, receiver: str) -> None:
        meter = partial(_meter, receiver)
        self._requests = meter(Counter, "requests", "Requests by how they ended", ("outcome", "tenant"))
        self._seconds = meter(Histogram, "seconds", "Seconds of a phase of a request", ("phase",), SECONDS)
        self._bytes = meter(Counter, "payload_bytes", "Bytes of messages on the wire", ())
        self._tokens = meter(Counter, "read_tokens", "Prompt tokens that a member's LLM read", ("member", "tenant"))
        self._missing = meter(Counter, "missing", "Requests that a member took no part in", ("member",))
        self._weights = meter(Histogram, "gate_weight", "Gate weight of a sender in a row", ("sender",), WEIGHTS)
        self._deranged = meter(Counter, "deranged", "Answers made once more with another's message", ("differs",))

    def answered(self, answer: Answer, tenant: str = "") -> None:
        """Count a request that was answered: whole, degraded (somebody was missing) or resumed."""
        tenant = _tag(tenant)
        outcome = "resumed" if answer.resumed else "degraded" if answer.missing else "whole"
        self._requests.inc(1, {"outcome": outcome, "tenant": tenant})
        _count(self._bytes, answer.usage.payload_bytes, {})
        for phase, seconds in answer.usage.seconds.items():
            self._seconds.observe(seconds, {"phase": _tag(phase)})
        for member, tokens in answer.usage.read_tokens.items():
            _count(self._tokens, tokens, {"member": _tag(member), "tenant": tenant})
        for missing in answer.missing:
            self._missing.inc(1, {"member": _tag(missing.member)})
        for sender, weight in (pair for row in answer.rows for pair in row.weights.items()):
            self._weights.observe(weight, {"sender": _tag(sender)})
        for way in answer.deranged:
            for row, other in zip(answer.rows, way, strict=True):
                self._deranged.inc(1, {"differs": str(row.text != other.text).lower()})

    def not_answered(self, outcome: str, tenant: str = "") -> None:
        """Count a request that was refused or failed."""
        self._requests.inc(1, {"outcome": outcome, "tenant": _tag(tenant)})


def _tag(name: str) -> str:
    """A name as Ray's tags take it, which are ASCII."""
    return name.encode("ascii", "backslashreplace").decode()


def _meter(receiver: str, kind: Any, name: str, what: str, tags: tuple[str, ...], boundaries: Any = None) -> Any:
    more = {} if boundaries is None else {"boundaries": boundaries}
    made = kind(f"fedray_{name}", what, tag_keys=("receiver", *tags), **more)
    made.set_default_tags({"receiver": _tag(receiver)})
    return made


def _count(counter: Any, number: int, tags: dict[str, str]) -> None:
    if number:  # Ray's counters take no 0
        counter.inc(number, tags)
