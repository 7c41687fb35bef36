"""A member in C2C: it sends its cache, takes others' and answers (FedRefine, arXiv 2603.28772; C2C, arXiv 2510.03215).

What must outlive a call lies in a session (sessions.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedray.fusion import combine
from fedray.fusion.gating import GateNetwork, fixed_weights
from fedray.llm import decoding
from fedray.llm.catalogue import shown
from fedray.member.clock import Clock
from fedray.member.receiving import Asked, Donors, Receiver
from fedray.member.sending import Sender
from fedray.member.sessions import Session
from fedray.privacy import rephrase
from fedray.registry.store import load_gate
from fedray.types import (
    NO_NUMBERS,
    Answer,
    FedrayError,
    Generation,
    Opening,
    Plan,
    Request,
    Rewrites,
    Row,
    Usage,
    failed_rows,
)
from fedray.wire.payload import Payload


class C2C(Sender, Receiver):
    """The part of a member that answers, alone or with others' caches."""

    def __init__(self, name: str, **more: Any) -> None:
        super().__init__(name, **more)
        self._gates: dict[str, GateNetwork] = {}

    def prepare(self, plan: Plan) -> None:
        """Load the gate and the fusers of a plan in which this member receives, before its first request."""
        self._gate(plan)
        self._take(self._threads)
        for artifact in plan.fusers.values():
            self.fuser(artifact, plan.method.compile)

    def drop(self, hashes: frozenset[str]) -> None:
        """Drop loaded fusers and gates; what is asked for again is loaded again."""
        for key in [key for key in self._fusers if key[0] in hashes]:
            del self._fusers[key]
        for digest in hashes & self._gates.keys():
            del self._gates[digest]

    # -- alone --------------------------------------------------------------------------------------------------------

    def alone(self, session: str, request: Request, phase: str | None = None) -> Answer:
        """Answer with nobody's help: score the choices, or decode. phase: the name all its seconds go by."""
        clock = Clock(self.llm.device)
        self._take(self._threads)
        self._read(session, tuple(range(request.rows())), request.prompts, request.token_ids, None, request.talk)
        clock.lap(phase or "prefill")
        held = self._sessions.get(session)
        rows = self._respond(session, held, combine.concat(held.own(), []), request)
        clock.lap(phase or "decode")
        return Answer(rows, self.name, (), failed_rows(self.name, rows), self._usage(clock, held, rows))

    def rewrite(self, session: str, request: Request, count: int) -> Rewrites:
        """`count` rephrasings of every prompt that keep its rare words and choices (privacy/rephrase.py)."""
        clock = Clock(self.llm.device)

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
        clock = Clock(self.llm.device)
        self._take(self._reading if plan.senders and plan.method.gate.route == "eager" else self._threads)
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
        donors: Donors | None = None,
    ) -> Answer:
        """Fuse the senders' caches into one's own and answer: score the choices, or decode.

        Payload i is senders[i]'s. One that is not what the plan lets it send is left out and named in `missing`.
        asked: the rows of each sender's; None: any of them will do. donors: what a sender sent of which row is read in
        place of its own; a row keeps its own gate weights.
        """
        clock = Clock(self.llm.device)
        fused = self._fuse(session, senders, plan, payloads, asked, clock, donors)
        held = self._sessions.get(session)
        rows = self._respond(session, held, fused.context, request, fused.unread)
        clock.lap("decode")
        weights = held.weights_by_name(plan.senders)
        rows = tuple(replace(row, weights=w) for row, w in zip(rows, weights, strict=True))
        usage = Usage(clock.seconds, fused.size, answer_tokens=sum(len(r.tokens) for r in rows))
        return Answer(rows, self.name, fused.took_part, (*fused.missing, *failed_rows(self.name, rows)), usage)

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
        clock = Clock(self.llm.device)
        fused = self._fuse(session, senders, plan, payloads, asked, clock)
        held = self._sessions.get(session)
        logits = self._read_rest(held, fused.context, fused.unread)
        ids = self.llm.encode_choice(request.begun) if request.begun else []
        if ids:
            logits = decoding.step(self.llm.model, fused.context, torch.tensor([ids], device=self.llm.device))
        left = replace(request.generation, max_tokens=request.generation.max_tokens - len(ids))
        said, failed = self.llm.decode(ids), set()
        for (token,) in self._decode(session, held.ids, fused.context, logits, left, failed, begun=bool(ids)):
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
        usage = Usage(clock.seconds, fused.size, answer_tokens=len(ids))
        yield Answer((Row(text, tuple(ids), weights=weights),), self.name, fused.took_part, fused.missing, usage)

    def first_logits(self, session: str, senders: tuple[str, ...], plan: Plan, *payloads: Payload) -> list[list[float]]:
        """Next-token logits (B, V) after the prompt; for tests and comparisons at small sizes."""
        fused = self._fuse(session, senders, plan, payloads, None, Clock(self.llm.device))
        return self._read_rest(self._sessions.get(session), fused.context, fused.unread).tolist()

    def _gate(self, plan: Plan) -> GateNetwork | None:
        """The plan's learned gate, loaded once."""
        if plan.method.gate.kind != "learned" or not plan.senders:
            return None
        if plan.gate_artifact is None:
            raise FedrayError(f"the plan for {self.name} asks for gate=learned and names no gate")
        key = plan.gate_artifact.hash
        if key not in self._gates:
            self._gates[key] = load_gate(plan.gate_artifact, str(self.llm.device))
        return self._gates[key]

    @torch.no_grad()
    def _weigh(self, held: Session, gate: GateNetwork | None, request: Request, plan: Plan) -> Tensor:
        if plan.method.gate.kind == "oracle":
            if unknown := [sender for sender in plan.senders if sender not in request.weights]:
                raise FedrayError(f"gate=oracle for {self.name} must be told the weights of {', '.join(unknown)}")
            return torch.tensor([[request.weights[s][b] for s in plan.senders] for b in range(request.rows())])
        if gate is None:
            return fixed_weights(plan.method.gate.kind, held.cache.batch, len(plan.senders), plan.seed)
        assert held.state_BTD is not None
        threshold = plan.method.gate.threshold
        weights_BS = gate.weigh(held.state_BTD.float(), held.cache.valid_BT(), plan.senders, threshold).cpu()
        if not bool(weights_BS.isfinite().all()):
            raise FedrayError(f"{shown(self.name)}: its gate weighs nobody by numbers (NaN), or {NO_NUMBERS}")
        return weights_BS
