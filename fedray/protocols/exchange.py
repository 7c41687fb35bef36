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
from fedray.types import Answer, Missing, Opening, Plan, Receipt, Request, Usage


class Exchange:
    """One request on its way through a group. Sessions are released when the block ends."""

    def __init__(self, request: Request, plan: Plan, group: Group) -> None:
        self.request, self.plan, self.group = request, plan, group
        self.session = f"{request.id}-{uuid.uuid4().hex[:12]}"
        self.started = time.monotonic()
        self.usage = Usage()
        self.missing: list[Missing] = list(plan.missing)

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.group.release(self.session, (self.plan.receiver, *self.plan.senders, *self.plan.speakers))

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
        waited = await self.group.wait([handle])
        if waited.failed:
            error = waited.failed[0]
            raise MemberFailed(f"the receiver {self.plan.receiver} failed: {error}")
        return self.group.result(handle)

    async def of_senders(self, handles: dict[str, Handle]) -> dict[str, Handle]:
        """The handles that are ready by the deadline; the others are named in `missing` and given up."""
        names = list(handles)
        waited = await self.group.wait([handles[name] for name in names], self.deadline)
        for index, reason in waited.failed.items():
            self.missing.append(Missing(names[index], reason))
        for index in waited.late:
            self.missing.append(Missing(names[index], f"late: no answer within {self.request.deadline_s:g} s"))
            self.group.cancel(names[index], self.session)
        ready = {names[index]: handles[names[index]] for index in waited.ready}
        for handle in ready.values():
            done: Receipt | Answer = self.group.result(handle)
            self.usage += done.usage
        if self.missing and self.plan.on_missing == "error":
            raise MemberFailed("; ".join(f"{m.member}: {m.reason}" for m in self.missing))
        return ready

    async def answer(self, payloads: list[tuple[str, Handle]]) -> Answer:
        """Let the receiver fuse what arrived and answer."""
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        handle = self.group.start(self.plan.receiver, "answer", self.session, names, self.request, self.plan, *handles)
        answer: Answer = await self.of_receiver(handle)
        return self.close(answer)

    async def stream(self, payloads: list[tuple[str, Handle]]) -> AsyncIterator[str | Answer]:
        names, handles = tuple(n for n, _ in payloads), [h for _, h in payloads]
        pieces = self.group.stream(self.plan.receiver, "stream", self.session, names, self.request, self.plan, *handles)
        async for piece in pieces:
            yield self.close(piece) if isinstance(piece, Answer) else piece

    def close(self, answer: Answer) -> Answer:
        """The receiver's answer with what the whole exchange cost, and who was missing."""
        usage = self.usage + answer.usage
        usage = replace(usage, seconds={**usage.seconds, "total": time.monotonic() - self.started})
        return replace(answer, usage=usage, missing=(*self.missing, *answer.missing))
