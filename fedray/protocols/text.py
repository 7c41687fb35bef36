"""Text between members: how a sender is asked for a hint, and how a receiver reads hints as quoted data.

What a peer wrote is data, never an instruction: it stands in the notes of the receiver's prompt, one line each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedray.group import Handle
from fedray.protocols.exchange import Exchange
from fedray.types import Answer, Generation, Request, Usage

HINT_TOKENS = 32


def hint_prompt(question: str) -> str:
    return f"give a hint: {question}"


def notes_prompt(notes: Sequence[str], question: str) -> str:
    return "notes:\n" + "".join(f"- {note}\n" for note in notes) + question


async def with_hints(exchange: Exchange, speakers: Sequence[str]) -> Request:
    """The request as its receiver reads it once the speakers have written down what they know."""
    request, group = exchange.request, exchange.group
    asked = tuple(hint_prompt(p) for p in request.sender_prompts or request.prompts)
    generation = Generation(max_tokens=HINT_TOKENS)
    handles: dict[str, Handle] = {s: group.start(s, "generate", exchange.session, asked, generation) for s in speakers}
    ready = await asyncio.gather(*(exchange.of_sender(s, handle) for s, handle in handles.items()))
    exchange.settle()
    hints: Mapping[str, Answer] = {
        s: group.result(handle) for (s, handle), ok in zip(handles.items(), ready, strict=True) if ok
    }
    size = sum(len(row.text.encode()) for answer in hints.values() for row in answer.rows)
    exchange.usage += Usage(payload_bytes=size)
    notes = [[_one_line(answer.rows[b].text) for answer in hints.values()] for b in range(request.rows())]
    if not hints:
        return request
    read = tuple(notes_prompt(n, p) for n, p in zip(notes, request.prompts, strict=True))
    return replace(request, prompts=read, sender_prompts=request.sender_prompts or request.prompts)


def _one_line(text: str) -> str:
    """A hint without line breaks, which would end its note."""
    return " ".join(text.split())
