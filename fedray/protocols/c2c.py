"""Cache to cache: senders prefill, the gate weighs them, the receiver fuses what has weight and answers.

FedRefine (arXiv 2603.28772), Eq. 1 and 4. `gate.route=eager`: senders prefill while the receiver reads, and caches
without weight are never fetched; `lazy`: senders without weight are never asked.
"""

from __future__ import annotations

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
    plan, group = exchange.plan, exchange.group
    if plan.speakers:
        exchange.request = await with_hints(exchange, plan.speakers)
    request = exchange.request
    prompts = request.sender_prompts or request.prompts
    opening = exchange.start_open()
    if plan.route == "eager":
        reads = {s: group.start(s, "prefill", exchange.session, prompts, request.token_ids) for s in plan.senders}
        opened = await exchange.finish_open(opening)
        wanted = rows_with_weight(plan, opened)
        read = await exchange.of_senders({s: reads[s] for s in wanted})
        sends = {s: group.start(s, "share", exchange.session, wanted[s], **_how(plan)) for s in read}
    else:
        opened = await exchange.finish_open(opening)
        wanted = rows_with_weight(plan, opened)
        sends = {
            s: group.start(
                s,
                "share",
                exchange.session,
                rows,
                prompts=tuple(prompts[b] for b in rows) if request.token_ids is None else None,
                token_ids=tuple(request.token_ids[b] for b in rows) if request.token_ids is not None else None,
                **_how(plan),
            )
            for s, rows in wanted.items()
        }
    return list((await exchange.of_senders(sends)).items())


def rows_with_weight(plan: Plan, opening: Opening) -> dict[str, tuple[int, ...]]:
    """Per sender the rows whose gate lets it in; senders without any are left out."""
    rows = {
        sender: tuple(b for b, weights in enumerate(opening.weights) if weights[i] > 0)
        for i, sender in enumerate(plan.senders)
    }
    return {sender: chosen for sender, chosen in rows.items() if chosen}


def _how(plan: Plan) -> dict[str, object]:
    return {"spans": plan.fusion == "mix", "control": plan.control, "seed": plan.seed}
