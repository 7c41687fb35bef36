"""Trace a request: a span per phase and member, without the texts of a private prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from fedray.tracking.store import Operation
from fedray.types import Answer, Request

# In the order they happen.
PHASES = ("rephrase", "hint", "prefill", "gate", "pack", "transfer", "unpack", "fuse", "decode")
TOTAL = "total"  # the wall-clock seconds of the whole request


def pseudonymize(key: bytes, value: Any) -> Any:
    """Replace texts by keyed hash and length: equal texts stay equal, and without the key none can be guessed."""
    if isinstance(value, str):
        digest = hashlib.blake2b(value.encode(), key=key, digest_size=8).hexdigest()
        return f"{digest} ({len(value)} characters)"
    return [pseudonymize(key, item) for item in value] if isinstance(value, Sequence) else value


def trace(request: Request, answer: Answer, started_ns: int, shown: Callable[[Any], Any]) -> Operation:
    """Make the journal entry of a request: a root span, and a child per phase and member. shown: of texts.

    Members measure seconds, not times of day: phases are laid out in the order they happen, members side by side.
    """
    return {
        "do": "trace",
        "name": request.id,
        "start_ns": started_ns,
        "inputs": {"prompts": shown(list(request.prompts))},
        "outputs": {"answers": shown([row.text for row in answer.rows])},
        "attributes": {
            "receiver": answer.receiver,
            "senders": ", ".join(answer.senders),
            "missing": ", ".join(f"{m.member}: {m.reason}" for m in answer.missing),
            "payload_bytes": answer.usage.payload_bytes,
            "prompt_tokens": answer.usage.prompt_tokens,
            "seconds": answer.usage.seconds.get(TOTAL, 0.0),
        },
        "spans": _spans(answer, started_ns),
    }


def _spans(answer: Answer, started_ns: int) -> list[Operation]:
    laid: list[Operation] = []
    begin = started_ns
    stages: dict[str, list[tuple[str, float]]] = {stage: [] for stage in PHASES}
    for phase, seconds in answer.usage.seconds.items():
        if phase != TOTAL:
            stages.setdefault(phase.partition("[")[0], []).append((phase, seconds))
    for stage, phases in stages.items():
        for phase, seconds in phases:
            member = phase.partition("[")[2].removesuffix("]") or answer.receiver
            attributes: dict[str, Any] = {"member": member, "seconds": seconds}
            if stage == "transfer":
                attributes["payload_bytes"] = answer.usage.payload_bytes
            end = begin + round(seconds * 1e9)
            laid.append({"name": phase, "start_ns": begin, "end_ns": end, "attributes": attributes})
        begin += round(max((seconds for _, seconds in phases), default=0.0) * 1e9)
    return laid
