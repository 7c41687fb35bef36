"""One LLM revises its own answer: it reads what it said as a note and answers again, until the answer settles.

The no-communication baseline of FedRefine (arXiv 2603.28772; Self-Refine, arXiv 2303.17651).
"""

from __future__ import annotations

from dataclasses import replace

from fedray.methods.method import SelfRefine
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.protocols.standalone import alone
from fedray.types import Answer, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """At most `rounds` revisions; a row that has settled is not read again."""
    async with Exchange(request, alone(plan), group) as exchange:
        answer = await exchange.alone()
        rows = dict(enumerate(answer.rows))
        unsettled = tuple(b for b, row in rows.items() if not row.failed)
        for _ in range(plan.method.of(SelfRefine).rounds if unsettled else 0):
            exchange.heard[plan.receiver] = {b: rows[b].text for b in unsettled}
            exchange.usage += answer.usage
            exchange.missing += answer.missing
            answer = await exchange.alone(unsettled)
            revised = dict(zip(unsettled, answer.rows, strict=True))
            unsettled = tuple(b for b, row in revised.items() if row.text != rows[b].text and not row.failed)
            rows |= revised
            if not unsettled:
                break
        return exchange.close(replace(answer, rows=tuple(rows.values())))


PROTOCOL = Protocol(settings=SelfRefine, run=run)
