"""Decide who waits, who is refused, and who is answered together; nothing here has a clock or a thread.

A request is admitted where its KV caches fit beside those of all that wait or are being answered, where its tenant
leaves as much free as it takes, and where it will be answered by its deadline. Tenants take turns by bytes of KV
(stride scheduling, Waldspurger and Weihl 1995); one's own requests keep their order. The memory is shared by a dynamic
threshold (Choudhury and Hahne 1998): a tenant may hold as much as is free, half of all where it is alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any

from fedray.errors import FederationBusy, FedrayError
from fedray.federation.expectation import Expectation
from fedray.federation.merging import kind, merged
from fedray.llm.memory import MIB
from fedray.text import one_line, printable
from fedray.types import Answer, MemberInfo, Plan, Request

ALIKE = 2.0  # time left of two requests of one batch: the longer one's over the shorter one's, at most
PROMISED = 0.8  # of a deadline: the rest is for batches slower than expected
GRACE = 0.1  # of a deadline, for an answer that is on its way when it passes


@dataclass(frozen=True, slots=True)
class Limits:
    """size: bytes of KV of all that wait or are being answered; sent: of those, bytes that senders of one batch send;
    quota: requests of one tenant; rows: of a batch; at_a_time: batches."""

    size: float
    sent: float
    quota: int | None
    rows: int
    at_a_time: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A request on its way. size: bytes of KV that it will take in all members; sent: in those that send; due: when it
    must be answered; together: most rows of a batch that it may be in, fewer after one that failed."""

    request: Request
    plan: Plan
    tenant: str
    size: float
    sent: float
    came: float
    due: float
    together: int
    future: Future[Answer] = field(default_factory=Future)
    kind: tuple[Any, ...] | None = None

    @property
    def rows(self) -> int:
        return self.request.rows()

    def goes_with(self, other: Ticket) -> bool:
        return self.kind is not None and self.kind == other.kind


@dataclass(slots=True, eq=False)
class Tenant:
    """turn: bytes of KV that were served to it, or that others were served while it asked nothing."""

    turn: float = 0.0
    waiting: deque[Ticket] = field(default_factory=deque)
    held: int = 0  # requests waiting or being answered
    size: float = 0.0  # their bytes of KV

    @property
    def rows(self) -> int:
        return sum(ticket.rows for ticket in self.waiting)


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that are answered together; who was given up, or went away, is no longer in `tickets`."""

    request: Request
    tickets: list[Ticket]
    rows_of: tuple[Ticket, ...]  # whose rows stand in it, in this order
    started: float
    future: Future[Answer] | None = None


class Admission:
    """Requests of all tenants, waiting and being answered. now: seconds of any clock."""

    def __init__(self, limits: Limits, members: Mapping[str, MemberInfo]) -> None:
        self.limits, self.expected, self.running = limits, Expectation(members), list[Batch]()
        self._tenants, self._turn = dict[str, Tenant](), 0.0

    def __len__(self) -> int:
        """Requests that wait or are being answered."""
        return sum(tenant.held for tenant in self._tenants.values())

    # -- coming and going -------------------------------------------------------------------------------------------

    def admit(self, request: Request, plan: Plan, tenant: str, now: float) -> Ticket:
        """Let a request wait. Raises FederationBusy where it cannot be answered in time or does not fit beside the
        others, and FedrayError where it never will."""
        size, sent = self.expected.sizes(request, plan)
        limits, who = self.limits, self._tenants.get(tenant) or Tenant()
        if size > limits.size:
            raise FedrayError(
                f"the request takes {_mb(size)} of KV caches, and admission.kv_mb={limits.size / MIB:g} is less: "
                "shorten it, ask fewer prompts at a time, or raise admission.kv_mb"
            )
        if limits.quota is not None and who.held >= limits.quota:
            raise self._busy(f"{_named(tenant)} has {who.held} requests waiting or being answered, its quota")
        if who.size + size > limits.size - self._size():
            raise self._busy(f"the request takes {_mb(size)} of KV caches, more than is free for {_named(tenant)}")
        left = math.inf if request.deadline_s is None else request.deadline_s
        took = self._answered_in(request.rows(), left, who, now) / PROMISED if self._tenants else 0.0
        if took > left:
            reason = f"an answer may take {took:.2g} s and the deadline is {left:.2g} s"
            raise self._busy(reason, took - left)
        found = Ticket(request, plan, tenant, size, sent, now, now + left, limits.rows, kind=kind(request, plan))
        if not who.waiting:
            who.turn = max(who.turn, self._turn)
        who.held += 1
        who.size += size
        who.waiting.append(found)
        self._tenants[tenant] = who
        return found

    def late(self, now: float) -> list[Ticket]:
        """Give up requests whose deadline passed while they waited, or a grace ago while they were being answered."""
        waiting = [ticket for who in self._tenants.values() for ticket in who.waiting if ticket.due <= now]
        running = [ticket for batch in self.running for ticket in batch.tickets if _forsaken(ticket) <= now]
        for batch in self.running:
            if batch.tickets and all(ticket in running for ticket in batch.tickets):
                self.expected.took(batch.request.rows(), now - batch.started)  # at least
        for ticket in (*waiting, *running):
            self.withdraw(ticket)
        return [*waiting, *running]

    def withdraw(self, ticket: Ticket) -> None:
        """Forget a request, wherever it is; one that is not there is none."""
        who = self._tenants.get(ticket.tenant)
        batch = next((batch for batch in self.running if ticket in batch.tickets), None)
        if batch is not None:
            batch.tickets.remove(ticket)
        elif who is not None and ticket in who.waiting:
            who.waiting.remove(ticket)
        else:
            return
        assert who is not None, "its requests keep it"
        who.held -= 1
        who.size -= ticket.size
        if not who.held:
            del self._tenants[ticket.tenant]

    def everybody(self) -> list[Ticket]:
        """Forget all requests; returns them."""
        found = [ticket for who in self._tenants.values() for ticket in who.waiting]
        found += [ticket for batch in self.running for ticket in batch.tickets]
        for ticket in found:
            self.withdraw(ticket)
        return found

    def next_event(self) -> float:
        """When the next request has to be given up; infinity: never."""
        waiting = (ticket.due for who in self._tenants.values() for ticket in who.waiting)
        return min(
            [*waiting, *(_forsaken(ticket) for batch in self.running for ticket in batch.tickets)], default=math.inf
        )

    # -- batches ----------------------------------------------------------------------------------------------------

    def next_batch(self, now: float) -> tuple[Batch | None, list[Ticket]]:
        """The batch whose turn it is, where one more may run; and those that cannot be answered in time any more.

        It begins with the first request of the tenant that was served least, and others join by turns that are of its
        kind, have about as long to wait, and leave time for all of them. Who has no time for all that could be
        answered with it is given up, unless it is the only one there: what is expected may be out of date. Beside a
        batch that is being answered only a full one begins.
        """
        hopeless: list[Ticket] = []
        while len(self.running) < self.limits.at_a_time and (who := self._whose_turn()):
            first = who.waiting[0]
            most = self.expected.rows_in(first.due - first.came, first.together)
            waiting = (ticket for tenant in self._tenants.values() for ticket in tenant.waiting)
            alike = sum(
                t.rows for t in waiting if t is first or (first.goes_with(t) and _alike(first.due - now, t.due - now))
            )
            if first.due - now < self.expected.seconds(min(most, alike)) and len(self) > 1:
                self.withdraw(first)
                hopeless.append(first)
                continue
            if self.running and first.kind is not None and alike < most:
                break  # members work already: what comes till they are done is answered with it
            self._turn = who.turn
            tickets = self._joined(first, most, now)
            soonest = min(ticket.due for ticket in tickets)
            request = merged([t.request for t in tickets], None if soonest == math.inf else max(soonest - now, 0.001))
            batch = Batch(request, tickets, tuple(tickets), now)
            self.running.append(batch)
            return batch, hopeless
        return None, hopeless

    def answered(self, batch: Batch, answer: Answer, now: float) -> None:
        """Learn from a batch."""
        self.expected.took(batch.request.rows(), now - batch.started)
        self.expected.read(answer, batch.request)

    def ended(self, batch: Batch) -> None:
        """A batch is over, and with it what is left of its requests."""
        for ticket in batch.tickets.copy():
            self.withdraw(ticket)
        self.running.remove(batch)

    def halved(self, batch: Batch) -> bool:
        """Let the requests of a batch that failed wait again, in batches of half as many rows, so that one that fails
        ends up alone; False: it was."""
        if len(batch.rows_of) < 2:
            return False
        self.running.remove(batch)
        for ticket in reversed(batch.tickets):
            ticket.together = max(1, sum(t.rows for t in batch.rows_of) // 2)
            self._tenants[ticket.tenant].waiting.appendleft(ticket)
        return True

    def _whose_turn(self) -> Tenant | None:
        return min((who for who in self._tenants.values() if who.waiting), key=_turn, default=None)

    def _joined(self, first: Ticket, most: int, now: float) -> list[Ticket]:
        """Take a request from its queue, and by turns those that go with it."""
        tickets = [self._take(first)]
        rows, sent = first.rows, first.sent
        soonest = latest = first.due - now
        queues = [(_turn(who), i, who, iter(list(who.waiting))) for i, who in enumerate(self._tenants.values())]
        heapify(queues)
        while queues and rows < most:
            _, i, who, rest = queues[0]
            for ticket in rest:
                left, fewest = ticket.due - now, min(most, ticket.together)
                together = min(soonest, left), max(latest, left)
                fits = rows + ticket.rows <= fewest and sent + ticket.sent <= self.limits.sent
                in_time = self.expected.seconds(rows + ticket.rows) <= together[0] and _alike(*together)
                if fits and in_time and first.goes_with(ticket):
                    tickets.append(self._take(ticket))
                    rows, most, sent, (soonest, latest) = rows + ticket.rows, fewest, sent + ticket.sent, together
                    heapreplace(queues, (_turn(who), i, who, rest))
                    break
            else:
                queues = [queue for queue in queues if queue[2] is not who]
                heapify(queues)
        return tickets

    def _take(self, ticket: Ticket) -> Ticket:
        who = self._tenants[ticket.tenant]
        who.waiting.remove(ticket)
        who.turn += ticket.size
        return ticket

    # -- what is expected -------------------------------------------------------------------------------------------

    def _answered_in(self, rows: int, left: float, who: Tenant, now: float) -> float:
        """Seconds until so many rows more of a tenant would be answered, others taking turns with it."""
        expected, limits = self.expected, self.limits
        own = rows + who.rows
        ahead = own + sum(min(own, other.rows) for other in self._tenants.values() if other is not who)
        together = expected.rows_in(left, limits.rows)
        before = (math.ceil(ahead / together) - 1) // limits.at_a_time
        busy = [max(0.0, expected.seconds(b.request.rows()) - (now - b.started)) for b in self.running]
        begins = not busy or (len(busy) < limits.at_a_time and ahead >= together)  # as in next_batch
        free = 0.0 if begins else min(busy)
        return free + (before + 1) * expected.seconds(min(ahead, together))

    def _busy(self, reason: str, retry_after_s: float = 0.0) -> FederationBusy:
        return FederationBusy(f"the federation is busy: {reason}", max(retry_after_s, self.retry_after_s))

    @property
    def retry_after_s(self) -> float:
        """Seconds until a batch more will have been answered."""
        return max(0.05, self.expected.latest_s or 1.0)

    def _size(self) -> float:
        return sum(tenant.size for tenant in self._tenants.values())


def _turn(who: Tenant) -> tuple[float, float]:
    return who.turn, who.waiting[0].came if who.waiting else math.inf


def _alike(one: float, other: float) -> bool:
    """Whether a batch by the sooner of two deadlines, in so many seconds, leaves the later one half of its time."""
    return max(one, other) <= ALIKE * min(one, other)


def _forsaken(ticket: Ticket) -> float:
    return ticket.due + GRACE * (ticket.due - ticket.came)


def _named(tenant: str) -> str:
    return f"tenant {one_line(printable(tenant, 60))}" if tenant else "all requests without a tenant's name"


def _mb(size: float) -> str:
    return f"{size / MIB:,.3g} MB"
