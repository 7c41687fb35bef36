"""A request outlives its receiver: it is replayed once Ray has started the receiver anew.

Greedy in float32, and sampled from the same seed, a replay gives the same tokens. Where others take part in it than
before, a stream goes on from what it has already told.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from fedray.errors import MemberDied, SessionLost
from fedray.protocols import protocol_of
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, FedrayError, Plan, Request

ELSEWHERE = "the receiver died in the middle of its answer, and no time is left to go on with it"
REPLAYS = 3  # a request whose receiver dies more often than that may be the reason


async def run(request: Request, plan: Plan, group: Group, protocol: Protocol | None = None) -> Answer:
    """The answer by a protocol, by default the plan's.

    Raises MemberDied where the receiver does not come back in time, or dies again and again.
    """
    life = _Lives(request, plan, group)
    while True:
        try:
            return await (protocol or protocol_of(plan)).run(life.request, plan, group)
        except (MemberDied, SessionLost) as lost:
            await life.next(lost)


async def stream(request: Request, plan: Plan, group: Group) -> AsyncGenerator[str | Answer]:
    """Pieces of a protocol's answer as they are decoded, then the Answer; a replay tells only what is new."""
    life, told, resumed = _Lives(request, plan, group), request.begun, False
    pieces = protocol_of(plan).stream
    assert pieces is not None, "asked before"
    while True:
        text = life.request.begun
        try:
            async with aclosing(pieces(life.request, plan, group)) as found:
                async for piece in found:
                    if isinstance(piece, Answer):
                        if len(text) < len(told):
                            raise _Other(ELSEWHERE)
                        yield replace(piece, resumed=resumed)
                        return
                    text += piece
                    if not told.startswith(text[: len(told)]):
                        raise _Other(ELSEWHERE)
                    if len(text) > len(told):
                        yield text[len(told) :]
                        told = text
        except _Other as other:
            life.request, resumed = replace(life.request, begun=told), True
            life.shorten(other)
        except (MemberDied, SessionLost) as lost:
            await life.next(lost)


class _Other(MemberDied):
    """A replay leads elsewhere."""


class _Lives:
    """A request under one deadline, whichever of its receiver's lives answers it."""

    def __init__(self, request: Request, plan: Plan, group: Group) -> None:
        self.request, self._plan, self._group, self._left = request, plan, group, REPLAYS
        self._deadline = None if request.deadline_s is None else time.monotonic() + request.deadline_s

    async def next(self, lost: FedrayError) -> None:
        """Wait for the receiver. Raises what it was lost to where there is no use in asking it again."""
        talks = isinstance(lost, SessionLost) and self.request.talk is not None  # the conversation begins anew
        if talks or not self._left or not await self._group.restored(self._plan.receiver, self._deadline):
            raise lost
        self._left -= 1
        self.shorten(lost)

    def shorten(self, lost: Exception) -> None:
        """Leave the request the time that is left. Raises what it was lost to where there is none."""
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise lost
            self.request = replace(self.request, deadline_s=left)
