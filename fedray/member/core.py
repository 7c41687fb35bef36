"""The core of a member: its LLM, sessions and threads, and how it answers. Every other part builds on this."""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedray.fusion.placing import Unread
from fedray.llm import decoding
from fedray.llm.choices import score
from fedray.llm.decoding import Context
from fedray.llm.loading import describe, load_source
from fedray.llm.model import LLM
from fedray.llm.source import Source
from fedray.member.sessions import Session, Sessions
from fedray.types import Generation, MemberInfo, Prompting, Request, Row


class Core:
    """One LLM on one device."""

    def __init__(
        self,
        name: str,
        *,
        zoo: str = "tiny",
        device: str = "cpu",
        dtype: str | None = None,
        threads: int | None = None,
        reading: int | None = None,
        folder: Path | None = None,
        revision: str | None = None,
        prompting: Prompting | None = None,
        llm: LLM | None = None,
    ) -> None:
        self._threads, self._reading = threads, reading  # torch's; reading: while others of this machine read too
        self._take(threads and 1)  # an actor computes in another thread than this: two pools would disturb each other
        self.name = name
        source = Source(name, zoo, folder, revision, prompting)
        self.llm = llm or load_source(source, device, dtype, packed=True)
        self._take(threads)
        self._sessions = Sessions(name)
        self._received_bytes = 0

    def _take(self, threads: int | None) -> None:
        if threads and threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def info(self) -> MemberInfo:
        return describe(self.llm)

    def ping(self) -> float:
        return time.time()

    def stats(self) -> dict[str, float]:
        """rss_bytes: peak resident memory; device_bytes: peak of GPU memory; sessions: open ones; received_bytes:
        payload bytes taken so far."""
        peak, device = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, self.llm.device
        return {
            "rss_bytes": peak * (1 if platform.system() == "Darwin" else 1024),
            "device_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
            "sessions": len(self._sessions),
            "received_bytes": self._received_bytes,
        }

    def cancel(self, session: str) -> None:
        """Ask whatever runs for this session, or still waits to run, to stop."""
        self._sessions.cancel(session)

    def release(self, session: str) -> None:
        """Drop a session for good. A call for it that has not run yet will find it lost."""
        self._sessions.release(session)

    def _read_rest(self, held: Session, context: Context, unread: Unread | None = None) -> Tensor:
        """Read what is not read yet on top of what is fused: the prompts' last tokens, or `unread`; returns logits."""
        if unread is None:
            last = torch.tensor([[row[-1]] for row in held.ids], device=self.llm.device)
            return decoding.step(self.llm.model, context, last)
        ids_BQ, valid_BQ = decoding.pad(unread.ids, self.llm.pad_id, self.llm.device)
        positions_BQ, _ = decoding.pad(unread.positions, 0, self.llm.device)
        return decoding.step(self.llm.model, context, ids_BQ, valid_BQ, positions_BQ=positions_BQ)

    def _respond(
        self, session: str, held: Session, context: Context, request: Request, unread: Unread | None = None
    ) -> tuple[Row, ...]:
        """Score the choices, or decode, after the rest of the prompt is read on top of what is fused."""
        logits = self._read_rest(held, context, unread)
        if request.choices is None:
            return self._generate(session, held.ids, context, logits, request.generation)
        return self._score(context, logits, request.choices)

    def _score(self, context: Context, logits: Tensor, choices: tuple[tuple[str, ...], ...]) -> tuple[Row, ...]:
        ids = [[self.llm.encode_choice(text) for text in row] for row in choices]
        scores, greedy = score(self.llm.model, context, logits, ids, self.llm.pad_id)
        said = [not any(map(math.isnan, row)) and max(row) > -math.inf for row in scores]
        return tuple(
            _best(choices[b], ids[b], scores[b], greedy[b]) if said[b] else Row("", failed=True)
            for b in range(len(choices))
        )

    def _decode(
        self,
        session: str,
        prompts: Sequence[Sequence[int]],
        context: Context,
        logits: Tensor,
        generation: Generation,
        failed: set[int],
        begun: bool = False,
    ) -> Iterator[list[int | None]]:
        stops = list(map(self.llm.stops_behind, prompts))
        return decoding.decode(
            self.llm.model,
            context,
            logits if generation.full or begun else self._on_this_line(logits, stops),
            generation,
            stops=stops,
            room=[self.llm.context - int(n) for n in context.next_position_B],
            cancelled=lambda: self._sessions.has_ended(session),
            failed=failed,
        )

    def _on_this_line(self, first_BV: Tensor, stops: Sequence[frozenset[int]], nothing: float = -torch.inf) -> Tensor:
        """Keep an answer that ends with its line from ending it before it has begun: base LLMs like to leave the line
        behind "Answer:" empty where notes stand above. first_BV: logits of its first token, or with `nothing` = 0
        probabilities."""
        breaks = {b: tokens for b, ends in enumerate(stops) if (tokens := sorted(ends - self.llm.stop_ids))}
        first_BV = first_BV.clone() if breaks else first_BV
        for b, tokens in breaks.items():
            first_BV[b, tokens] = nothing
        return first_BV

    def _generate(
        self,
        session: str,
        prompts: Sequence[Sequence[int]],
        context: Context,
        logits: Tensor,
        generation: Generation,
    ) -> tuple[Row, ...]:
        """Decode the answers behind prompts, given by their ids."""
        ids: list[list[int]] = [[] for _ in range(logits.shape[0])]
        failed: set[int] = set()
        for tokens in self._decode(session, prompts, context, logits, generation, failed):
            for row, token in zip(ids, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return tuple(
            Row("", failed=True) if b in failed else Row(self.llm.decode(row), tuple(row)) for b, row in enumerate(ids)
        )


def _best(choices: Sequence[str], ids: Sequence[list[int]], scores: Sequence[float], greedy: Sequence[bool]) -> Row:
    """The answer to one prompt: its likeliest choice."""
    best = max(range(len(choices)), key=scores.__getitem__)
    return Row(choices[best], tuple(ids[best]), best, tuple(scores), tuple(greedy))
