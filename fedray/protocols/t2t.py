"""Text to text: senders answer (or hint) in words, the receiver reads them as notes and answers.

The token baseline of FedRefine (arXiv 2603.28772) and C2C (arXiv 2510.03215). `t2t.gate=none`, as published: every
sender is heard. `t2t.gate=same`: only those the plan's gate lets in, as C2C would.
"""

from __future__ import annotations

from dataclasses import replace

from fedray.group import Group
from fedray.protocols.exchange import Exchange
from fedray.protocols.text import listen
from fedray.types import Answer, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    async with Exchange(request, plan, group) as exchange:
        if plan.t2t.gate == "none":
            await listen(exchange, dict.fromkeys(plan.senders, exchange.open_rows()))
            answer = await exchange.alone()
        else:
            opening = await exchange.finish_open(exchange.start_open())
            await listen(exchange, exchange.wanted(opening))
            answer = exchange.weighed(await exchange.alone(), opening)
        return exchange.close(replace(answer, senders=tuple(s for s in plan.senders if s in exchange.heard)))
