"""Answer once more with messages that belong to other rows (`Request.donors`): only their content changes.

Senders, gate weights and everything that is asked are those of the answer. Nothing is read twice: a sender that has
read all rows sends the others too; one that was asked for some (gate.route=lazy) reads those that are missing. Whatever
fails here costs the answer nothing: its `deranged` stays empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from fedray.protocols.caches import cache_of
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Handle
from fedray.types import Answer, FedrayError


async def with_caches(exchange: Exchange, payloads: Sequence[tuple[str, Handle]], answer: Answer) -> Answer:
    """Add what the receiver answers over other rows' caches.

    payloads: what it has answered over; of senders without a fuser it heard notes, which caches do not replace.
    """
    ways, plan = exchange.request.donors, exchange.plan
    if not ways or exchange.heard or exchange.request.talk:
        return answer
    sent = [(name, payload) for name, payload in payloads if name in answer.senders]
    if not sent:
        return replace(answer, deranged=(answer.rows,) * len(ways))  # nothing was read, and nothing else can be
    own = {name: tuple(exchange.fetched[name]) for name, _ in sent}
    try:
        more = exchange.further(own)
        chains = [cache_of(exchange, s, rows, exchange.reading.get(s), exchange.patience()) for s, rows in more.items()]
        others = list(zip(more, await asyncio.gather(*chains), strict=True))
        if any(payload is None for _, payload in others):
            return answer
        names, handles = zip(*sent, *others, strict=True)
        asked = (*(exchange.fetched[s] for s in own), *(exchange.most_tokens(s, rows) for s, rows in more.items()))
        what = (exchange.session, names, exchange.of_receiver_only(), plan, *handles)
        donors = [{name: {b: way[b] for b in rows} for name, rows in own.items()} for way in ways]
        started = [exchange.group.start(plan.receiver, "answer", *what, asked=asked, donors=way) for way in donors]
        found: list[Answer] = [await exchange.of_receiver(handle) for handle in started]
    except FedrayError:
        return answer
    if any(set(one.senders) != set(answer.senders) for one in found):
        return answer
    return replace(answer, deranged=tuple(one.rows for one in found))
