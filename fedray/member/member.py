"""A member: one LLM that can send its cache, receive others' and answer. A plain class; Ray wraps it in runtime/.

Every method takes a batch. What must outlive a call lies in a session (sessions.py). `@ships`: (receipt, payload).
"""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedray.fusion import combine, controls
from fedray.fusion.fuser import Fuser
from fedray.fusion.gating import Gate, fixed_weights
from fedray.llm import decoding
from fedray.llm.cache import KVCache
from fedray.llm.catalogue import shown
from fedray.llm.decoding import Context
from fedray.llm.loading import describe, load
from fedray.llm.model import LLM
from fedray.member.clock import Clock
from fedray.member.fedattn.participant import Participant
from fedray.member.reader import Reader
from fedray.member.receiving import Asked, Receiver
from fedray.member.sessions import Session, Sessions
from fedray.member.specfed.server import Server
from fedray.member.specfed.worker import Worker
from fedray.privacy import rephrase
from fedray.registry.store import load_fuser, load_gate
from fedray.types import (
    NO_NUMBERS,
    Answer,
    Artifact,
    Compile,
    FedrayError,
    Generation,
    Layers,
    MemberInfo,
    Opening,
    Plan,
    Receipt,
    Request,
    Rewrites,
    Row,
    Talk,
    Usage,
    Wire,
    failed_rows,
)
from fedray.wire.payload import Payload, pack, ships
from fedray.wire.selection import select

AS_IT_IS = Wire()


class Member(Reader, Receiver, Participant, Server, Worker):
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
        llm: LLM | None = None,
    ) -> None:
        self._threads, self._reading = threads, reading  # torch's; reading: while others of this machine read too
        self._take(threads and 1)  # an actor computes in another thread than this: two pools would disturb each other
        self.name = name
        self.llm = llm or load(name, zoo=zoo, device=device, dtype=dtype, folder=folder, revision=revision, packed=True)
        self._take(threads)
        self._sessions = Sessions(name)
        self._fusers: dict[tuple[str, Compile | None], Fuser] = {}
        self._gates: dict[str, Gate] = {}
        self._received_bytes, self._translations = 0, {}

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

    def prepare(self, plan: Plan) -> None:
        """Load the gate and the fusers of a plan in which this member receives, before its first request."""
        self._gate(plan)
        self._take(self._threads)
        for artifact in plan.fusers.values():
            self.fuser(artifact, plan.compile)

    def fuser(self, artifact: Artifact, compile: Compile | None = None) -> Fuser:
        """A fuser into this LLM's space, in its precision and on its device; loaded once. Raises FedrayError."""
        key = artifact.hash, compile
        if key not in self._fusers:
            fuser = load_fuser(artifact, str(self.llm.device)).to(self.llm.model.dtype)
            self._fusers[key] = fuser.for_inference(compile)
        return self._fusers[key]

    # -- as a sender ------------------------------------------------------------------------------------------------

    @ships
    def share(
        self,
        session: str,
        rows: tuple[int, ...],
        *,
        prompts: tuple[str, ...] | None = None,
        token_ids: tuple[tuple[int, ...], ...] | None = None,
        talk: Talk | None = None,
        spans: bool = False,
        control: str = "none",
        seed: int = 0,
        wire: Wire = AS_IT_IS,
        layers: Layers | None = None,
    ) -> tuple[Receipt, Payload]:
        """Send the caches of some rows. With `prompts` (or `token_ids`: one per row in `rows`) they are read first.

        control: "noise" sends norm-matched noise, "constant" one fixed vector per layer and head, instead of the cache.
        spans: send the place of every token in the text too (mix needs it). wire: how it is written, and which tokens
        and layers are left out; layers: those that are read, None is all.
        """
        clock = Clock()
        read = prompts is not None or token_ids is not None
        if read:
            self._read(session, rows, prompts or (), token_ids, None, talk)
            clock.lap(f"prefill[{self.name}]")
        held = self._sessions.get(session)
        picked = [held.rows.index(row) for row in rows]
        cache = held.cache.select(picked)
        if control in ("noise", "constant"):
            cache = self._without_knowledge(cache, control, [held.ids[i] for i in picked], seed)
        places = [held.spans[i] for i in picked] if spans else None
        kept, layers = select(cache, layers, wire, seed)
        payload = pack(self.name, kept, list(rows), places, codec=wire.codec, layers=layers, whole=cache.lengths)
        clock.lap(f"pack[{self.name}]")
        usage = self._usage(clock, held) if read else Usage(clock.seconds)
        return Receipt(self.name, usage), payload

    # -- alone --------------------------------------------------------------------------------------------------------

    def alone(self, session: str, request: Request, phase: str | None = None) -> Answer:
        """Answer with nobody's help: score the choices, or decode. phase: the name all its seconds go by."""
        clock = Clock()
        self._take(self._threads)
        self._read(session, tuple(range(request.rows())), request.prompts, request.token_ids, None, request.talk)
        clock.lap(phase or "prefill")
        held = self._sessions.get(session)
        rows = self._respond(session, held, combine.concat(held.own(), []), request)
        clock.lap(phase or "decode")
        return Answer(rows, self.name, (), failed_rows(self.name, rows), self._usage(clock, held, rows))

    def rewrite(self, session: str, request: Request, count: int) -> Rewrites:
        """`count` rephrasings of every prompt that keep its rare words and choices (privacy/rephrase.py)."""
        clock = Clock()

        def say(prompts: Sequence[str], generation: Generation) -> tuple[Row, ...]:
            return self.alone(session, Request(tuple(prompts), generation=generation)).rows

        def pieces(word: str) -> int:
            return len(self.llm.encode_answer(f" {word}"))

        longest = max(len(self.llm.encode_answer(prompt)) for prompt in request.prompts)
        generation = Generation(max_tokens=2 * longest + 8, seed=request.generation.seed)
        rows, flaws = rephrase.rewrite(request.prompts, request.choices, count, say, pieces, generation)
        clock.lap("rephrase")
        return Rewrites(rows, flaws, Usage(clock.seconds))

    # -- as the receiver ----------------------------------------------------------------------------------------------

    def open(self, session: str, request: Request, plan: Plan) -> Opening:
        """Read the receiver's own prompts and weigh the plan's senders by its gate."""
        clock = Clock()
        self._take(self._reading if plan.senders and plan.route == "eager" else self._threads)
        gate = self._gate(plan)
        clock.lap("gate")
        rows = tuple(range(request.rows()))
        layer = None if gate is None else gate.config.layer
        self._read(session, rows, request.prompts, request.token_ids, layer, request.talk)
        clock.lap("prefill")
        held = self._sessions.get(session)
        held.weights_BS = self._weigh(held, gate, request, plan)
        clock.lap("gate")
        weights = tuple(tuple(row) for row in held.weights_BS.tolist())
        return Opening(weights, self._usage(clock, held))

    def answer(
        self,
        session: str,
        senders: tuple[str, ...],
        request: Request,
        plan: Plan,
        *payloads: Payload,
        asked: Asked | None = None,
    ) -> Answer:
        """Fuse the senders' caches into one's own and answer: score the choices, or decode.

        Payload i is senders[i]'s. One that is not what the plan lets it send is left out and named in `missing`.
        asked: the rows of each sender's; None: any of them will do.
        """
        clock = Clock()
        context, took_part, missing, size = self._fuse(session, senders, plan, payloads, asked, clock)
        held = self._sessions.get(session)
        rows = self._respond(session, held, context, request)
        clock.lap("decode")
        weights = held.weights_by_name(plan.senders)
        rows = tuple(replace(row, weights=w) for row, w in zip(rows, weights, strict=True))
        usage = Usage(clock.seconds, size, answer_tokens=sum(len(r.tokens) for r in rows))
        return Answer(rows, self.name, took_part, (*missing, *failed_rows(self.name, rows)), usage)

    def stream(
        self,
        session: str,
        senders: tuple[str, ...],
        request: Request,
        plan: Plan,
        *payloads: Payload,
        asked: Asked | None = None,
    ) -> Iterator[str | Answer]:
        """Like `answer` for one prompt: pieces of its text as they are decoded, then the Answer."""
        clock = Clock()
        context, took_part, missing, size = self._fuse(session, senders, plan, payloads, asked, clock)
        held = self._sessions.get(session)
        logits = self._read_last_token(held, context)
        ids: list[int] = []
        said, failed = "", set()
        for (token,) in self._decode(session, context, logits, request.generation, failed):
            assert token is not None
            ids.append(token)
            text = self.llm.decode(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an unfinished character: wait for the rest of it
                yield text[len(said) :]
                said = text
        if failed:
            raise FedrayError(f"{shown(self.name)}: {NO_NUMBERS}")
        text = self.llm.decode(ids)
        if text != said:
            yield text[len(said) :]
        clock.lap("decode")
        (weights,) = held.weights_by_name(plan.senders)
        usage = Usage(clock.seconds, size, answer_tokens=len(ids))
        yield Answer((Row(text, tuple(ids), weights=weights),), self.name, took_part, missing, usage)

    def first_logits(self, session: str, senders: tuple[str, ...], plan: Plan, *payloads: Payload) -> list[list[float]]:
        """Next-token logits (B, V) after the prompt; for tests and comparisons at small sizes."""
        context, _, _, _ = self._fuse(session, senders, plan, payloads, None, Clock())
        return self._read_last_token(self._sessions.get(session), context).tolist()

    def _without_knowledge(self, cache: KVCache, control: str, ids: list[list[int]], seed: int) -> KVCache:
        if control == "noise":
            return controls.noise(cache, [f"{self.name} {row} {seed}" for row in ids])
        same, _ = decoding.prefill(self.llm.model, [self.llm.encode(controls.CONSTANT_TEXT).ids], self.llm.pad_id)
        return controls.constant(cache, same)

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
    def _weigh(self, held: Session, gate: Gate | None, request: Request, plan: Plan) -> Tensor:
        if plan.gate == "oracle":
            if unknown := [sender for sender in plan.senders if sender not in request.weights]:
                raise FedrayError(f"gate=oracle for {self.name} must be told the weights of {', '.join(unknown)}")
            return torch.tensor([[request.weights[s][b] for s in plan.senders] for b in range(request.rows())])
        if gate is None:
            return fixed_weights(plan.gate, held.cache.batch, len(plan.senders), plan.seed)
        assert held.state_BTD is not None
        weights_BS = gate.weigh(held.state_BTD.float(), held.cache.valid_BT(), plan.senders, plan.threshold).cpu()
        if not bool(weights_BS.isfinite().all()):
            raise FedrayError(f"{shown(self.name)}: its gate weighs nobody by numbers (NaN), or {NO_NUMBERS}")
        return weights_BS

    def _read_last_token(self, held: Session, context: Context) -> Tensor:
        last = torch.tensor([[row[-1]] for row in held.ids], device=self.llm.device)
        logits, _ = decoding.step(self.llm.model, context, last)
        assert logits is not None
        return logits

    def _respond(self, session: str, held: Session, context: Context, request: Request) -> tuple[Row, ...]:
        """Score the choices, or decode, after the prompt's last token is read on top of what is fused."""
        logits = self._read_last_token(held, context)
        if request.choices is None:
            return self._generate(session, context, logits, request.generation)
        return self._score(context, logits, request.choices)

    def _score(self, context: Context, logits: Tensor, choices: tuple[tuple[str, ...], ...]) -> tuple[Row, ...]:
        ids = [[self.llm.encode_choice(text) for text in row] for row in choices]
        scores, greedy = decoding.score(self.llm.model, context, logits, ids, self.llm.pad_id)
        said = [not any(map(math.isnan, row)) and max(row) > -math.inf for row in scores]
        return tuple(
            _best(choices[b], ids[b], scores[b], greedy[b]) if said[b] else Row("", failed=True)
            for b in range(len(choices))
        )

    def _decode(
        self, session: str, context: Context, logits: Tensor, generation: Generation, failed: set[int]
    ) -> Iterator[list[int | None]]:
        return decoding.decode(
            self.llm.model,
            context,
            logits,
            generation,
            stop_ids=self.llm.stop_ids,
            room=[self.llm.context - int(n) for n in context.next_position_B],
            cancelled=lambda: self._sessions.has_ended(session),
            failed=failed,
        )

    def _generate(self, session: str, context: Context, logits: Tensor, generation: Generation) -> tuple[Row, ...]:
        ids: list[list[int]] = [[] for _ in range(logits.shape[0])]
        failed: set[int] = set()
        for tokens in self._decode(session, context, logits, generation, failed):
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
