"""Place messages for a receiver that reads its prompt over them (`fusion.read=prompt`).

Comparing what a message says with what the question says needs the question's words to see the message: with the last
prompt token alone, a receiver's own perfect cache of two notes answers 59 % of joint questions, with the whole prompt
99.8. `front`: messages stand right before the prompt, side by side; `inline`: where notes would stand
(prompts.notes_prompt), one after the other, each on a line of its own.
Shape legend: B batch, T tokens of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedray.border import Border
from fedray.fusion.combine import Message, Part, at_border, joined, project
from fedray.llm.cache import KVCache
from fedray.llm.decoding import Context
from fedray.llm.model import HEAD, LLM, Span
from fedray.prompts import NOTES
from fedray.types import FedrayError


@dataclass(slots=True)
class Unread:
    """What the receiver reads on top of a context: token ids of every row, and where each stands."""

    ids: list[list[int]]
    positions: list[list[int]]


def place(
    llm: LLM,
    own: KVCache,
    ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Span]],
    parts: list[Part],
    slots: str,
    border: Border | None = None,
) -> tuple[Context, Unread] | None:
    """Place the parts before or inside the prompts, of which the rest is to be read over them; None: nothing came.

    own, ids, spans: the receiver's prompts, as it has read them alone.
    """
    messages = [message for message in project(own, parts, border) if bool(message.seen_BT.any())]
    if slots == "front":
        placed = [message.at(llm.model, -message.size_B) for message in messages]
        unread = Unread([list(row) for row in ids], [list(range(len(row))) for row in ids])
        return (joined(own.crop(torch.zeros_like(own.lengths)), placed), unread) if messages else None
    layout = _Layout(llm, ids, spans)
    messages = [message for message in messages if layout.takes(message, border)]
    firsts = map(own.lengths.new_tensor, layout.messages)
    placed = [message.at(llm.model, first_B) for message, first_B in zip(messages, firsts, strict=True)]
    return (joined(own.crop(own.lengths.new_tensor(layout.starts)), placed), layout.unread()) if messages else None


class _Layout:
    """Where everything stands in prompts with messages among their notes.

    starts: the tokens of each row before the notes, which stay as they were read; messages: of each that was taken its
    first position in every row.
    """

    def __init__(self, llm: LLM, ids: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> None:
        above, before, behind = map(llm.encode_answer, NOTES)
        self._llm, self._ids, self._between, self._behind = llm, ids, [*behind, *before], behind
        self.starts = [_text_begins(row) for row in spans]
        has_notes = [list(row[at : at + len(above)]) == above for row, at in zip(ids, self.starts, strict=True)]
        self.starts = [at + len(above) * own for at, own in zip(self.starts, has_notes, strict=True)]
        self._first = [before if own else [*above, *before] for own in has_notes]
        self._next = list(self.starts)
        self._read = Unread([[] for _ in ids], [[] for _ in ids])
        self.messages: list[list[int]] = []

    def takes(self, message: Message, border: Border | None) -> bool:
        """Give a message its line in every row where it has weight. False: it does not fit, which the border names."""
        lengths = (message.size_B * message.seen_BT.any(1)).tolist()
        with at_border(border, message.part):
            for b, length in enumerate(lengths):
                rest = len(self._first[b]) + len(self._behind) + len(self._ids[b]) - self.starts[b]
                if length and self._next[b] + length + rest >= self._llm.context:
                    raise FedrayError(f"its message does not fit the context of {self._llm.name} beside the question")
            self.messages.append([self._line(b, length) for b, length in enumerate(lengths)])
            return True
        return False

    def unread(self) -> Unread:
        """The marks around the messages, and the rest of every prompt."""
        for b, (row, start) in enumerate(zip(self._ids, self.starts, strict=True)):
            self._mark(b, [*(self._behind if self._read.ids[b] else []), *row[start:]])
        return self._read

    def _line(self, b: int, length: int) -> int:
        """Begin a line for so many slots; returns their first position."""
        if not length:
            return 0
        self._mark(b, self._between if self._read.ids[b] else self._first[b])
        self._next[b] += length
        return self._next[b] - length

    def _mark(self, b: int, ids: Sequence[int]) -> None:
        """Put tokens of the receiver's own at the next positions."""
        self._read.ids[b] += ids
        self._read.positions[b] += range(self._next[b], self._next[b] + len(ids))
        self._next[b] += len(ids)


def _text_begins(spans: Sequence[Span]) -> int:
    """Count the tokens before the last turn's text."""
    return 1 + max((i for i, (kind, _) in enumerate(spans) if kind == HEAD), default=-1)
