"""A member's part in FedAttn: it holds a segment, reads it up to each sync layer, and the publisher answers.

Calls carry (session, position), position being the number of the sync that a call ends. `begin` or `advance` gives what
it gave when it is repeated at once; out of step, or once the pass has failed, each raises SessionLost. A repeated
`hold` begins anew, and ends the pass that ran; `reply` answers once. The pass is parked on a thread between calls, so
that others may compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedray.border import Border
from fedray.errors import SessionLost
from fedray.fusion.norms import check_norms
from fedray.llm.decoding import Context, empty_context, pad, step
from fedray.llm.families import window_of
from fedray.llm.model import LLM, check_length
from fedray.member.clock import Clock
from fedray.member.core import Core
from fedray.member.fedattn.paused_pass import Parked
from fedray.member.fedattn.remote_rows import Others, Own, Rows, joined, thinned, to_send
from fedray.member.sessions import Kept
from fedray.methods.fedattn import FedAttn, sync_layers
from fedray.methods.method import Codec, Wire
from fedray.types import Answer, FedrayError, Generation, KVSpec, Receipt, Usage, failed_rows
from fedray.wire.header import Expected
from fedray.wire.payload import Payload, pack, ships, unpack

Choices = tuple[tuple[str, ...], ...]
Pass = Parked[Own, tuple[Context, Tensor]]
Given = tuple[Receipt, Payload | None]


@dataclass(slots=True)
class Segment(Kept):
    """One participant's part of a batch of prompts. ids: per row; number: of the participant, the publisher's the last.

    posted: the sync at which the pass is parked, and what the call that led there gave; None while the pass runs, and
    once it has ended or failed. starts: per row the tokens before the segment; border: whose payloads were refused.
    """

    ids: list[list[int]]
    how: FedAttn
    number: int
    codec: Codec
    seed: int
    running: Pass | None = None
    lengths: Tensor | None = None
    posted: tuple[int, Given] | None = None
    starts: tuple[int, ...] = ()
    border: Border = field(default_factory=Border)

    @property
    def publishes(self) -> bool:
        return self.number == self.how.participants - 1

    def given(self, position: int) -> Given | None:
        """What the latest call gave, if it led to this sync."""
        return self.posted[1] if self.posted is not None and self.posted[0] == position else None

    def seeds(self, what: str) -> list[str]:
        """Per row what its draws depend on: its own tokens, which nobody else knows, and not the batch it is in."""
        return [f"{what} {self.seed} {self.number} {' '.join(map(str, row))}" for row in self.ids]

    def end(self) -> None:
        if self.running is not None:
            self.running.end()


class Participant(Core):
    """The part of a member that shares a prompt with others."""

    def hold(
        self,
        session: str,
        texts: tuple[str, ...] | tuple[tuple[int, ...], ...],
        how: FedAttn,
        number: int,
        codec: Codec = "none",
        seed: int = 0,
    ) -> Receipt:
        """Take one's segment of every row, as text or as token ids; the receipt's lengths are their tokens.

        number: of the participant, 0 begins the prompt. Raises FedrayError where layers have a sliding window, and
        where the tokenizer reads parts of a text otherwise than the whole.
        """
        clock = Clock(self.llm.device)
        self._sessions.forget()
        self._sessions.check(session)
        if window_of(self.llm.model.config) is not None:
            raise FedrayError(f"{self.name} cannot take part in protocol=fedattn: its layers have a sliding window")
        if how.participants > 1 and any(isinstance(text, str) for text in texts):
            check_parts(self.llm)
        ends = {"first": number == 0, "last": number == how.participants - 1}
        ids = [self.llm.encode_part(t, **ends) if isinstance(t, str) else list(t) for t in texts]
        for row in ids:
            self.llm.check_ids(row)
        self._sessions.put(session, Segment(ids, how, number, codec, seed))
        clock.lap(f"hold[{self.name}]")
        return Receipt(self.name, Usage(clock.seconds), tuple(map(len, ids)))

    @ships
    def begin(self, session: str, starts: tuple[int, ...]) -> Given:
        """Read up to the first sync layer, and send one's rows of it. starts: per row the tokens before the segment."""
        clock = Clock(self.llm.device)
        held = self._segment(session)
        if held.running is None:
            self._take(self._reading)
            held.starts = starts
            held.running = Parked(self._pass(held, starts))
            self._sessions.check(session)  # a release that came before there was a pass has ended none
            held.running.begin()
            return self._post(held, 0, clock)
        given = held.given(0)
        if given is None:
            raise SessionLost(f"{self.name}: session {session!r} has begun, and is not at its first sync")
        return given

    @ships
    def advance(self, session: str, position: int, senders: tuple[str, ...], *payloads: Payload) -> Given:
        """Take others' rows of sync `position`, read up to the next one, and send one's rows of that.

        Payload i is senders[i]'s, whose segments stand before one's own, in their order.
        """
        clock = Clock(self.llm.device)
        held = self._segment(session)
        given = held.given(position + 1)
        if given is None:
            self._meet(held, position, senders, payloads, clock)
            given = self._post(held, position + 1, clock)
        return given

    def reply(
        self,
        session: str,
        position: int,
        senders: tuple[str, ...],
        choices: Choices | None,
        generation: Generation,
        *payloads: Payload,
    ) -> Answer:
        """As the publisher: take others' rows of the last sync, read to the end, and answer."""
        clock = Clock(self.llm.device)
        held = self._segment(session)
        self._meet(held, position, senders, payloads, clock)
        clock.lap(f"prefill[{self.name}]")
        assert held.running is not None
        if held.running.result is None:
            raise SessionLost(f"{self.name}: a reply to sync {position} of session {session!r}, which is not the last")
        self._take(self._threads)
        context, logits = held.running.result
        with torch.no_grad():
            rows = (
                self._generate(session, held.ids, context, logits, generation)
                if choices is None
                else self._score(context, logits, choices)
            )
        clock.lap("decode")
        return Answer(
            rows,
            self.name,
            (),
            (*held.border.missing(), *failed_rows(self.name, rows)),
            Usage(clock.seconds, answer_tokens=sum(len(row.tokens) for row in rows)),
        )

    def prompt_logits(self, session: str) -> list[list[float]]:
        """Next-token logits (B, V) after the prompt, as the publisher; for tests and comparisons at small sizes."""
        running = self._segment(session).running
        if running is None or running.result is None:
            raise SessionLost(f"{self.name}: session {session!r} has not been read to its end")
        return running.result[1].tolist()

    def _segment(self, session: str) -> Segment:
        self._sessions.check(session)
        return self._sessions.get(session, Segment)

    def _pass(self, held: Segment, starts: Sequence[int]) -> Callable[[Callable[[Own], Any]], tuple[Context, Tensor]]:
        """The forward pass over one's segment, which parks at every sync layer."""
        how, device = held.how, self.llm.device
        share = how.publisher_tokens if held.publishes else how.tokens
        places = [thinned(len(row), share, seed) for row, seed in zip(held.ids, held.seeds("tokens"), strict=True)]
        ids_BT, valid_BT = pad(
            [[row[i] for i in of] for row, of in zip(held.ids, places, strict=True)], self.llm.pad_id, device
        )
        positions_BT, _ = pad([[start + i for i in of] for start, of in zip(starts, places, strict=True)], 0, device)
        for start, row in zip(starts, held.ids, strict=True):
            check_length(self.name, start + len(row), self.llm.context)
        held.lengths = valid_BT.sum(1)
        layers, batch = sync_layers(how, self.llm.spec.layers), len(held.ids)  # a pass that held its segment would stay

        @torch.no_grad()
        def work(park: Callable[[Own], Any]) -> tuple[Context, Tensor]:
            context = empty_context(batch, device)
            context.beyond = others = Others(layers, park)
            logits = step(self.llm.model, context, ids_BT, valid_BT, positions_BQ=positions_BT)
            others.settle()
            return context, logits

        return work

    def _meet(
        self, held: Segment, position: int, senders: tuple[str, ...], payloads: Sequence[Payload], clock: Clock
    ) -> None:
        """Resume the pass with others' rows of the sync layer it is parked at."""
        if held.running is None or held.running.post is None or held.given(position) is None:
            awaited = "none" if held.posted is None else held.posted[0]
            raise SessionLost(f"{self.name}: a call for sync {position} came where {awaited} was next")
        rows = self._rows(held, senders, payloads)
        clock.lap("unpack")
        held.posted = None
        held.running.resume(rows)

    def _rows(self, held: Segment, senders: tuple[str, ...], payloads: Sequence[Payload]) -> Rows | None:
        assert held.running is not None and held.running.post is not None
        like = held.running.post.key_BNTH
        batch, heads, _, dim = like.shape
        spec, layer, wire = KVSpec(1, heads, dim), ((0,), (0,)), Wire(codec=held.codec)
        expected = Expected("", spec, tuple(range(batch)), held.starts, layer, wire)
        caches = []
        for sender, payload in zip(senders, payloads, strict=True):
            if sender in held.border.refused:  # its rows are left out from then on, and the publisher names it
                continue
            with held.border.of(sender):
                shipment = unpack(payload, replace(expected, member=sender), device=like.device, dtype=like.dtype)
                self._received_bytes += payload.nbytes
                check_norms(shipment.sent, layer, spec, None)
                caches.append(shipment.cache)
        return joined(caches)

    def _post(self, held: Segment, position: int, clock: Clock) -> Given:
        """What a call gives: one's rows of the layer the pass is parked at; the publisher's nobody would read."""
        assert held.running is not None and held.lengths is not None
        clock.lap(f"prefill[{self.name}]")
        own, payload = held.running.post, None
        if own is not None and not held.publishes:
            rows = to_send(own, held.lengths, held.how, held.seeds(f"exchange {own.layer}"))
            payload = pack(self.name, rows, list(range(len(held.ids))), codec=held.codec)
            clock.lap(f"pack[{self.name}]")
        size = 0 if payload is None else payload.nbytes
        given = Receipt(self.name, Usage(clock.seconds, size)), payload
        held.posted = position, given
        return given


def check_parts(llm: LLM) -> None:
    """Raises FedrayError where the tokens of a prompt's parts are not the prompt's."""
    for part, rest in (("a.\n", "b"), ("a", " b")):
        if llm.encode_answer(part) + llm.encode_answer(rest) != llm.encode_answer(part + rest):
            raise FedrayError(
                f"{llm.name} cannot take part in protocol=fedattn: its tokenizer reads the beginning of every text as "
                "that of a word, so that the segments' tokens would not be the prompt's; give token ids"
            )
