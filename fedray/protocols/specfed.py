"""Speculative decoding for a federation of workers (SpecFed, arXiv 2604.25777).

The receiver is the server: its LLM drafts, it averages what the workers send, and accepts. A round: drafts go to all
workers at once, each reads them in one forward pass and sends the top of its distributions to the server, which says
how every answer goes on and drafts again. Every call names the tokens that stand before it, so that a worker that was
late catches up, and one that dies leaves its weight to the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedray.errors import MemberFailed
from fedray.llm.catalogue import resolve
from fedray.llm.token_ids import shared
from fedray.methods.specfed import SpecFed, Speculation, next_gamma
from fedray.protocols import replies
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group, Handle
from fedray.protocols.protocol import Protocol
from fedray.schema import check_range
from fedray.types import Answer, FedrayError, Missing, Plan, Receipt, Request, Round, Usage

if TYPE_CHECKING:
    from fedray.llm.source import Source


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """Raises FedrayError where there are choices to score, MemberFailed where the server or all workers fail."""
    if request.choices is not None:
        raise FedrayError("protocol=specfed writes answers: ask questions that are answered freely")
    async with Exchange(request, plan, group) as exchange:
        workers = asyncio.gather(*(_read(exchange, worker) for worker in plan.senders))
        opening, lengths = await asyncio.gather(exchange.finish_open(exchange.start_open()), workers)
        talk = Rounds(exchange, dict(zip(plan.senders, lengths, strict=True)))
        answer = await talk.run()
        return exchange.weighed(answer, opening) if plan.method.of(SpecFed).weigh == "gate" else answer


async def _read(exchange: Exchange, worker: str) -> tuple[int, ...]:
    """The tokens of every row's prompt, as this worker reads it; () of one that did not."""
    rows = tuple(range(exchange.request.rows()))
    request = exchange.request_of(worker, rows)
    handle = exchange.group.start(worker, "prefill", exchange.session, rows, request.prompts, request.token_ids)
    if not await exchange.of_sender(worker, handle):
        return ()
    return exchange.lengths(worker, handle, request.token_ids or request.prompts) or ()


class Rounds:
    """The rounds of one request. answers: per row the tokens that are certain.

    lengths: per worker the tokens of every row's prompt.
    """

    def __init__(self, exchange: Exchange, lengths: Mapping[str, Sequence[int]]) -> None:
        self.exchange, self.plan, self.group = exchange, exchange.plan, exchange.group
        rows = exchange.request.rows()
        gone = {missing.member for missing in exchange.missing}
        self.answers: list[list[int]] = [[] for _ in range(rows)]
        self.workers = [name for name in self.plan.senders if name not in gone]
        contexts = {name: self.group.members[name].context for name in self.workers}
        left = [[contexts[name] - lengths[name][b] for name in self.workers] for b in range(rows)]
        self.room = tuple(min(of_row, default=0) for of_row in left)
        self.known: dict[str, list[int]] = {name: [0] * rows for name in self.workers}  # tokens each has read of them
        self.pending: dict[str, Handle] = {}  # calls of workers that were late
        self.late: dict[str, int] = {}
        self.found = Speculation()
        own = self.group.members[self.plan.receiver].vocabulary
        self.foreign = {name for name in self.workers if self.group.members[name].vocabulary != own}
        self.vocabulary: list[Handle] = []  # the server's, for workers that have another

    async def run(self) -> Answer:
        exchange, plan = self.exchange, self.plan
        exchange.settle()
        if self.foreign and plan.method.of(SpecFed).vocab == "strict":
            others = ", ".join(sorted(self.foreign))
            raise FedrayError(f"protocol.vocab=strict: {others} and {plan.receiver} have different vocabularies")
        if self.foreign:
            self.vocabulary = [self.group.start(plan.receiver, "vocabulary")]
            told: Receipt = await exchange.of_receiver(self.vocabulary[0])
            exchange.usage += Usage(payload_bytes=told.usage.payload_bytes * len(self.foreign))
        request = exchange.of_receiver_only()
        drafting = self.group.start(plan.receiver, "draft", exchange.session, request, self._gamma(), self.room)
        now: Round = await exchange.of_receiver(drafting)
        exchange.usage += now.usage
        while not all(now.ended) and not self._is_over() and (verified := await self._verify(now)):
            now = await self._accept(now, verified)
        if not all(now.ended):
            self._stop_early(sum(not ended for ended in now.ended))
        for name, count in self.late.items():
            if name in self.workers:
                exchange.missing.append(Missing(name, f"late in {count} of {self.found.rounds} rounds"))
        rows = await exchange.of_receiver(self.group.start(plan.receiver, "told", exchange.session))
        exchange.usage += Usage(answer_tokens=self.found.emitted)
        return exchange.close(Answer(rows, plan.receiver, tuple(self.workers), speculation=self.found))

    def _gamma(self) -> int:
        gamma = self.plan.method.of(SpecFed).gamma
        return next_gamma(sum(self.found.decided), sum(self.found.accepted)) if gamma == "auto" else gamma

    def _is_over(self) -> bool:
        """Whether the deadline has passed: the answer stays as long as it is."""
        return self.exchange.deadline is not None and time.monotonic() >= self.exchange.deadline

    def _stop_early(self, rows: int) -> None:
        """The deadline has passed: what stands by now is the answer, and it is said to be cut short."""
        by = f"within {self.exchange.request.deadline_s:g} s"
        if not self.found.rounds:
            raise MemberFailed(f"no worker answered {by}")
        stopped = f"{rows} of {len(self.answers)} answers were not at their end {by}"
        self.exchange.missing.append(Missing(self.plan.receiver, stopped))

    async def _accept(self, now: Round, verified: dict[str, Handle]) -> Round:
        """Let the server decide a round, and draft the next one."""
        position = tuple(map(len, self.answers))
        names, handles = tuple(verified), list(verified.values())
        session, generation = self.exchange.session, self.exchange.request.generation
        asked = (self.found.rounds, position, names, generation, self.plan, self._gamma(), *handles)
        accepting = self.group.start(self.plan.receiver, "accept", session, *asked)
        following: Round = await self.exchange.of_receiver(accepting)
        self.exchange.usage += following.usage
        self.found += following.speculation
        stands_still = not any((*now.drafts, *following.tokens)) and following.ended == now.ended
        if stands_still and len(following.missing) < len(names):
            raise MemberFailed("no worker has a distribution behind the answer so far: name a worker of its vocabulary")
        for missing in following.missing:
            self._lose(missing)
        for b, new in enumerate(following.tokens):
            self.answers[b].extend(new)
            for name in names:  # what a worker has read and what came to be certain
                self.known[name][b] = position[b] + shared(now.drafts[b], new)
        self.exchange.settle()
        return following

    async def _verify(self, now: Round) -> dict[str, Handle]:
        """The workers' distributions of a round, by name: of all that are in time, and of at least one; none where the
        deadline passes before."""
        asked: dict[str, Handle] = {}
        ready: dict[str, Handle] = {}
        while not ready:
            free = [name for name in self.workers if name not in self.pending and name not in asked]
            asked |= {name: self._ask(name, now) for name in free}
            ready = await self._in_time(asked)
            await self._in_time(self.pending, until=time.monotonic() if ready or asked else None)
            if not self.workers:
                told = "; ".join(f"{m.member}: {m.reason}" for m in self.exchange.missing)
                raise MemberFailed(f"no worker is left to go on with the answer ({told})")
            if not ready and self._is_over():
                return {}
        self.pending |= asked
        for name in (name for name in self.workers if name not in ready):
            self.late[name] = self.late.get(name, 0) + 1
            if self.plan.method.on_missing == "error":
                self.exchange.missing.append(Missing(name, f"late in round {self.found.rounds + 1}"))
        self.exchange.settle()
        return {name: ready[name] for name in self.plan.senders if name in ready}

    def _ask(self, worker: str, now: Round) -> Handle:
        """Let a worker read what it does not know of the answers, and the drafts."""
        rows = tuple(b for b, ended in enumerate(now.ended) if not ended)
        read = self.known[worker]
        return self.group.start(
            worker,
            "verify",
            self.exchange.session,
            rows,
            tuple(read[b] for b in rows),
            tuple(tuple(self.answers[b][read[b] :]) for b in rows),
            tuple(now.drafts[b] for b in rows),
            self.exchange.request.generation,
            self.plan.method.of(SpecFed),
            *(self.vocabulary if worker in self.foreign else ()),
        )

    async def _in_time(self, calls: dict[str, Handle], until: float | None = None) -> dict[str, Handle]:
        """Take those out of `calls` that have ended: the ready ones are returned, the failed ones are lost."""
        names, handles = list(calls), list(calls.values())
        waited = await self.group.wait(handles, self._until() if until is None else until)
        for index, reason in waited.failed.items():
            self._lose(Missing(names[index], reason))
        for index in (*waited.ready, *waited.failed):
            del calls[names[index]]
        ready: dict[str, Handle] = {}
        for name, handle in ((names[index], handles[index]) for index in waited.ready):
            with self.exchange.border.of(name):
                self.exchange.usage += replies.cost(name, self.group.result(handle))
                ready[name] = handle
            if name not in ready:
                self._lose(Missing(name, self.exchange.border.refused[name]))
        return ready

    def _until(self) -> float | None:
        """When a round goes on without those who are late (a point of time.monotonic())."""
        patience, deadline = self.plan.method.of(SpecFed).patience_s, self.exchange.deadline
        ends = [] if patience is None else [time.monotonic() + patience]
        return min([*ends, *([] if deadline is None else [deadline])], default=None)

    def _lose(self, missing: Missing) -> None:
        """Go on without a worker: its weight goes to the others."""
        self.exchange.missing.append(missing)
        self.workers.remove(missing.member)
        self.group.cancel(missing.member, self.exchange.session)


def roles(how: SpecFed, receiver: str, senders: tuple[str, ...] | None, zoo: str) -> tuple[str, tuple[str, ...] | None]:
    """Let the draft be the receiver. Raises FedrayError where both are named."""
    if how.draft is None or how.draft == "none":
        return receiver, senders
    draft = resolve(how.draft, "protocol.draft", zoo)
    if receiver not in (draft, how.receiver):
        raise FedrayError(
            f"receiver={receiver} and protocol.draft={draft} are both the LLM at the server: name one of them"
        )
    return draft, senders


def check(settings: Any) -> None:
    """Validate drafts, entries and weights. Raises FedrayError."""
    protocol, task = settings.protocol, settings.task
    if protocol.gamma != "auto" and protocol.draft != "none":
        if protocol.gamma < 1:
            raise FedrayError(
                f"protocol.gamma must be at least 1, or auto, got {protocol.gamma}: without drafts it is "
                "protocol.draft=none"
            )
        check_range("protocol.gamma", protocol.gamma, 1, 64)
    if isinstance(protocol.top_k, int):
        check_range("protocol.top_k", protocol.top_k, 1)
    elif not 0 < protocol.top_k <= 1:
        raise FedrayError(
            f"protocol.top_k must be a count such as 320, or a share above 0 and up to 1.0, got {protocol.top_k}"
        )
    weights, workers = protocol.weights, settings.senders
    if weights is not None and (protocol.weigh == "gate" or len(weights) != len(workers)):
        how = "protocol.weigh=gate weighs" if protocol.weigh == "gate" else f"there are {len(workers)}"
        raise FedrayError(
            f"protocol.weights={list(weights)} gives {len(weights)} workers their weight, and {how} of them: leave it "
            "out, or give one number for each sender"
        )
    if weights is not None and not sum(weights) > 0:
        raise FedrayError(f"protocol.weights={list(weights)} must sum to something above 0: give some worker a weight")
    if protocol.weigh == "gate" and settings.gate.kind == "none":
        raise FedrayError(
            "protocol.weigh=gate needs a gate: choose gate=learned, gate=open or gate=random, or protocol.weigh=fixed"
        )
    if settings.on_missing == "text":
        raise FedrayError("on_missing=text is about fusers: protocol=specfed knows alone (go on without) and error")
    if settings.rephrase != "none":
        raise FedrayError("protocol=specfed lets all members go on with one text: leave rephrase out")
    asks_task = settings.prompt is None and settings.questions is None
    if asks_task and task.scored_by in ("text", "text-normalized", "letters"):
        raise FedrayError(
            f"protocol=specfed writes its answers, and task={task.name} with task.scoring={task.scored_by} wants "
            "likelihoods: choose task=tiny-tell, or task.scoring=letters-generated"
        )


def check_sources(settings: Any, found: Mapping[str, Source]) -> None:
    """Refuse members whose tokens do not go together. Raises FedrayError."""
    from fedray.llm.vocabulary import check_vocabularies

    check_vocabularies(found[settings.receiver], [found[name] for name in settings.senders], settings.protocol.vocab)


def check_question(settings: Any, question: Any, document: str) -> None:
    """Refuse a question with choices to score. Raises FedrayError."""
    if question.offered is not None:
        raise FedrayError(
            f"protocol=specfed writes its answers, and question {question.id} has choices to score: add "
            "task.scoring=letters-generated, or leave the choices out"
        )


PROTOCOL = Protocol(
    settings=SpecFed, run=run, roles=roles, check=check, check_sources=check_sources, check_question=check_question
)
