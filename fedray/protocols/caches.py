"""Caches between members: senders read the prompt, and those with weight ship what they have read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedray.methods.method import FuserChoice
from fedray.prompts import hint_prompt
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Handle
from fedray.protocols.t2t import listen
from fedray.schema import attributes
from fedray.types import Artifact, Plan, Request

AS_READ = ("layers", "tokens", "unrotated")  # what of an artifact says what its sender sends


async def collect(exchange: Exchange) -> list[tuple[str, Handle]]:
    """Payload handles of the senders that have weight and were in time, in the plan's order."""
    plan = exchange.plan
    eager = plan.method.gate.route == "eager" and exchange.open_rows()
    reads = exchange.reading if eager else {}
    for sender in plan.senders if eager else ():
        reads[sender] = await start_reading(exchange, sender, exchange.open_rows())
    await listen(exchange, dict.fromkeys(plan.speakers, exchange.open_rows()))
    wanted = exchange.wanted(await exchange.finish_open(exchange.start_open()))
    for sender in reads.keys() - wanted.keys():
        exchange.group.cancel(sender, exchange.session)
    return await fetch(exchange, wanted, reads)


async def start_reading(exchange: Exchange, sender: str, rows: tuple[int, ...]) -> Handle:
    """Let a sender read some rows: as text, or as the receiver's token ids where its fuser was trained so."""
    request, artifact = asked(exchange, sender, rows), exchange.plan.fusers[sender]
    prompts, token_ids = request.prompts, request.token_ids
    if token_ids is None and artifact.reads_ids:
        prompts, token_ids = (), await exchange.tokenized(request)
    what = (rows, prompts, token_ids, request.talk, drafted(exchange.plan, artifact))
    return exchange.group.start(sender, "prefill", exchange.session, *what)


def asked(exchange: Exchange, sender: str, rows: Sequence[int]) -> Request:
    """Some rows as a sender is asked them: where it drafts, for its answer or for a hint."""
    request, plan = exchange.request_of(sender, rows), exchange.plan
    return replace(request, prompts=to_draft(plan, plan.fusers[sender], request.prompts))


def to_draft(plan: Plan, artifact: Artifact, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Ask for a hint where the plan's fuser reads drafts of one."""
    hints = artifact.tokens == "draft" and plan.method.fuser.ask == "hint"
    return tuple(map(hint_prompt, prompts)) if hints else prompts


def drafted(plan: Plan, artifact: Artifact) -> FuserChoice | None:
    """What a sender drafts for a fuser; None: nothing."""
    return plan.method.fuser if artifact.tokens == "draft" else None


async def fetch(
    exchange: Exchange, wanted: Mapping[str, tuple[int, ...]], reads: Mapping[str, Handle]
) -> list[tuple[str, Handle]]:
    """Payload handles of the wanted rows; senders that are not yet reading them are asked to read them now."""
    # every sender goes its own way from here: one that is late keeps no other waiting
    exchange.fetched |= {sender: exchange.most_tokens(sender, rows) for sender, rows in wanted.items()}
    chains = [cache_of(exchange, sender, rows, reads.get(sender)) for sender, rows in wanted.items()]
    payloads = await asyncio.gather(*chains)
    exchange.settle()
    return [(sender, payload) for sender, payload in zip(wanted, payloads, strict=True) if payload is not None]


async def cache_of(
    exchange: Exchange, sender: str, rows: tuple[int, ...], reading: Handle | None, deadline: float | None = None
) -> Handle | None:
    """The payload of one sender's rows: of what it has been reading, or else read now. None if it is missing."""
    plan, artifact = exchange.plan, exchange.plan.fusers[sender]
    if reading is None and artifact.reads_ids:
        reading = await start_reading(exchange, sender, rows)
    what: dict[str, object] = attributes(plan.method, "control", "wire") | attributes(artifact, *AS_READ)
    what |= {"spans": plan.method.fusion.operator == "mix", "seed": plan.seed, "draft": drafted(plan, artifact)}
    if reading is not None:
        if not await exchange.of_sender(sender, reading, deadline):
            return None
    else:
        request = asked(exchange, sender, rows)
        what |= {"prompts": request.prompts, "token_ids": request.token_ids, "talk": request.talk}
    sending = exchange.group.start(sender, "share", exchange.session, rows, **what)
    return sending if await exchange.of_sender(sender, sending, deadline) else None
