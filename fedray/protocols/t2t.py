"""Text to text: senders answer (or hint) in words, the receiver reads them as notes and answers.

The token baseline of FedRefine (arXiv 2603.28772) and C2C (arXiv 2510.03215). `t2t.gate=none`, as published: every
sender is heard. `t2t.gate=same`: only those the plan's gate lets in, as C2C would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedray.methods.method import TextToText
from fedray.prompts import hint_prompt
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.schema import picked
from fedray.types import Answer, FedrayError, Generation, MemberInfo, Plan, Request, Row, Usage

TOKEN_BYTES = 4  # one int32 id
TEMPLATE = 256  # tokens that a chat template and the marks of notes may take


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    async with Exchange(request, plan, group) as exchange:
        if plan.method.t2t.gate == "none":
            await listen(exchange, dict.fromkeys(plan.senders, exchange.open_rows()))
            answer = await exchange.alone()
        else:
            opening = await exchange.finish_open(exchange.start_open())
            await listen(exchange, exchange.wanted(opening))
            answer = exchange.weighed(await exchange.alone(), opening)
        answer = exchange.close(replace(answer, senders=tuple(s for s in plan.senders if s in exchange.heard)))
        return await _with_deranged(exchange, answer)


async def _with_deranged(exchange: Exchange, answer: Answer) -> Answer:
    """Add what the receiver answers over other rows' notes, from the senders that it has heard of a row itself."""
    heard, ways = dict(exchange.heard), exchange.request.donors
    if not ways or not heard:
        return replace(answer, deranged=(answer.rows,) * len(ways))  # where nothing was heard nothing else can be
    more = exchange.further({name: tuple(notes) for name, notes in heard.items()})
    try:
        exchange.heard = {}
        await listen(exchange, more, exchange.patience())
        notes = {name: texts | exchange.heard.get(name, {}) for name, texts in heard.items()}
        if more.keys() != exchange.heard.keys():
            return answer
        found: list[tuple[Row, ...]] = []
        for way in ways:
            exchange.heard = {}
            paired = {name: {b: notes[name][way[b]] for b in of if way[b] in notes[name]} for name, of in heard.items()}
            if await _too_long(exchange, paired):
                return answer
            exchange.heard = paired
            anew = await exchange.alone()
            own = zip(anew.rows, answer.rows, strict=True)
            found.append(tuple(replace(row, weights=before.weights) for row, before in own))
        return replace(answer, deranged=tuple(found))
    except FedrayError:  # the answer stands without
        return answer


async def listen(exchange: Exchange, rows_of: Mapping[str, Sequence[int]], deadline: float | None = None) -> None:
    """Let the receiver hear what each sender says about each of its rows, by the plan's T2T settings.

    Senders have half the time there is: what they say must still be read. Their words count as bytes on the wire.
    """
    t2t = exchange.plan.method.t2t

    def spoken(request: Request) -> Request:
        asked = tuple(map(hint_prompt, request.prompts)) if t2t.ask == "hint" else request.prompts
        generation = picked(Generation, t2t, request.generation)  # of T2T: max_tokens and full
        return replace(request, prompts=asked, choices=None, generation=generation)

    answers = await exchange.ask(rows_of, "hint", spoken, deadline or exchange.halftime)
    notes = {
        name: dict(zip(rows_of[name], (row.text for row in answer.rows), strict=True))
        for name, answer in answers.items()
    }
    for texts in notes.values():
        exchange.usage += Usage(payload_bytes=sum(len(text.encode()) for text in texts.values()))
    for name in await _too_long(exchange, notes):
        exchange.lose(name, "its hint does not fit the receiver's context beside the question and the other hints")
        del notes[name]
    exchange.settle()
    exchange.heard |= notes


async def _too_long(exchange: Exchange, notes: Mapping[str, Mapping[int, str]]) -> Sequence[str]:
    """Find whose notes do not fit: the receiver counts their tokens, where there are more bytes than it has room."""
    receiver, request = exchange.plan.receiver, exchange.of_receiver_only()
    room = exchange.group.members[receiver].context - request.generation.max_tokens - TEMPLATE
    for b, prompt in enumerate(request.prompts):
        said = sum(len(texts.get(b, "").encode()) for texts in notes.values())
        if len(prompt.encode(errors="replace")) + said > room:
            return await exchange.of_receiver(exchange.group.start(receiver, "overflow", request, notes))
    return ()


def whole_bytes(senders: Sequence[MemberInfo]) -> float:
    """Count a token id of each sender."""
    return float(TOKEN_BYTES * len(senders))


PROTOCOL = Protocol(settings=TextToText, run=run, whole_bytes=whole_bytes)
