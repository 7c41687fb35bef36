"""The server's part in SpecFed (arXiv 2604.25777): it drafts, averages the workers' distributions, and accepts.

Every call names the round and the position it is for, so a call may be repeated. Shape legend: B batch, G draft tokens,
P positions, N positions of all rows, W workers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.border import Border
from fedray.llm.decoding import check_numbers
from fedray.llm.token_bytes import token_bytes
from fedray.llm.token_ids import shared
from fedray.member.clock import Clock
from fedray.member.core import Core
from fedray.member.sessions import Drafts, Session
from fedray.member.specfed import acceptance, bounds
from fedray.member.specfed.acceptance import distribution, padded, uniform
from fedray.member.specfed.reconstruction import average, reconstruct
from fedray.methods.specfed import SpecFed, Speculation
from fedray.types import FedrayError, Generation, Plan, Receipt, Request, Round, Row, Usage
from fedray.wire.distributions import SparseRows, sent_bytes, unpack_distributions
from fedray.wire.payload import Payload, ships
from fedray.wire.vocabulary import pack_vocabulary

Ids = tuple[tuple[int, ...], ...]


class Server(Core):
    """The part of a member that drafts and accepts."""

    def draft(self, session: str, request: Request, gamma: int, room: tuple[int, ...]) -> Round:
        """The first drafts of an answer whose prompts `open` has read. room: per row the tokens that the workers'
        contexts still hold."""
        clock = Clock(self.llm.device)
        held = self._sessions.get(session)
        self._take(self._threads)
        left = [min(rest, self.llm.context - len(row)) for rest, row in zip(room, held.ids, strict=True)]
        room = tuple(max(0, min(request.generation.max_tokens, rest)) for rest in left)
        state = held.drafts = Drafts([[] for _ in room], list(room), [rest == 0 for rest in room])
        self._draft(session, held, request.generation, gamma)
        clock.lap("draft")
        nothing = tuple(() for _ in room)
        return Round(nothing, tuple(state.ended), tuple(map(tuple, state.drafts)), Usage(clock.seconds))

    def accept(
        self,
        session: str,
        number: int,
        position: tuple[int, ...],
        workers: tuple[str, ...],
        generation: Generation,
        plan: Plan,
        gamma: int,
        *payloads: Payload,
    ) -> Round:
        """Average the workers' distributions, accept what stands of the drafts, and draft `gamma` tokens more.

        number: of the round, from 0 on: the last one is said again to whoever asks again; position: tokens of every
        row's answer so far; payload i is workers[i]'s. One that does not hold together is left out and named; where
        none is left, the answers stay as they are.
        """
        clock = Clock(self.llm.device)
        self._sessions.check(session)
        held = self._sessions.get(session)
        state = held.drafts
        if state is not None and state.reply is not None and number == state.rounds - 1:
            return state.reply
        if state is None or (number, position) != (state.rounds, state.lengths()):
            raise FedrayError(f"{self.name} drafted nothing for round {number} of session {session!r}: ask in order")
        asked = [(b, len(state.drafts[b]) + 1) for b in state.active()]
        border = Border()
        entries, rebuilt, size = self._unpack(workers, payloads, asked, plan.method.of(SpecFed), border)
        self._received_bytes += size
        clock.lap("unpack")
        figures = Speculation(
            drafted=(sum(n - 1 for _, n in asked),),
            turns=len(asked),
            forwards=len(payloads),
            verified=sum(len(e.ids_NK) for e in entries.values()),
            payload_bytes=size,
            translated=sum(len(e.ids_NK) for e in entries.values() if e.unmapped),
            unmapped=sum(e.unmapped for e in entries.values()),
        )
        emitted, accepted, decided = tuple(() for _ in state.answers), 0, 0
        if entries:  # or else answers and drafts stay as they are, for workers that were late
            self._take(self._threads)
            p_NV, voted_N, found = self._average(held, plan, entries, rebuilt, asked)
            accepted, decided, tokens = self._decide(held, p_NV, voted_N, asked, generation)
            emitted = self._emit(held, tokens, generation)
            figures += found
            clock.lap("accept")
        figures += Speculation(decided=(decided,), accepted=(accepted,), emitted=sum(map(len, emitted)))
        state.rounds, state.reply = state.rounds + 1, None
        if entries:
            self._draft(session, held, generation, gamma)
            clock.lap("draft")
        drafts = tuple(map(tuple, state.drafts))
        state.reply = Round(emitted, tuple(state.ended), drafts, Usage(clock.seconds), figures, border.missing())
        return state.reply

    @ships
    def vocabulary(self) -> tuple[Receipt, Payload]:
        """The bytes of this LLM's tokens, for workers with others."""
        size = self.llm.model.get_input_embeddings().num_embeddings
        tokens = [b""] * size if self.llm.tokenizer is None else token_bytes(self.llm.tokenizer, size)
        payload = pack_vocabulary(tokens, sorted(self.llm.stop_ids))
        return Receipt(self.name, Usage(payload_bytes=payload.nbytes)), payload

    def told(self, session: str) -> tuple[Row, ...]:
        """The answers so far."""
        state = self._sessions.get(session).drafts
        return tuple(Row(self.llm.decode(row), tuple(row)) for row in (state.answers if state else ()))

    def _unpack(
        self,
        workers: Sequence[str],
        payloads: Sequence[Payload],
        asked: Sequence[tuple[int, int]],
        how: SpecFed,
        border: Border,
    ) -> tuple[dict[str, SparseRows], list[Tensor], int]:
        """The workers' entries, their distributions (N, V) at all positions, and the bytes of both."""
        vocabulary, device = self.llm.model.get_input_embeddings().num_embeddings, self.llm.device
        found: dict[str, SparseRows] = {}
        rebuilt: list[Tensor] = []
        size = 0
        for worker, payload in zip(workers, payloads, strict=True):
            with border.of(worker):
                entries = unpack_distributions(payload, rows=asked, how=how, vocabulary=vocabulary, device=device)
                whole_NV = reconstruct(entries.ids_NK, entries.probabilities_NK, vocabulary, how.reconstruct)
                rebuilt.append(entries.at_all(whole_NV))
                found[worker] = entries
                size += sent_bytes(payload)
        return found, rebuilt, size

    def _average(
        self,
        held: Session,
        plan: Plan,
        entries: dict[str, SparseRows],
        rebuilt: list[Tensor],
        asked: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor, Speculation]:
        """(N, V) of all active rows' positions one after another, for which of them somebody had a distribution, and
        what the reconstruction lost."""
        has_WN = torch.stack([e.has_P for e in entries.values()])
        weights_WN = _weights(held, plan, tuple(entries), asked).to(has_WN.device) * has_WN
        p_NV = average(rebuilt, weights_WN)
        found = bounds.figures(list(entries.values()), weights_WN, p_NV, *_drawn_from(held.drafts, asked))
        return p_NV, weights_WN.sum(0) > 0, found

    def _decide(
        self, held: Session, p_NV: Tensor, voted_N: Tensor, asked: Sequence[tuple[int, int]], generation: Generation
    ) -> tuple[int, int, dict[int, list[int]]]:
        """How many drafts stand in all, how many were looked at, and each active row's new tokens.

        A row is decided up to the first position that nobody had a distribution for.
        """
        state, longest = held.drafts, max(n for _, n in asked)
        assert state is not None
        valid_BP = _valid(asked, longest, p_NV.device)
        p_BQV = p_NV.new_zeros(len(asked), longest, p_NV.shape[1])
        p_BQV[valid_BP] = p_NV
        voted_BP = torch.zeros_like(valid_BP)
        voted_BP[valid_BP] = voted_N
        begins = self._stops_of_first(held, [b for b, _ in asked], generation)
        first_BV = self._on_this_line(p_BQV[:, 0], begins, 0.0)
        mass_B1 = first_BV.sum(1, keepdim=True)
        p_BQV[:, 0] = torch.where(mass_B1 > 0, first_BV / mass_B1, p_BQV[:, 0])  # of a row without a voice it is 0
        leading_B = voted_BP.long().cumprod(1).sum(1)
        drafts = [state.drafts[b] for b, _ in asked]
        drafts_BG, counts_B = padded(drafts, longest - 1).to(p_NV.device), (leading_B - 1).clamp(min=0)
        if generation.temperature <= 0:
            accepted_B, token_B = acceptance.accept_greedy(p_BQV, drafts_BG, counts_B)
        else:
            rows = [b for b, _ in asked]
            q_BGV = p_BQV[:, :0] if state.q_BGV is None else state.q_BGV[rows, : longest - 1]
            draws_BR = uniform((len(asked), longest), generation.seed, "accept", state.rounds).to(p_NV.device)
            accepted_B, token_B = acceptance.accept(p_BQV, q_BGV, drafts_BG, counts_B, draws_BR)
        tokens: dict[int, list[int]] = {}
        stand = decided = 0
        state.stuck = {b for (b, _), leading in zip(asked, leading_B.tolist(), strict=True) if not leading}
        decisions = (accepted_B.tolist(), token_B.tolist(), counts_B.tolist())
        for (b, _), n, token, count in zip(asked, *decisions, strict=True):
            tokens[b] = row = [] if b in state.stuck else [*state.drafts[b][:n], token]
            end = self._end(row, held.ids[b], generation)
            read = min(end + 1, n + 1)  # what stands behind the end is not looked at
            stand, decided = stand + min(n, read), decided + min(read, count)
        return stand, decided, tokens

    def _emit(self, held: Session, tokens: Mapping[int, Sequence[int]], generation: Generation) -> Ids:
        """Let the answers go on, as far as they go: to a token that ends them, or to what there is room for."""
        state = held.drafts
        assert state is not None
        emitted: list[tuple[int, ...]] = [() for _ in state.answers]
        for b, row in tokens.items():
            stop = self._end(row, held.ids[b], generation)
            answer, left = state.answers[b], state.room[b] - len(state.answers[b])
            emitted[b] = tuple(row[: min(stop, left)])
            answer.extend(emitted[b])
            state.ended[b] = stop < len(row) or len(answer) == state.room[b]
        return tuple(emitted)

    def _end(self, tokens: Sequence[int], prompt: Sequence[int], generation: Generation) -> int:
        """Where the first token stands that ends an answer, or how many tokens there are."""
        stops = frozenset() if generation.full else self.llm.stops_behind(prompt)
        return next((i for i, token in enumerate(tokens) if token in stops), len(tokens))

    def _stops_of_first(self, held: Session, rows: Sequence[int], generation: Generation) -> list[frozenset[int]]:
        """Per row what ends its answer, where none of that stands yet."""
        state = held.drafts
        assert state is not None
        begun = [generation.full or bool(state.answers[b]) for b in rows]
        return [frozenset() if on else self.llm.stops_behind(held.ids[b]) for on, b in zip(begun, rows, strict=True)]

    def _draft(self, session: str, held: Session, generation: Generation, gamma: int) -> None:
        """Propose up to gamma tokens for every row that goes on; the workers' own token comes behind them."""
        state = held.drafts
        assert state is not None
        rows = zip(state.ended, state.room, state.answers, strict=True)
        left = [0 if ended else room - len(answer) for ended, room, answer in rows]
        wanted = [0 if b in state.stuck else max(0, min(gamma, n - 1)) for b, n in enumerate(left)]
        state.drafts, state.q_BGV = [[] for _ in wanted], None
        if not any(wanted):
            return
        track = held.read_on()
        texts = [[*prompt, *answer] for prompt, answer in zip(held.ids, state.answers, strict=True)]
        track.crop([min(len(text) - 1, shared(text, ids)) for text, ids in zip(texts, track.ids, strict=True)])
        more = [text[len(ids) :] if n else [] for text, ids, n in zip(texts, track.ids, wanted, strict=True)]
        sampled = generation.temperature > 0
        kept: list[Tensor] = []
        for step in range(max(wanted)):
            self._sessions.check(session)
            logits_BQV = track.read(self.llm.model, more, self.llm.pad_id)
            last_B = torch.tensor([max(len(row) - 1, 0) for row in more], device=logits_BQV.device)
            logits_BV = logits_BQV[torch.arange(len(more), device=last_B.device), last_B]
            check_numbers(self.name, logits_BV[[bool(row) for row in more]])
            if step == 0:
                begins = self._stops_of_first(held, range(len(more)), generation)
                logits_BV = self._on_this_line(logits_BV, begins)
            if sampled:
                q_BV = distribution(logits_BV, generation.temperature)
                draws_B = uniform((len(more),), generation.seed, "draft", state.rounds, step).to(q_BV.device)
                tokens = acceptance.draw(q_BV, draws_B).tolist()
                kept.append(q_BV)
            else:
                tokens = logits_BV.argmax(1).tolist()
            more = [[token] if step < n else [] for token, n in zip(tokens, wanted, strict=True)]
            for row, new in zip(state.drafts, more, strict=True):
                row.extend(new)
        state.q_BGV = torch.stack(kept, dim=1) if sampled else None


def _valid(counts: Sequence[tuple[int, int]], longest: int, device: Any) -> Tensor:
    """(B, P): which of the padded positions are there."""
    return torch.arange(longest, device=device)[None] < torch.tensor([[n] for _, n in counts], device=device)


def _drawn_from(state: Drafts | None, asked: Sequence[tuple[int, int]]) -> tuple[Tensor | None, Tensor | None]:
    """(N, V) what the draft at every position was drawn from, and (N,) where there is a draft; None: not drawn."""
    if state is None or state.q_BGV is None:
        return None, None
    nothing = torch.zeros_like(state.q_BGV[0, :1])
    q_NV = torch.cat([torch.cat([state.q_BGV[b, : n - 1], nothing]) for b, n in asked])
    return q_NV, torch.tensor([g < n - 1 for _, n in asked for g in range(n)], device=q_NV.device)


def _weights(held: Session, plan: Plan, workers: tuple[str, ...], counts: Sequence[tuple[int, int]]) -> Tensor:
    """(W, N): each worker's weight at every position; of rows whose gate lets nobody in, and of workers that are left
    with none, all have the same."""
    how = plan.method.of(SpecFed)
    if how.weigh == "gate" and held.weights_BS is not None:
        weights_BS = held.weights_BS.cpu().float()
    else:
        fixed = how.weights or (1.0,) * len(plan.senders)
        weights_BS = torch.tensor([fixed]).expand(len(held.rows), -1)
    of_row_BW = weights_BS[:, [plan.senders.index(worker) for worker in workers]]
    of_row_BW = torch.where(of_row_BW.sum(1, keepdim=True) > 0, of_row_BW, 1.0)
    rows = torch.tensor([b for b, n in counts for _ in range(n)])
    return of_row_BW[rows].T.contiguous()
