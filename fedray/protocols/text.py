"""Text between members: what senders say stands in the notes of the receiver's prompt, quoted data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedray.prompts import hint_prompt
from fedray.protocols.exchange import Exchange
from fedray.types import Request, Usage


async def listen(exchange: Exchange, rows_of: Mapping[str, Sequence[int]]) -> None:
    """Let the receiver hear what each sender says about each of its rows, by the plan's T2T settings.

    Senders have half the time there is: what they say must still be read. Their words count as bytes on the wire.
    """
    t2t = exchange.plan.t2t

    def spoken(request: Request) -> Request:
        asked = tuple(map(hint_prompt, request.prompts)) if t2t.ask == "hint" else request.prompts
        how = request.generation
        return replace(
            request, prompts=asked, choices=None, generation=replace(how, max_tokens=t2t.max_tokens, full=t2t.full)
        )

    answers = await exchange.ask(rows_of, "hint", spoken, exchange.halftime)
    for name, answer in answers.items():
        exchange.heard[name] = {b: row.text for b, row in zip(rows_of[name], answer.rows, strict=True)}
        exchange.usage += Usage(payload_bytes=sum(len(row.text.encode()) for row in answer.rows))
