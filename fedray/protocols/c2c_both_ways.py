"""Both ways: every member is receiver and sender in one request, and each answers (FedRefine, Eq. 2-3 and 4).

Each member reads the prompt once; that one cache serves as its own and as what it sends to the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from fedray.border import why
from fedray.protocols import replies
from fedray.protocols.caches import fetch
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.types import Answer, FedrayError, Missing, Plan, Request, Row, Usage


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """The receiver's answer (or, with plan.method.vote, the majority's), and in `by_member` everybody's."""
    if request.asked or request.evidence or plan.method.rephrase != "none":
        raise FedrayError(
            "answer_all=true lets all members read the same prompt: leave evidence, rephrase and control=mismatched "
            "out, and ask a task of whole questions"
        )
    if request.token_ids is None and any(fuser.reads_ids for p in (plan, *plan.peers) for fuser in p.fusers.values()):
        raise FedrayError("answer_all does not go with fusers whose senders read the receiver's ids: leave it out")
    async with AsyncExitStack() as stack:
        main = await stack.enter_async_context(Exchange(request, plan, group))
        others = [await stack.enter_async_context(Exchange(request, peer, group, main.session)) for peer in plan.peers]
        return await _run(main, others)


async def _run(main: Exchange, others: Sequence[Exchange]) -> Answer:
    opened = {x.plan.receiver: x.start_open() for x in (main, *others)}

    async def answer(exchange: Exchange) -> Answer:
        wanted = exchange.wanted(await exchange.finish_open(opened[exchange.plan.receiver]))
        found = await exchange.answer(await fetch(exchange, wanted, opened))
        if exchange is main:
            return found
        return replace(found, rows=replies.rows(exchange.plan.receiver, found, main.request))

    results = await asyncio.gather(*map(answer, (main, *others)), return_exceptions=True)
    answers: dict[str, Answer] = {}
    missing: list[Missing] = []
    for exchange, result in zip((main, *others), results, strict=True):
        name = exchange.plan.receiver
        if isinstance(result, Answer):
            answers[name] = result
        elif isinstance(result, Exception) and exchange is not main:  # whatever it replied costs itself alone
            missing.append(Missing(name, why(result)))
        else:
            raise result
    own = answers[main.plan.receiver]
    missing += (m for a in answers.values() if a is not own for m in a.missing if m.member == a.receiver)
    usage = sum((replace(a.usage, prompt_tokens=0) for a in answers.values()), Usage())
    read = {name: tokens for a in answers.values() for name, tokens in a.usage.read_tokens.items()}  # each reads once
    usage = replace(usage, prompt_tokens=own.usage.prompt_tokens, read_tokens=read)
    usage = replace(usage, seconds={**usage.seconds, "total": max(a.usage.seconds["total"] for a in answers.values())})
    by_member = {name: a.rows for name, a in answers.items()}
    rows = tuple(map(majority, zip(*by_member.values(), strict=True))) if main.plan.method.vote else own.rows
    return replace(own, rows=rows, usage=usage, missing=(*own.missing, *missing), by_member=by_member)


def majority(rows: Sequence[Row]) -> Row:
    """The answer most members gave; on a tie, the one whose first voice comes first (the receiver's is rows[0])."""
    rows = [row for row in rows if not row.failed] or rows
    votes = Counter(row.text if row.choice is None else row.choice for row in rows)
    best = max(votes.values())
    return next(row for row in rows if votes[row.text if row.choice is None else row.choice] == best)
