"""Cache to cache: senders prefill, the gate weighs them, the receiver fuses what has weight and answers.

FedRefine (arXiv 2603.28772), Eq. 1 and 4. `gate.route=eager`: senders prefill while the receiver reads, and caches
without weight are never fetched; `lazy`: senders without weight are never asked. Both ways every member answers
(c2c_both_ways.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fedray.methods.method import CacheToCache
from fedray.protocols import c2c_both_ways
from fedray.protocols.caches import collect
from fedray.protocols.deranged import with_caches
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, MemberInfo, Plan, Request

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    if plan.peers:
        return await c2c_both_ways.run(request, plan, group)
    async with Exchange(request, plan, group) as exchange:
        payloads = await collect(exchange)
        return await with_caches(exchange, payloads, await exchange.answer(payloads))


async def stream(request: Request, plan: Plan, group: Group) -> AsyncIterator[str | Answer]:
    """Pieces of the answer's text as they are decoded, then the Answer. One prompt."""
    async with Exchange(request, plan, group) as exchange:
        payloads = await collect(exchange)
        async for piece in exchange.stream(payloads):
            yield piece


def whole_bytes(senders: Sequence[MemberInfo]) -> float:
    """Count the whole cache of every sender."""
    return float(sum(member.spec.values_per_token() * DTYPE_BYTES[member.dtype] for member in senders))


PROTOCOL = Protocol(settings=CacheToCache, run=run, stream=stream, whole_bytes=whole_bytes)
