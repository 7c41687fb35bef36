"""What every member does before anything else: it reads prompts, and of a conversation only what is new.

What was read lies in a session of the request. A conversation has a session besides, which outlives its requests: the
next turn crops that cache to what is the same from the beginning, and reads on. So a repeated call is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedray.llm import decoding
from fedray.llm.chat import encode_turns
from fedray.llm.model import Span
from fedray.llm.prefix import Known, read_on
from fedray.member.clock import Clock
from fedray.member.core import Core
from fedray.member.sessions import Session
from fedray.prompts import one_line
from fedray.types import Receipt, Request, Row, Talk, Usage
from fedray.wire.payload import ships

_MARKS = 8  # tokens around a note, and of the word above them


class Reader(Core):
    """The part of a member that reads."""

    def prefill(
        self,
        session: str,
        rows: tuple[int, ...],
        prompts: tuple[str, ...],
        token_ids: tuple[tuple[int, ...], ...] | None = None,
        talk: Talk | None = None,
    ) -> Receipt:
        """Read the prompts of some rows of a request and keep the caches; `share` sends the rows that are wanted.

        Raises SessionLost where `talk` says that this member holds an earlier turn, and it does not.
        """
        clock = Clock(self.llm.device)
        self._read(session, rows, prompts, token_ids, None, talk)
        clock.lap(f"prefill[{self.name}]")
        held = self._sessions.get(session)
        return Receipt(self.name, self._usage(clock, held), tuple(map(len, held.ids)))

    @ships
    def tokenize(
        self, prompts: tuple[str, ...], talk: Talk | None = None
    ) -> tuple[Receipt, tuple[tuple[int, ...], ...]]:
        """The token ids of prompts in this LLM's template, for senders that read them as they are."""
        return Receipt(self.name, Usage()), tuple(tuple(ids) for ids in self._encode(prompts, None, talk)[0])

    def overflow(self, request: Request, notes: Mapping[str, Mapping[int, str]]) -> tuple[str, ...]:
        """Find whose notes must be left out, the longest first, so that this LLM's context holds every prompt under the
        others', and its answer. notes: sender -> row -> text."""
        gone: dict[str, int] = {}
        answer = min(request.generation.max_tokens, self.llm.context // 4)
        for b, prompt in enumerate(request.prompts):
            room = self.llm.context - answer - len(encode_turns(self.llm, (prompt,)).ids) - _MARKS
            sizes = {
                name: len(self.llm.encode_answer(one_line(texts[b]))) + _MARKS
                for name, texts in notes.items()
                if b in texts and name not in gone
            }
            while sizes and sum(sizes.values()) >= room:
                longest = max(sizes, key=sizes.__getitem__)
                gone[longest] = sizes.pop(longest)
        return tuple(gone)

    def _read(
        self,
        session: str,
        rows: tuple[int, ...],
        prompts: tuple[str, ...],
        token_ids: tuple[tuple[int, ...], ...] | None,
        state_layer: int | None = None,
        talk: Talk | None = None,
    ) -> None:
        self._sessions.forget()
        self._sessions.check(session)
        ids, spans = self._encode(prompts, token_ids, talk)
        known = self._known(rows, ids, state_layer, talk)
        if known is None:
            cache, state = decoding.prefill(self.llm.model, ids, self.llm.pad_id, state_layer)
        else:
            cache, state = read_on(self.llm.model, ids, self.llm.pad_id, known, state_layer)
        reused = 0 if known is None else int(known.cache.lengths.sum())
        held = Session(rows, cache, spans, ids, state, state_layer, reused)
        self._sessions.put(session, held)
        if talk and talk.session:
            self._sessions.put(talk.session, held)

    def _encode(
        self, prompts: tuple[str, ...], token_ids: tuple[tuple[int, ...], ...] | None, talk: Talk | None
    ) -> tuple[list[list[int]], list[list[Span]]]:
        """Token ids and their places in the text, of all turns. Raises FedrayError where the LLM cannot read them."""
        if token_ids is not None:
            ids = [list(row) for row in token_ids]
            spans: list[list[Span]] = [[(i, i + 1) for i in range(len(row))] for row in ids]
        else:
            before = talk.before if talk and talk.before else ((),) * len(prompts)
            encoded = [encode_turns(self.llm, (*told, prompt)) for told, prompt in zip(before, prompts, strict=True)]
            ids, spans = [e.ids for e in encoded], [e.spans for e in encoded]
        for row in ids:
            self.llm.check_ids(row)
        return ids, spans

    def _known(
        self, rows: tuple[int, ...], ids: list[list[int]], state_layer: int | None, talk: Talk | None
    ) -> Known | None:
        if talk is None or not talk.session:
            return None
        sessions = self._sessions
        earlier = sessions.get(talk.session) if self.name in talk.held_by else sessions.find(talk.session)
        return earlier and earlier.known(rows, ids, state_layer)

    def _usage(self, clock: Clock, held: Session, rows: Sequence[Row] = ()) -> Usage:
        tokens = int(held.cache.lengths.sum())
        return Usage(
            clock.seconds,
            prompt_tokens=tokens,
            answer_tokens=sum(len(row.tokens) for row in rows),
            read_tokens={self.name: tokens - held.reused},
            reused_tokens={self.name: held.reused} if held.reused else {},
        )
