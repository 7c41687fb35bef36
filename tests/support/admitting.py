"""Requests, and the queue of a federation that is not there: a token a byte, 8 bytes of KV a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shared_cluster import RECEIVER, SENDERS

from fedray.federation.admission import Admission, Limits
from fedray.types import Answer, Generation, KVSpec, MemberInfo, Request, Row
from support.methods import plan as plan_of

SIZE = 3 * 8 * (5 + 1)  # of `small`: three members, five bytes of prompt and a token of answer
PATIENCE_S = 60.0  # of a test that has failed
EVIDENCE = {SENDERS[0]: ("a note",)}
SPEC = KVSpec(layers=1, kv_heads=1, head_dim=1)  # 8 bytes of float32 a token
MEMBERS = {
    name: MemberInfo(name, "qwen", 1, SPEC, "", "", "cpu", "float32", "", 0, 1000) for name in (RECEIVER, *SENDERS)
}
PLAN = plan_of(RECEIVER, SENDERS, gate="open")
WIDE = Limits(size=1e9, sent=1e9, quota=None, rows=4, at_a_time=1)


def asking(text: str = "what?", **more: Any) -> Request:
    return Request((text,), **more)


def admission(**limits: Any) -> Admission:
    return Admission(replace(WIDE, **limits), MEMBERS)


def small(text: str = "what?") -> Request:
    return asking(text, generation=Generation(1))


def answer_to(request: Request, **more: Any) -> Answer:
    return Answer(tuple(Row(f"{p}!") for p in request.prompts), RECEIVER, SENDERS, **more)
