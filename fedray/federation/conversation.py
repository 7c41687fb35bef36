"""Conversation: turns with a federation, each of which members read on from the one before.

>>> with fed.conversation() as talk:
...     talk.say("what is the color of the bird dika?").text
...     talk.say("and what is its home?").text
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType

from fedray.errors import SessionLost
from fedray.types import Answer, FedrayError, Request, Talk


class Conversation:
    """What was said so far, and where members keep what they have read of it.

    Every turn is answered as the whole conversation would be, asked at once; only what is new goes through the LLMs.
    Where a member has lost what it read, all is read again, and the answer's `reread` says so. Several conversations
    may go side by side: give each turn as many prompts. A turn that fails, or whose stream is left early, was not said.
    """

    def __init__(
        self,
        request: Callable[..., Request],
        run: Callable[[Request], Answer],
        stream: Callable[[Request], Iterator[str | Answer]],
        release: Callable[[str], None],
    ) -> None:
        """The federation's: how a request is made, answered, and answered piece by piece (the Answer last), and how
        members are told to drop what they keep under a name."""
        self.turns: tuple[tuple[str, ...], ...] = ()  # per conversation what was said, the user first
        self._request, self._run, self._stream, self._release = request, run, stream, release
        self._talk = _talk()

    def say(self, *prompts: str) -> Answer:
        """The answer to the next turn; with several prompts, a row for each conversation.

        Raises FedrayError on an empty prompt, on another number of prompts than there are conversations, and where a
        member's context cannot hold a conversation any longer.
        """
        request = self._next(prompts)
        try:
            answer = self._run(request)
        except SessionLost as lost:
            request = self._from_the_beginning(request, lost)
            answer = self._run(request)
        return self._said(request, answer)

    def stream(self, prompt: str) -> Iterator[str]:
        """The answer of a single conversation piece by piece; the federation's `last` holds the Answer afterwards."""
        request = self._next((prompt,))
        try:
            yield from self._pieces(request)
        except SessionLost as lost:  # before the first piece: members read first
            yield from self._pieces(self._from_the_beginning(request, lost))

    def close(self) -> None:
        """Let members drop what they have read. Closing twice is fine."""
        self._release(self._talk.session)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, request: Request) -> Iterator[str]:
        for piece in self._stream(request):
            if isinstance(piece, Answer):
                self._said(request, piece)
            else:
                yield piece

    def _next(self, prompts: tuple[str, ...]) -> Request:
        if self.turns and len(prompts) != len(self.turns):
            raise FedrayError(f"{len(prompts)} prompts for {len(self.turns)} conversations: give each of them its own")
        return self._request(*prompts, talk=replace(self._talk, before=self.turns))

    def _from_the_beginning(self, request: Request, lost: SessionLost) -> Request:
        """The same request for members that hold nothing, under another name: what has ended there stays ended."""
        if not self._talk.held_by:
            raise lost
        self.close()
        self._talk = _talk()
        return replace(request, talk=replace(self._talk, before=self.turns, lost=str(lost)))

    def _said(self, request: Request, answer: Answer) -> Answer:
        before = self.turns or ((),) * len(request.prompts)
        rows = zip(before, request.prompts, answer.rows, strict=True)
        self.turns = tuple((*told, prompt, row.text) for told, prompt, row in rows)
        self._talk = replace(self._talk, held_by=self._talk.held_by | answer.usage.read_tokens.keys())
        return answer


def _talk() -> Talk:
    return Talk(session=f"talk-{uuid.uuid4().hex[:12]}")
