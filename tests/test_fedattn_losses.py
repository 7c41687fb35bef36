"""FedAttn in this process, when a participant is lost on the way: who is named, and what is used of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

from participants import ONE, ask, federation, logits, plan_of
from tiny import random_llm

from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.protocols.group import LocalGroup, Waited
from fedray.types import Receipt
from fedray.wire.payload import Payload, ships


class Threads(LocalGroup):
    """A thread per member, so that one can be frozen while the others go on."""

    def __init__(self, members: dict[str, Member]) -> None:
        super().__init__(members)
        self._threads = {name: ThreadPoolExecutor(1) for name in members}

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            given = [arg.result() if isinstance(arg, Future) else arg for arg in args]
            return LocalGroup.start(self, member, method, *given, **kwargs)

        return self._threads[member].submit(call)

    async def wait(self, handles: Sequence[Future[Any]], deadline: float | None = None) -> Waited:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        await asyncio.wait([asyncio.wrap_future(handle) for handle in handles], timeout=left)
        late = tuple(i for i, handle in enumerate(handles) if not handle.done())
        failed = {i: str(h.result().error) for i, h in enumerate(handles) if h.done() and h.result().error}
        return Waited(tuple(i for i in range(len(handles)) if i not in failed and i not in late), failed, late)

    def result(self, handle: Future[Any]) -> Any:
        return super().result(handle.result())


def test_who_is_frozen_makes_nobody_else_late() -> None:
    """It uses up the time of one sync; the syncs after it have theirs."""
    thaw, llm = Event(), random_llm("qwen3-0.6b")

    class Frozen(Member):
        @ships
        def advance(
            self, session: str, position: int, senders: Any, *payloads: Payload
        ) -> tuple[Receipt, Payload | None]:
            if self.name.endswith("#2") and position == 0:
                thaw.wait()
            return super().advance(session, position, senders, *payloads)

    names = [llm.name, *(f"{llm.name}#{i}" for i in range(2, 6))]
    group = Threads({name: Frozen(name, llm=replace(llm, name=name)) for name in names})
    try:
        answer = ask(group, plan_of(group, FedAttn(5, 2)), replace(ONE, deadline_s=8.0))
    finally:
        thaw.set()
    (missing,) = answer.missing
    assert missing.member == names[1] and "late: no answer within" in missing.reason
    assert answer.senders == tuple(names[2:])


def test_a_corrupt_payload_is_named_and_left_out() -> None:
    """At the first sync; from then on its rows, which are sound, are not used either."""

    class Corrupt(Member):
        @ships
        def begin(self, *args: Any) -> tuple[Receipt, Payload | None]:
            receipt, payload = super().begin(*args)
            if payload is None or "#3" in self.name:
                return receipt, payload
            return receipt, Payload(payload.header, (payload.buffers[0][:-4], *payload.buffers[1:]))

    group = federation(random_llm("qwen3-0.6b"), 3, Corrupt)
    answer = ask(group, plan_of(group, FedAttn(3, 2)))
    assert [m.member for m in answer.missing] == ["qwen3-0.6b#2"]
    assert "its header promises" in answer.missing[0].reason
    assert answer.senders == ("qwen3-0.6b#3",)


def test_who_is_refused_and_then_dies_is_named_once() -> None:
    class Corrupt(Member):
        @ships
        def begin(self, *args: Any) -> tuple[Receipt, Payload | None]:
            receipt, payload = super().begin(*args)
            if payload is None or "#3" in self.name:
                return receipt, payload
            return receipt, Payload(b"", payload.buffers)

        @ships
        def advance(self, session: str, position: int, *rest: Any) -> tuple[Receipt, Payload | None]:
            if "#2" in self.name and position == 1:
                raise RuntimeError("died")
            return super().advance(session, position, *rest)

    group = federation(random_llm("qwen3-0.6b"), 3, Corrupt)
    answer = ask(group, plan_of(group, FedAttn(3, 2)))
    assert [(m.member, m.reason) for m in answer.missing] == [("qwen3-0.6b#2", "died")]
    assert answer.senders == ("qwen3-0.6b#3",)


def test_rows_of_who_was_refused_are_not_used_again() -> None:
    """The same answer, bit by bit, whether what follows the refused payload is sound or not."""

    class Corrupt(Member):
        always = False

        def _post(self, held: Any, *rest: Any) -> tuple[Receipt, Payload | None]:
            receipt, payload = super()._post(held, *rest)
            if payload is None or "#3" in self.name or (held.running.post.layer and not self.always):
                return receipt, payload
            return receipt, Payload(payload.header, payload.buffers[:-1])

    found = []
    for always in (False, True):
        group = federation(random_llm("qwen3-0.6b"), 3, type("Corrupt", (Corrupt,), {"always": always}))
        ask(group, plan_of(group, FedAttn(3, 2)))
        found.append(logits(group))
    assert found[0].equal(found[1])
