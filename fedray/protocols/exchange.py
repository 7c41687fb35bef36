"""What every protocol with one exchange does: open the receiver, collect payloads by a deadline, let it answer.

Seconds, bytes and missing members add up here, so that each protocol shows only its own order of steps.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Any

from fedray.group import Group, Handle, MemberFailed
from fedray.types import Answer, FedrayError, Missing, Opening, Plan, Receipt, Request, SessionLost, Usage

RECEIVER_GRACE_S = 60.0  # how much longer than its senders a receiver may take before it counts as frozen


class Exchange:
    """One request on its way through a group. Sessions are released when the block ends."""

    def __init__(self, request: Request, plan: Plan, group: Group) -> None:
        self.request, self.plan, self.group = request, plan, group
        self.session = f"{request.id}-{uuid.uuid4().hex[:12]}"
        self.started = time.monotonic()
        self.usage = Usage()
        self.missing: list[Missing] = list(plan.missing)
        self.order = (*plan.speakers, *plan.senders)
        self._decoding = False

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._decoding:  # a stream that was left early
            self.group.cancel(self.plan.receiver, self.session)
        self.group.release(self.session, (self.plan.receiver, *self.order))

    @property
    def deadline(self) -> float | None:
        """When senders must be done: the receiver answers alone from then on (a point of time.monotonic())."""
        return None if self.request.deadline_s is None else self.started + self.request.deadline_s

    def start_open(self) -> Handle:
        return self.group.start(self.plan.receiver, "open", self.session, self.request, self.plan)

    async def finish_open(self, handle: Handle) -> Opening:
        opening: Opening = await self.of_receiver(handle)
        self.usage += opening.usage
        return opening

    async def open(self) -> Opening:
        return await self.finish_open(self.start_open())

    async def of_receiver(self, handle: Handle) -> Any:
        """The receiver's small result. Nobody can stand in for the receiver: its failure is the request's."""
        name = self.plan.receiver
        patience = None if self.deadline is None else self.deadline + RECEIVER_GRACE_S
        waited = await self.group.wait([handle], patience)
        if waited.late:
            self.group.cancel(name, self.session)
            raise MemberFailed(f"the receiver {name} does not answer; restart the federation")
        try:
            return self.group.result(handle)
        except SessionLost:
            raise
        except (FedrayError, RuntimeError, ValueError) as error:
            raise MemberFailed(f"the receiver {name} failed: {error}") from error

    async def of_sender(self, name: str, handle: Handle) -> bool:
        """Whether a sender's call is ready by the deadline; if not, the sender is named in `missing` and given up."""
        waited = await self.group.wait([handle], self.deadline)
        if waited.ready:
            done: Receipt | Answer = self.group.result(handle)
            self.usage += done.usage
            return True
        reason = waited.failed[0] if waited.failed else f"late: no answer within {self.request.deadline_s:g} s"
        self.missing.append(Missing(name, reason))
        self.group.cancel(name, self.session)
        return False

    def settle(self) -> None:
        """Raise MemberFailed if somebody is missing and the plan does not go on without."""
        self.missing.sort(key=lambda m: self.order.index(m.member) if m.member in self.order else -1)
        if self.missing and self.plan.on_missing == "error":
            raise MemberFailed("; ".join(f"{m.member}: {m.reason}" for m in self.missing))

    async def answer(self, payloads: list[tuple[str, Handle]]) -> Answer:
        """Let the receiver fuse what arrived and answer."""
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        asked = time.monotonic()
        handle = self.group.start(self.plan.receiver, "answer", self.session, names, self.request, self.plan, *handles)
        answer: Answer = await self.of_receiver(handle)
        moving = time.monotonic() - asked - sum(answer.usage.seconds.values())
        self.usage += Usage({"transfer": max(moving, 0.0)})  # the call and its payloads on their way
        return self.close(answer)

    async def stream(self, payloads: list[tuple[str, Handle]]) -> AsyncIterator[str | Answer]:
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        pieces = self.group.stream(self.plan.receiver, "stream", self.session, names, self.request, self.plan, *handles)
        self._decoding = True
        async for piece in pieces:
            yield self.close(piece) if isinstance(piece, Answer) else piece
        self._decoding = False

    def close(self, answer: Answer) -> Answer:
        """The receiver's answer with what the whole exchange cost, and who was missing."""
        self.missing += answer.missing  # payloads the receiver refused
        self.settle()
        usage = self.usage + answer.usage
        usage = replace(usage, seconds={**usage.seconds, "total": time.monotonic() - self.started})
        return replace(answer, usage=usage, missing=tuple(self.missing))
