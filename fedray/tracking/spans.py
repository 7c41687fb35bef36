"""What a trace shows of a request: a span per phase and member, and nothing of a private prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.tracking.store import Operation
from fedray.types import Answer, Request

# In the order they happen.
PHASES = ("rephrase", "hint", "prefill", "gate", "pack", "transfer", "unpack", "fuse", "decode")
TOTAL = "total"  # the wall-clock seconds of the whole request


@dataclass(frozen=True, slots=True)
class Veil:
    """Replaces texts by keyed hash and length: equal texts stay equal, and without the key none can be guessed."""

    key: bytes

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            digest = hashlib.blake2b(value.encode(), key=self.key, digest_size=8).hexdigest()
            return f"{digest} ({len(value)} characters)"
        if isinstance(value, Sequence):
            return [self(item) for item in value]
        return value


def trace(request: Request, answer: Answer, started_ns: int, veil: Veil | None) -> Operation:
    """A journal entry: a root span for the request and a child per phase and member.

    Members measure seconds, not times of day: phases are laid out in the order they happen, members side by side.
    """
    prompts, answers = list(request.prompts), [row.text for row in answer.rows]
    spans = _spans(answer, started_ns)
    return {
        "do": "trace",
        "name": request.id,
        "start_ns": started_ns,
        "inputs": {"prompts": veil(prompts) if veil else prompts},
        "outputs": {"answers": veil(answers) if veil else answers},
        "attributes": {
            "receiver": answer.receiver,
            "senders": ", ".join(answer.senders),
            "missing": ", ".join(f"{m.member}: {m.reason}" for m in answer.missing),
            "payload_bytes": answer.usage.payload_bytes,
            "prompt_tokens": answer.usage.prompt_tokens,
            "seconds": answer.usage.seconds.get(TOTAL, 0.0),
        },
        "spans": spans,
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
