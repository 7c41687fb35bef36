"""Answer admitted requests in batches: one thread that starts what is next, gives up what is late, and tells callers.

Callers may be any threads; each has a Future, which it may cancel.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from fedray.errors import FederationBusy, FedrayError, MemberDied, MemberFailed
from fedray.federation.admission import Admission, Batch, Ticket
from fedray.federation.event_loop import Background
from fedray.federation.merging import parts
from fedray.types import Answer, Plan, Request, Usage

CLOSED = "this federation is closed; open another"
Outcome = Answer | BaseException
Told = list[tuple[Ticket, Outcome]]


class Dispatcher:
    """work: how a batch is answered; note: is given all that a caller of a tenant is told."""

    def __init__(
        self,
        admission: Admission,
        loop: Background,
        work: Callable[[Request, Plan], Coroutine[Any, Any, Answer]],
        note: Callable[[Outcome, str], object],
    ) -> None:
        self._admission, self._loop, self._work, self._noted = admission, loop, work, note
        self._changed = threading.Condition()  # over everything here
        self._over: deque[Batch] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fedray admission", daemon=True)

    def submit(self, request: Request, plan: Plan, tenant: str) -> Future[Answer]:
        """Let a request wait for its batch. Raises FederationBusy where it is refused, and FedrayError."""
        with self._changed:
            if self._closed or self._loop.closed:
                raise FedrayError(CLOSED)
            ticket = self._admission.admit(request, plan, tenant, time.monotonic())
            if not self._thread.is_alive():  # the first one
                self._thread.start()
            self._changed.notify()
        ticket.future.add_done_callback(partial(self._gone, ticket))
        return ticket.future

    def close(self) -> None:
        """Fail what waits and what is being answered, and end the thread. Closing twice is fine."""
        with self._changed:
            self._closed = True
            left = self._admission.everybody()
            self._cancel_empty()
            self._changed.notify()
        _tell([(ticket, FedrayError(CLOSED)) for ticket in left])
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _gone(self, ticket: Ticket, future: Future[Answer]) -> None:
        """Forget a request that its caller cancelled."""
        if future.cancelled():
            with self._changed:
                self._admission.withdraw(ticket)
                self._cancel_empty()
                self._changed.notify()

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # whatever ended it, nobody is left waiting
            self.close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                told = self._step()
                if not told and not self._over:
                    at = self._admission.next_event()
                    self._changed.wait(None if at == math.inf else max(0.0, at - time.monotonic()))
            _tell(told, self._noted)

    def _step(self) -> Told:
        """Start what can be started; returns what callers are to be told."""
        over = [self._over.popleft() for _ in range(len(self._over))]
        ends = [(batch, self._end(batch)) for batch in over]
        late = self._admission.late(time.monotonic())
        self._cancel_empty()
        while True:
            batch, hopeless = self._admission.next_batch(time.monotonic())
            late += hopeless
            if batch is None:
                break
            self._begin(batch)
        retry = self._admission.retry_after_s
        told: Told = [(ticket, FederationBusy("no answer by the deadline of the request", retry)) for ticket in late]
        return told + [pair for batch, outcome in ends for pair in _shared(batch, outcome)]

    def _begin(self, batch: Batch) -> None:
        try:
            batch.future = self._loop.start(self._work(batch.request, batch.tickets[0].plan))
        except FedrayError as error:  # closed meanwhile
            batch.future = Future()
            batch.future.set_exception(error)
        batch.future.add_done_callback(partial(self._done, batch))

    def _done(self, batch: Batch, future: Future[Answer]) -> None:
        """A cancelled batch is over when the loop has been through what was before it, and members were told."""
        if not future.cancelled():
            self._note(batch)
        elif not self._loop.closed:
            self._loop.start(asyncio.sleep(0)).add_done_callback(lambda _: self._note(batch))

    def _note(self, batch: Batch) -> None:
        with self._changed:
            self._over.append(batch)
            self._changed.notify()

    def _end(self, batch: Batch) -> tuple[list[Ticket], Outcome] | None:
        """Take a batch off; who is to be told, and what. None: its requests wait again."""
        future = batch.future
        assert future is not None and future.done()
        error = FedrayError(CLOSED) if future.cancelled() else future.exception()
        if error is None and len(future.result().rows) != batch.request.rows():
            error = MemberFailed(f"{future.result().receiver} answered another number of rows than it was asked")
        if error is None:
            self._admission.answered(batch, future.result(), time.monotonic())
        elif not (future.cancelled() or isinstance(error, MemberDied)) and self._admission.halved(batch):
            return None
        tickets = batch.tickets.copy()
        self._admission.ended(batch)
        return tickets, error or future.result()

    def _cancel_empty(self) -> None:
        """Cancel batches that nobody waits for any more, in the members too."""
        for batch in self._admission.running:
            if not batch.tickets and batch.future is not None:
                batch.future.cancel()


def _shared(batch: Batch, end: tuple[list[Ticket], Outcome] | None) -> Told:
    """What a batch's end is to each of its requests."""
    tickets, outcome = end or ([], FedrayError(CLOSED))
    if not isinstance(outcome, Answer):
        return [(ticket, outcome) for ticket in tickets]
    own = dict(zip(batch.rows_of, parts(outcome, [t.request for t in batch.rows_of]), strict=True))
    return [(ticket, _waited(own[ticket], batch.started - ticket.came)) for ticket in tickets]


def _waited(answer: Answer, seconds: float) -> Answer:
    """The answer with the seconds that its request waited for a batch."""
    return replace(answer, usage=answer.usage + Usage({"wait": seconds}))


def _tell(told: Told, note: Callable[[Outcome, str], object] = lambda outcome, tenant: None) -> None:
    for ticket, outcome in told:
        if ticket.future.set_running_or_notify_cancel():
            note(outcome, ticket.tenant)
            if isinstance(outcome, Answer):
                ticket.future.set_result(outcome)
            else:
                ticket.future.set_exception(outcome)
