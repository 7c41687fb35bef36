"""Protocols: how members exchange what they know. Each is `async def run(request, plan, group) -> Answer`, and
`stream` where the answer's text can be had piece by piece, the Answer last.

A protocol owns its loop of exchanges and speaks only to the Group port; it never sees a tensor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fedray.protocols import c2c, ensemble, fedattn, route, self_refine, specfed, standalone, t2t
from fedray.protocols.group import Group
from fedray.types import Answer, FedrayError, Plan, Request

# Of two that are compared, the later is asked what it adds to the earlier: caches come last.
PROTOCOLS: dict[str, Callable[[Request, Plan, Group], Coroutine[Any, Any, Answer]]] = {
    "standalone": standalone.run,
    "self_refine": self_refine.run,
    "ensemble": ensemble.run,
    "route": route.run,
    "t2t": t2t.run,
    "specfed": specfed.run,
    "fedattn": fedattn.run,
    "c2c": c2c.run,
}
STREAMS: dict[str, Callable[[Request, Plan, Group], AsyncIterator[str | Answer]]] = {
    "standalone": standalone.stream,
    "c2c": c2c.stream,
}
TALKS = ("standalone", "c2c")  # whose members keep what they read for the next turn


def check_talk(plan: Plan) -> None:
    """Raises FedrayError where a plan cannot hold a conversation."""
    way = ""
    if plan.protocol not in TALKS:
        way = f"protocol={plan.protocol}"
    elif plan.peers:
        way = "answer_all=true"
    elif plan.rephrase != "none":
        way = f"rephrase={plan.rephrase}"
    elif plan.speakers:
        way = f"on_missing=text ({', '.join(plan.speakers)} without a fuser)"
    if way:
        raise FedrayError(f"{way} holds no conversation: choose protocol=c2c or standalone without it, or ask anew")
