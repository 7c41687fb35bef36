"""Cache to cache: senders prefill, the gate weighs them, the receiver fuses what has weight and answers.

FedRefine (arXiv 2603.28772), Eq. 1 and 4. `gate.route=eager`: senders prefill while the receiver reads, and caches
without weight are never fetched; `lazy`: senders without weight are never asked. Both ways every member answers
(c2c_both_ways.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedray.methods.method import CacheToCache
from fedray.methods.parts import FUSERS
from fedray.protocols import c2c_both_ways
from fedray.protocols.caches import collect
from fedray.protocols.deranged import with_caches
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, MemberInfo, Plan, Request

if TYPE_CHECKING:
    from fedray.llm.source import Source

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    if plan.peers:
        return await c2c_both_ways.run(request, plan, group)
    async with Exchange(request, plan, group) as exchange:
        payloads = await collect(exchange)
        return await with_caches(exchange, payloads, await exchange.answer(payloads))


async def stream(request: Request, plan: Plan, group: Group) -> AsyncGenerator[str | Answer]:
    """Pieces of the answer's text as they are decoded, then the Answer. One prompt."""
    async with Exchange(request, plan, group) as exchange:
        payloads = await collect(exchange)
        async for piece in exchange.stream(payloads):
            yield piece


def whole_bytes(senders: Sequence[MemberInfo]) -> float:
    """Count the whole cache of every sender."""
    return float(sum(member.spec.values_per_token() * DTYPE_BYTES[member.dtype] for member in senders))


def check_sources(settings: Any, found: Mapping[str, Source]) -> None:
    """Refuse members between which no fuser is trained, and whose caches differ. Raises FedrayError."""
    if FUSERS[settings.fuser.kind].trained:
        return
    from fedray.llm.rotary import cache_space, check_spaces
    from fedray.llm.source import config_of

    spaces = {name: cache_space(config_of(source)) for name, source in found.items()}
    for sender in settings.senders:
        receiver = settings.receiver
        check_spaces(settings.fuser.kind, (receiver, spaces[receiver]), (sender, spaces[sender]))


PROTOCOL = Protocol(settings=CacheToCache, run=run, stream=stream, check_sources=check_sources, whole_bytes=whole_bytes)
