"""Speculative decoding for a federation of workers (SpecFed, arXiv 2604.25777).

The receiver is the server: its LLM drafts, it averages what the workers send, and accepts. A round: drafts go to all
workers at once, each reads them in one forward pass and sends the top of its distributions to the server, which says
how every answer goes on and drafts again. Every call names the tokens that stand before it, so that a worker that was
late catches up, and one that dies leaves its weight to the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fedray.group import Group, Handle, MemberFailed
from fedray.protocols.exchange import Exchange
from fedray.rounds import Speculation
from fedray.speculation.pace import next_gamma
from fedray.types import Answer, FedrayError, Missing, Plan, Receipt, Request, Round, Usage


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    """Raises FedrayError where there are choices to score, MemberFailed where the server or all workers fail."""
    if request.choices is not None:
        raise FedrayError("protocol=specfed writes answers: ask questions that are answered freely")
    async with Exchange(request, plan, group) as exchange:
        await asyncio.gather(*(_read(exchange, worker) for worker in plan.senders), _open(exchange))
        return await Talk(exchange).run()


async def _open(exchange: Exchange) -> None:
    await exchange.finish_open(exchange.start_open())


async def _read(exchange: Exchange, worker: str) -> None:
    rows = tuple(range(exchange.request.rows()))
    request = exchange.request_of(worker, rows)
    handle = exchange.group.start(worker, "prefill", exchange.session, rows, request.prompts, request.token_ids)
    await exchange.of_sender(worker, handle)


class Talk:
    """The rounds of one request. answers: per row the tokens that are certain."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.plan, self.group = exchange, exchange.plan, exchange.group
        rows = exchange.request.rows()
        gone = {missing.member for missing in exchange.missing}
        self.answers: list[list[int]] = [[] for _ in range(rows)]
        self.workers = [name for name in self.plan.senders if name not in gone]
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
        if self.foreign and plan.specfed.vocab == "strict":
            others = ", ".join(sorted(self.foreign))
            raise FedrayError(f"protocol.vocab=strict: {others} and {plan.receiver} have different vocabularies")
        longest = min(exchange.group.members[name].context for name in (plan.receiver, *plan.senders))
        if self.foreign:
            self.vocabulary = [self.group.start(plan.receiver, "vocabulary")]
            await exchange.of_receiver(self.vocabulary[0])
        request = exchange.of_receiver_only()
        now: Round = await exchange.of_receiver(
            self.group.start(plan.receiver, "draft", exchange.session, request, self._gamma(), longest)
        )
        exchange.usage += now.usage
        while not all(now.ended) and not self._is_over():
            now = await self._round(now)
        for name, count in self.late.items():
            if name in self.workers:
                exchange.missing.append(Missing(name, f"late in {count} of {self.found.rounds} rounds"))
        rows = await exchange.of_receiver(self.group.start(plan.receiver, "told", exchange.session))
        exchange.usage += Usage(answer_tokens=self.found.emitted)
        return exchange.close(Answer(rows, plan.receiver, tuple(self.workers), speculation=self.found))

    def _gamma(self) -> int:
        gamma = self.plan.specfed.gamma
        return next_gamma(sum(self.found.decided), sum(self.found.accepted)) if gamma == "auto" else gamma

    def _is_over(self) -> bool:
        """Whether the deadline has passed: the answer stays as long as it is."""
        return self.exchange.deadline is not None and time.monotonic() >= self.exchange.deadline

    async def _round(self, now: Round) -> Round:
        position = tuple(map(len, self.answers))
        verified = await self._verify(now)
        names, handles = tuple(verified), list(verified.values())
        accepting = self.group.start(
            self.plan.receiver,
            "accept",
            self.exchange.session,
            self.found.rounds,
            position,
            names,
            self.exchange.request.generation,
            self.plan,
            self._gamma(),
            *handles,
        )
        following: Round = await self.exchange.of_receiver(accepting)
        self.exchange.usage += following.usage
        self.found += following.speculation
        if not any((*now.drafts, *following.tokens)) and following.ended == now.ended:
            raise MemberFailed("no worker has a distribution behind the answer so far: name a worker of its vocabulary")
        for missing in following.missing:
            self._lose(missing)
        for b, new in enumerate(following.tokens):
            self.answers[b].extend(new)
            for name in names:  # what a worker has read and what came to be certain
                self.known[name][b] = position[b] + _common(now.drafts[b], new)
        self.exchange.settle()
        return following

    async def _verify(self, now: Round) -> dict[str, Handle]:
        """The workers' distributions of a round, by name: of all that are in time, and of at least one."""
        asked: dict[str, Handle] = {}
        ready: dict[str, Handle] = {}
        while not ready:
            free = [name for name in self.workers if name not in self.pending and name not in asked]
            asked |= {name: self._ask(name, now) for name in free}
            ready = await self._in_time(asked)
            await self._in_time(self.pending, since=0.0 if ready or asked else None)
            if not self.workers:
                told = "; ".join(f"{m.member}: {m.reason}" for m in self.exchange.missing)
                raise MemberFailed(f"no worker is left to go on with the answer ({told})")
            if not ready and self._is_over():
                raise MemberFailed(f"no worker answered within {self.exchange.request.deadline_s:g} s")
        for name in asked:
            self.late[name] = self.late.get(name, 0) + 1
        self.pending |= asked
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
            self.plan.specfed,
            *(self.vocabulary if worker in self.foreign else ()),
        )

    async def _in_time(self, calls: dict[str, Handle], since: float | None = None) -> dict[str, Handle]:
        """Take those out of `calls` that have ended: the ready ones are returned, the failed ones are lost."""
        names, handles = list(calls), list(calls.values())
        waited = await self.group.wait(handles, self._until() if since is None else since)
        for index, reason in waited.failed.items():
            self._lose(Missing(names[index], reason))
        for index in (*waited.ready, *waited.failed):
            del calls[names[index]]
        for index in waited.ready:
            receipt: Receipt = self.group.result(handles[index])
            self.exchange.usage += receipt.usage
        return {names[index]: handles[index] for index in waited.ready}

    def _until(self) -> float | None:
        """When a round goes on without those who are late (a point of time.monotonic())."""
        patience, deadline = self.plan.specfed.patience_s, self.exchange.deadline
        ends = [] if patience is None else [time.monotonic() + patience]
        return min([*ends, *([] if deadline is None else [deadline])], default=None)

    def _lose(self, missing: Missing) -> None:
        """Go on without a worker: its weight goes to the others."""
        self.exchange.missing.append(missing)
        self.workers.remove(missing.member)
        self.group.cancel(missing.member, self.exchange.session)


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
