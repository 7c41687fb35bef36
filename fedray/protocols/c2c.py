"""Cache to cache: senders prefill, the gate weighs them, the receiver fuses what has weight and answers.

FedRefine (arXiv 2603.28772), Eq. 1 and 4. `gate.route=eager`: senders prefill while the receiver reads, and caches
without weight are never fetched; `lazy`: senders without weight are never asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fedray.group import Group, Handle
from fedray.protocols.exchange import Exchange
from fedray.protocols.text import with_hints
from fedray.types import Answer, Opening, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    async with Exchange(request, plan, group) as exchange:
        return await exchange.answer(await collect(exchange))


async def stream(request: Request, plan: Plan, group: Group) -> AsyncIterator[str | Answer]:
    """Pieces of the answer's text as they are decoded, then the Answer. One prompt."""
    async with Exchange(request, plan, group) as exchange:
        payloads = await collect(exchange)
        async for piece in exchange.stream(payloads):
            yield piece


async def collect(exchange: Exchange) -> list[tuple[str, Handle]]:
    """Payload handles of the senders that have weight and were in time, in the plan's order."""
    plan = exchange.plan
    if plan.speakers:
        exchange.request = await with_hints(exchange, plan.speakers)
    opening = exchange.start_open()
    reads = {s: _start_reading(exchange, s) for s in plan.senders} if plan.route == "eager" else {}
    wanted = rows_with_weight(plan, await exchange.finish_open(opening))
    for sender in reads.keys() - wanted.keys():
        exchange.group.cancel(sender, exchange.session)
    # every sender goes its own way from here: one that is late keeps no other waiting
    chains = [_cache_of(exchange, sender, rows, reads.get(sender)) for sender, rows in wanted.items()]
    payloads = await asyncio.gather(*chains)
    exchange.settle()
    return [(sender, payload) for sender, payload in zip(wanted, payloads, strict=True) if payload is not None]


def _start_reading(exchange: Exchange, sender: str) -> Handle:
    request = exchange.request
    prompts = request.sender_prompts or request.prompts
    return exchange.group.start(sender, "prefill", exchange.session, prompts, request.token_ids)


async def _cache_of(exchange: Exchange, sender: str, rows: tuple[int, ...], reading: Handle | None) -> Handle | None:
    """The payload of one sender's rows: of what it has been reading, or else read now. None if it is missing."""
    request, plan = exchange.request, exchange.plan
    prompts = request.sender_prompts or request.prompts
    what: dict[str, object] = {"spans": plan.fusion == "mix", "control": plan.control, "seed": plan.seed}
    if reading is not None:
        if not await exchange.of_sender(sender, reading):
            return None
    elif request.token_ids is not None:
        what["token_ids"] = tuple(request.token_ids[b] for b in rows)
    else:
        what["prompts"] = tuple(prompts[b] for b in rows)
    sending = exchange.group.start(sender, "share", exchange.session, rows, **what)
    return sending if await exchange.of_sender(sender, sending) else None


def rows_with_weight(plan: Plan, opening: Opening) -> dict[str, tuple[int, ...]]:
    """Per sender the rows whose gate lets it in; senders without any are left out."""
    rows = {
        sender: tuple(b for b, weights in enumerate(opening.weights) if weights[i] > 0)
        for i, sender in enumerate(plan.senders)
    }
    return {sender: chosen for sender, chosen in rows.items() if chosen}
