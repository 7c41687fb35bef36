"""A member: one LLM that can send its cache, receive others' and answer. A plain class; Ray wraps it in runtime/.

Every method takes a batch. What a caller may repeat or what must outlive a call lies in a session, released by the
caller or after `SESSION_TTL_S`. Methods marked `@ships` return (receipt, payload).
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedray.fusion import combine, controls
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import Gate, fixed_weights
from fedray.fusion.registry import load_fuser, load_gate
from fedray.llm import decoding
from fedray.llm.cache import KVCache
from fedray.llm.decoding import Context
from fedray.llm.loading import describe, load
from fedray.llm.model import LLM, Span
from fedray.types import (
    Answer,
    FedrayError,
    Generation,
    MemberInfo,
    Missing,
    Opening,
    Plan,
    Receipt,
    Request,
    Row,
    SessionLost,
    Usage,
)
from fedray.wire.payload import CorruptPayload, Payload, Shipment, pack, unpack

SESSION_TTL_S = 600.0  # a session nobody released or used for so long is dropped


def ships(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method that returns (receipt, payload): the payload stays in the object store."""
    method.ships = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


@dataclass(slots=True)
class _Session:
    """Prompts that were read: caches, where their tokens lie in the text, ids, and the states a gate reads."""

    cache: KVCache
    spans: list[list[Span]]
    ids: list[list[int]]
    state_BTD: Tensor | None = None
    weights_BS: Tensor | None = None
    used_at: float = field(default_factory=time.monotonic)


class Clock:
    """Seconds per phase, measured where the work happens."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class Member:
    """One LLM on one device."""

    def __init__(
        self,
        name: str,
        *,
        zoo: str = "tiny",
        device: str = "cpu",
        dtype: str | None = None,
        threads: int | None = None,
        folder: Path | None = None,
        llm: LLM | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.name = name
        self.llm = llm or load(name, zoo=zoo, device=device, dtype=dtype, folder=folder)
        self._sessions: dict[str, _Session] = {}
        self._ended: dict[str, float] = {}  # sessions cancelled or released, and when: what still runs for them stops
        self._fusers: dict[str, Fuser] = {}
        self._gates: dict[str, Gate] = {}
        self._received_bytes = 0

    # -- control ----------------------------------------------------------------------------------------------------

    def info(self) -> MemberInfo:
        return describe(self.llm)

    def ping(self) -> float:
        return time.time()

    def stats(self) -> dict[str, float]:
        """rss_bytes: peak resident memory; sessions: open ones; received_bytes: payload bytes taken so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "rss_bytes": peak * (1 if platform.system() == "Darwin" else 1024),
            "sessions": len(self._sessions),
            "received_bytes": self._received_bytes,
        }

    def cancel(self, session: str) -> None:
        """Ask whatever runs for this session, or still waits to run, to stop."""
        self._ended[session] = time.monotonic()

    def release(self, session: str) -> None:
        """Drop a session for good. A call for it that has not run yet will find it lost."""
        self.cancel(session)
        self._sessions.pop(session, None)

    # -- as a sender ------------------------------------------------------------------------------------------------

    def prefill(
        self, session: str, prompts: tuple[str, ...], token_ids: tuple[tuple[int, ...], ...] | None = None
    ) -> Receipt:
        """Read the prompts and keep the caches; `share` sends the rows that are wanted."""
        clock = Clock()
        self._read(session, prompts, token_ids)
        clock.lap(f"prefill[{self.name}]")
        tokens = tuple(int(n) for n in self._session(session).cache.lengths)
        return Receipt(self.name, Usage(clock.seconds), tokens)

    @ships
    def share(
        self,
        session: str,
        rows: tuple[int, ...],
        *,
        prompts: tuple[str, ...] | None = None,
        token_ids: tuple[tuple[int, ...], ...] | None = None,
        spans: bool = False,
        control: str = "none",
        seed: int = 0,
    ) -> tuple[Receipt, Payload]:
        """Send the caches of some rows. With `prompts` (or `token_ids`: one per row in `rows`) they are read first.

        control: "noise" sends norm-matched noise, "constant" one fixed vector per layer and head, instead of the cache.
        spans: send the place of every token in the text too (mix needs it).
        """
        clock = Clock()
        own = prompts is not None or token_ids is not None
        if own:
            self._read(session, prompts or (), token_ids)
            clock.lap(f"prefill[{self.name}]")
        held = self._session(session)
        picked = list(range(len(rows))) if own else list(rows)
        cache = held.cache.select(picked)
        if control in ("noise", "constant"):
            cache = self._without_knowledge(cache, control, [held.ids[i] for i in picked], seed)
        payload = pack(self.name, cache, list(rows), [held.spans[i] for i in picked] if spans else None)
        clock.lap(f"pack[{self.name}]")
        return Receipt(self.name, Usage(clock.seconds), tuple(int(n) for n in cache.lengths)), payload

    # -- as the receiver ----------------------------------------------------------------------------------------------

    def open(self, session: str, request: Request, plan: Plan) -> Opening:
        """Read the receiver's own prompts and weigh the plan's senders by its gate."""
        clock = Clock()
        gate = self._gate(plan)
        clock.lap("gate")
        self._read(session, request.prompts, request.token_ids, None if gate is None else gate.config.layer)
        clock.lap("prefill")
        held = self._session(session)
        held.weights_BS = self._weigh(held, gate, plan)
        clock.lap("gate")
        tokens = int(held.cache.lengths.sum())
        weights = tuple(tuple(row) for row in held.weights_BS.tolist())
        return Opening(weights, Usage(clock.seconds, prompt_tokens=tokens))

    def answer(
        self, session: str, senders: tuple[str, ...], request: Request, plan: Plan, *payloads: Payload
    ) -> Answer:
        """Fuse the senders' caches into one's own and answer: score the choices, or decode.

        Payload i is senders[i]'s. A payload that does not hold together is left out and named in `missing`.
        """
        clock = Clock()
        context, took_part, missing, size = self._fuse(session, senders, plan, payloads, clock)
        held = self._session(session)
        weights = self._weights_by_name(held, plan)
        logits = self._read_last_token(held, context)
        clock.lap("decode")
        if request.choices is not None:
            rows = self._score(context, logits, request.choices)
        else:
            rows = self._generate(session, context, logits, request.generation)
        clock.lap("decode")
        rows = tuple(replace(row, weights=w) for row, w in zip(rows, weights, strict=True))
        usage = Usage(clock.seconds, size, answer_tokens=sum(len(r.tokens) for r in rows))
        return Answer(rows, self.name, took_part, missing, usage)

    def stream(
        self, session: str, senders: tuple[str, ...], request: Request, plan: Plan, *payloads: Payload
    ) -> Iterator[str | Answer]:
        """Like `answer` for one prompt: pieces of its text as they are decoded, then the Answer."""
        clock = Clock()
        context, took_part, missing, size = self._fuse(session, senders, plan, payloads, clock)
        held = self._session(session)
        logits = self._read_last_token(held, context)
        ids: list[int] = []
        said = ""
        for (token,) in self._decode(session, context, logits, request.generation):
            assert token is not None
            ids.append(token)
            text = self.llm.decode(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an unfinished character: wait for the rest of it
                yield text[len(said) :]
                said = text
        text = self.llm.decode(ids)
        if text != said:
            yield text[len(said) :]
        clock.lap("decode")
        (weights,) = self._weights_by_name(held, plan)
        usage = Usage(clock.seconds, size, answer_tokens=len(ids))
        yield Answer((Row(text, tuple(ids), weights=weights),), self.name, took_part, missing, usage)

    def generate(self, session: str, prompts: tuple[str, ...], generation: Generation) -> Answer:
        """Answer prompts alone, in text: what a sender says where no fuser carries its cache."""
        clock = Clock()
        self._read(session, prompts, None)
        held = self._session(session)
        context = combine.concat(held.cache.crop(held.cache.lengths - 1), [])
        rows = self._generate(session, context, self._read_last_token(held, context), generation)
        clock.lap(f"hint[{self.name}]")
        return Answer(rows, self.name, (), usage=Usage(clock.seconds, answer_tokens=sum(len(r.tokens) for r in rows)))

    def first_logits(self, session: str, senders: tuple[str, ...], plan: Plan, *payloads: Payload) -> list[list[float]]:
        """Next-token logits (B, V) after the prompt; for tests and comparisons at small sizes."""
        context, _, _, _ = self._fuse(session, senders, plan, payloads, Clock())
        return self._read_last_token(self._session(session), context).tolist()

    # -- how ----------------------------------------------------------------------------------------------------------

    def _read(
        self,
        session: str,
        prompts: tuple[str, ...],
        token_ids: tuple[tuple[int, ...], ...] | None,
        state_layer: int | None = None,
    ) -> None:
        self._drop_stale()
        self._check_running(session)
        if token_ids is not None:
            ids = [list(row) for row in token_ids]
            spans: list[list[Span]] = [[(i, i + 1) for i in range(len(row))] for row in ids]
            for row in ids:
                self.llm.check_length(len(row))
        else:
            encoded = [self.llm.encode(prompt) for prompt in prompts]
            ids, spans = [e.ids for e in encoded], [e.spans for e in encoded]
        cache, state = decoding.prefill(self.llm.model, ids, self.llm.pad_id, state_layer)
        self._sessions[session] = _Session(cache, spans, ids, state)
        if session in self._ended:  # while it was being read
            self._sessions.pop(session, None)
            self._check_running(session)

    def _session(self, session: str) -> _Session:
        held = self._sessions.get(session)
        if held is None:
            raise SessionLost(f"{self.name} holds no session {session!r}; it was released, or the member was restarted")
        held.used_at = time.monotonic()
        return held

    def _without_knowledge(self, cache: KVCache, control: str, ids: list[list[int]], seed: int) -> KVCache:
        if control == "noise":
            return controls.noise(cache, [f"{self.name} {row} {seed}" for row in ids])
        same, _ = decoding.prefill(self.llm.model, [self.llm.encode(controls.CONSTANT_TEXT).ids], self.llm.pad_id)
        return controls.constant(cache, same)

    def _check_running(self, session: str) -> None:
        if session in self._ended:
            raise SessionLost(f"{self.name}: session {session!r} was cancelled or released")

    def _drop_stale(self) -> None:
        """Forget sessions nobody used for long; other threads may be at the dictionaries too."""
        oldest = time.monotonic() - SESSION_TTL_S
        for session in [s for s, held in list(self._sessions.items()) if held.used_at < oldest]:
            self._sessions.pop(session, None)
        for session in [s for s, ended_at in list(self._ended.items()) if ended_at < oldest]:
            self._ended.pop(session, None)

    def _gate(self, plan: Plan) -> Gate | None:
        """The plan's learned gate, loaded once."""
        if plan.gate != "learned" or not plan.senders:
            return None
        if plan.gate_artifact is None:
            raise FedrayError(f"the plan for {self.name} asks for gate=learned and names no gate")
        key = plan.gate_artifact.hash
        if key not in self._gates:
            self._gates[key] = load_gate(plan.gate_artifact, str(self.llm.device))
        return self._gates[key]

    @torch.no_grad()
    def _weigh(self, held: _Session, gate: Gate | None, plan: Plan) -> Tensor:
        if gate is None:
            return fixed_weights(plan.gate, held.cache.batch, len(plan.senders), plan.seed)
        assert held.state_BTD is not None
        return gate.weigh(held.state_BTD.float(), held.cache.valid_BT(), plan.senders, plan.threshold).cpu()

    def _weights_by_name(self, held: _Session, plan: Plan) -> list[dict[str, float]]:
        if held.weights_BS is None:
            return [{} for _ in range(held.cache.batch)]
        rows = held.weights_BS.tolist()
        return [dict(zip(plan.senders, row, strict=True)) for row in rows]

    @torch.no_grad()
    def _fuse(
        self, session: str, senders: tuple[str, ...], plan: Plan, payloads: tuple[Payload, ...], clock: Clock
    ) -> tuple[Context, tuple[str, ...], tuple[Missing, ...], int]:
        held = self._session(session)
        parts, missing = [], []
        for sender, payload in zip(senders, payloads, strict=True):
            try:
                shipment = unpack(payload, device=self.llm.device, dtype=self.llm.model.dtype)
                part = self._part(sender, shipment, held, plan)
                part.check(held.cache)
                parts.append(part)
            except FedrayError as error:  # a payload or a fuser that does not hold: this sender's trouble alone
                missing.append(Missing(sender, str(error)))
        size = sum(p.nbytes for p in payloads)
        self._received_bytes += size
        clock.lap("unpack")
        own = held.cache.crop(held.cache.lengths - 1)
        if plan.fusion == "mix":
            context = combine.concat(combine.mix(own, held.spans, parts, plan.fusion_order), [])
        else:
            context = combine.concat(own, parts)
        clock.lap("fuse")
        return context, tuple(part.sender for part in parts), tuple(missing), size

    def _part(self, sender: str, shipment: Shipment, held: _Session, plan: Plan) -> combine.Part:
        artifact = plan.fusers[sender]
        if artifact.hash not in self._fusers:
            self._fusers[artifact.hash] = load_fuser(artifact, str(self.llm.device)).to(self.llm.model.dtype)
        batch = held.cache.batch
        if any(row >= batch for row in shipment.rows):
            raise CorruptPayload(f"payload of {sender}: it names a row beyond the batch of {batch}; ask again")
        weights_BS = held.weights_BS if held.weights_BS is not None else torch.ones(batch, len(plan.senders))
        spans: list[tuple[Span, ...]] = [()] * batch
        for row, of_row in zip(shipment.rows, shipment.spans, strict=False):
            spans[row] = of_row
        return combine.Part(
            sender=sender,
            fuser=self._fusers[artifact.hash],
            cache=shipment.cache.scatter(shipment.rows, batch),
            weight_B=weights_BS[:, plan.senders.index(sender)].to(self.llm.device),
            spans=tuple(spans),
        )

    def _read_last_token(self, held: _Session, context: Context) -> Tensor:
        last = torch.tensor([[row[-1]] for row in held.ids], device=self.llm.device)
        logits, _ = decoding.step(self.llm.model, context, last)
        assert logits is not None
        return logits

    def _score(self, context: Context, logits: Tensor, choices: tuple[tuple[str, ...], ...]) -> tuple[Row, ...]:
        ids = [[self.llm.encode_answer(text) for text in row] for row in choices]
        scores = decoding.score(self.llm.model, context, logits, ids, self.llm.pad_id)
        best = [max(range(len(row)), key=row.__getitem__) for row in scores]
        return tuple(Row(choices[b][c], tuple(ids[b][c]), c, tuple(scores[b])) for b, c in enumerate(best))

    def _decode(
        self, session: str, context: Context, logits: Tensor, generation: Generation
    ) -> Iterator[list[int | None]]:
        return decoding.decode(
            self.llm.model,
            context,
            logits,
            generation,
            stop_ids=self.llm.stop_ids,
            room=[self.llm.context - int(n) for n in context.next_position_B],
            cancelled=lambda: session in self._ended,
        )

    def _generate(self, session: str, context: Context, logits: Tensor, generation: Generation) -> tuple[Row, ...]:
        ids: list[list[int]] = [[] for _ in range(logits.shape[0])]
        for tokens in self._decode(session, context, logits, generation):
            for row, token in zip(ids, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return tuple(Row(self.llm.decode(row), tuple(row)) for row in ids)
