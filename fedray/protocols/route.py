"""The gate picks one member per question, whose own answer is returned: a baseline any federation must be compared
with. No cache travels; gate=oracle is the router that knows who knows.
"""

from __future__ import annotations

from dataclasses import replace

from fedray.methods.method import Route
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, Opening, Plan, Request, Usage


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """A question whose member is missing, or has no answer, is answered by the receiver."""
    async with Exchange(request, plan, group) as exchange:
        opening = await exchange.finish_open(exchange.start_open())
        chosen = pick(exchange, opening)
        answers = await exchange.ask(chosen, "answer")
        rows = {b: row for name, answer in answers.items() for b, row in zip(chosen[name], answer.rows, strict=True)}
        rows = {b: row for b, row in rows.items() if not row.failed}
        exchange.usage += Usage(payload_bytes=sum(len(row.text.encode()) for row in rows.values()))
        rest = tuple(b for b in range(request.rows()) if b not in rows)
        own = await exchange.alone(rest) if rest else Answer((), plan.receiver, ())
        rows |= dict(zip(rest, own.rows, strict=True))
        answer = replace(own, rows=tuple(rows[b] for b in range(request.rows())), senders=tuple(answers))
        return exchange.close(exchange.weighed(answer, opening))


def pick(exchange: Exchange, opening: Opening) -> dict[str, tuple[int, ...]]:
    """Per sender the rows on which it has the most weight; rows without weight on anybody are the receiver's."""
    senders = exchange.plan.senders
    best = {b: max(range(len(senders)), key=opening.weights[b].__getitem__) for b in exchange.open_rows()}
    chosen = {b: i for b, i in best.items() if opening.weights[b][i] > 0}
    return {sender: rows for i, sender in enumerate(senders) if (rows := tuple(b for b in chosen if chosen[b] == i))}


PROTOCOL = Protocol(settings=Route, run=run)
