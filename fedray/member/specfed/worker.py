"""A worker's part in SpecFed (arXiv 2604.25777): it reads drafts, and sends its distributions.

It crops its cache to the position a call names before it reads, so a call may be repeated and a late worker catches up.
Shape legend: B batch, Q tokens read at once, P positions, N positions of all rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.llm.decoding import check_numbers
from fedray.llm.token_ids import shared
from fedray.member.clock import Clock
from fedray.member.core import Core
from fedray.member.sessions import Drafts, Session
from fedray.member.specfed.acceptance import distribution
from fedray.member.specfed.translation import Translation
from fedray.methods.specfed import SpecFed
from fedray.types import FedrayError, Generation, Receipt, Usage
from fedray.wire.distributions import count_of, pack_distributions, sent_bytes
from fedray.wire.payload import Payload, ships
from fedray.wire.vocabulary import unpack_vocabulary

Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a worker is told of a row. position: tokens of the answer that it was told before."""

    position: int
    known: tuple[int, ...]
    drafts: tuple[int, ...]


class Worker(Core):
    """The part of a member that verifies drafts."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(name, **more)
        self._translations: dict[str, Translation] = {}

    @ships
    def verify(
        self,
        session: str,
        rows: tuple[int, ...],
        position: tuple[int, ...],
        known: Ids,
        drafts: Ids,
        generation: Generation,
        how: SpecFed,
        *vocabulary: Payload,
    ) -> tuple[Receipt, Payload]:
        """Read what an answer goes on with, and send the distributions behind its last known token and every draft.

        position: per row the answer's tokens that were sent before, to which the cache is cropped; known: those after
        them that are certain; drafts: those that may be. vocabulary: the server's, where it is not this LLM's. The
        prompts were read by `prefill`.
        """
        clock = Clock(self.llm.device)
        self._sessions.check(session)
        held = self._sessions.get(session)
        self._take(self._threads)
        translation = self._translation(*vocabulary) if vocabulary else None
        heard = zip(rows, position, known, drafts, strict=True)
        told = {row: _Told(before, certain, maybe) for row, before, certain, maybe in heard}
        p_NV, has_P = self._hear(held, told, translation, generation.temperature)
        clock.lap(f"verify[{self.name}]")
        unmapped = 0.0
        if translation is not None:
            p_NV = translation.distribution(p_NV)
            unmapped = float((1 - p_NV.sum(1)).clamp(min=0).sum())
            p_NV, has_P = _with_weight(p_NV, has_P)
        payload = pack_distributions(
            p_NV,
            [(row, len(of.drafts) + 1) for row, of in told.items()],
            count_of(how.top_k, p_NV.shape[1]),
            has_P=has_P,
            whole=how.measure,
            unmapped=unmapped,
        )
        clock.lap(f"pack[{self.name}]")
        return Receipt(self.name, Usage(clock.seconds, sent_bytes(payload))), payload

    def _translation(self, payload: Payload) -> Translation:
        """The way from a server's vocabulary to one's own and back, made once."""
        key = hashlib.sha256(b"".join(buffer.tobytes() for buffer in payload.buffers)).hexdigest()
        if key not in self._translations:
            if self.llm.tokenizer is None:
                raise FedrayError(f"{self.name} has no tokenizer: it cannot read the tokens of another LLM")
            size = self.llm.model.get_input_embeddings().num_embeddings
            server = unpack_vocabulary(payload)
            self._translations[key] = Translation(self.name, self.llm.tokenizer, size, self.llm.stop_ids, server)
        return self._translations[key]

    def _hear(
        self, held: Session, told: Mapping[int, _Told], translation: Translation | None, temperature: float
    ) -> tuple[Tensor, Tensor | None]:
        """((N, V) distributions at the positions that have one, which of all positions those are: None is all)."""
        track, heard = held.read_on(), held.drafts or Drafts([[] for _ in held.rows], [], [])
        held.drafts = heard
        place = {row: b for b, row in enumerate(held.rows)}
        keep, more = [len(row) for row in track.ids], [[] for _ in track.ids]
        wanted: list[tuple[int, list[int | None]]] = []  # per row the tokens that stand before each of its positions
        for row, of in told.items():
            b, prompt = place[row], held.ids[place[row]]
            if of.position > len(heard.answers[b]):
                raise FedrayError(f"{self.name} has not read {of.position} tokens of the answer in row {row}")
            said = [*heard.answers[b][: of.position], *of.known]
            heard.answers[b] = [*said, *of.drafts]
            if translation is None:
                ids, before = [*said, *of.drafts], [len(said) + i for i in range(len(of.drafts) + 1)]
            else:
                ids, before = translation.read(said, of.drafts)
            text, first = [*prompt, *ids], min((n for n in before if n is not None), default=len(ids))
            self.llm.check_ids(text)
            keep[b] = min(shared(text, track.ids[b]), len(prompt) + first - 1)
            more[b] = text[keep[b] :]
            wanted.append((b, [None if n is None else len(prompt) + n - 1 - keep[b] for n in before]))
        track.crop(keep)
        logits_BQV = track.read(self.llm.model, more, self.llm.pad_id)
        index = [(b, q) for b, places in wanted for q in places if q is not None]
        rows, columns = ([pair[side] for pair in index] for side in (0, 1))
        has = [q is not None for _, places in wanted for q in places]
        logits_NV = logits_BQV[rows, columns]
        check_numbers(self.name, logits_NV)
        p_NV = distribution(logits_NV, temperature)
        return p_NV, None if all(has) else torch.tensor(has)


def _with_weight(p_NV: Tensor, has_P: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Without the positions of which nothing is left on the wire, since next to nothing could be mapped."""
    sent_N = (p_NV.amax(1).half() > 0).cpu()
    if bool(sent_N.all()):
        return p_NV, has_P
    has_P = torch.ones(len(p_NV), dtype=torch.bool) if has_P is None else has_P.clone()
    has_P[has_P.clone()] = sent_N
    return p_NV[sent_N.to(p_NV.device)], has_P
