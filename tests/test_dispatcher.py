"""Callers of any thread get their own answers, take requests back, and are refused in time."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from typing import Any

import pytest
from support.admitting import PATIENCE_S, PLAN, admission, answer_to, asking

from fedray.errors import FederationBusy, MemberDied, MemberFailed
from fedray.federation.dispatcher import Dispatcher
from fedray.federation.event_loop import Background
from fedray.types import Answer, FedrayError, Plan, Request


class Members:
    """Answers batches when they are told to, each noted by its prompts."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.cancelled: list[tuple[str, ...]] = []
        self._gates: dict[tuple[str, ...], Future[None]] = {}
        self._begun = threading.Condition()
        self.open = False

    async def work(self, request: Request, plan: Plan) -> Answer:
        with self._begun:
            self.batches.append(request.prompts)
            gate = self._gates[request.prompts] = Future()
            self._begun.notify_all()
        try:
            if not self.open:
                await asyncio.wrap_future(gate)
        except asyncio.CancelledError:
            self.cancelled.append(request.prompts)
            raise
        if "bad" in request.prompts:
            raise MemberFailed("bad")
        if "dead" in request.prompts:
            raise MemberDied("dead")
        return answer_to(request.select((0,)) if "few" in request.prompts else request)

    def until(self, *prompts: str) -> None:
        """Wait until a batch of these prompts has begun."""
        with self._begun:
            assert self._begun.wait_for(lambda: prompts in self._gates, PATIENCE_S), self.batches

    def answer(self, *prompts: str) -> None:
        self.until(*prompts)
        self._gates[prompts].set_result(None)


class Front:
    """A dispatcher over such members."""

    def __init__(self, **limits: Any) -> None:
        self.members, self.loop, self.told = Members(), Background(), list[tuple[Any, str]]()
        self.queue = admission(**limits)
        self.dispatcher = Dispatcher(self.queue, self.loop, self.members.work, self.note)

    def note(self, outcome: Any, tenant: str) -> None:
        self.told.append((outcome.text if isinstance(outcome, Answer) else type(outcome).__name__, tenant))

    def ask(self, text: str, tenant: str = "", **more: Any) -> Future[Answer]:
        return self.dispatcher.submit(asking(text, **more), PLAN, tenant)

    def close(self) -> None:
        self.dispatcher.close()
        self.loop.close()


@pytest.fixture
def front() -> Iterator[Front]:
    with closing(Front()) as front:
        yield front


def got(future: Future[Answer]) -> str:
    return future.result(PATIENCE_S).text


def test_who_waits_is_answered_together(front: Front) -> None:
    first = front.ask("a")
    front.members.until("a")
    others = [front.ask(text) for text in "bcdef"]
    for batch in ("a", "bcde", "f"):
        front.members.answer(*batch)
    assert list(map(got, (first, *others))) == ["a!", "b!", "c!", "d!", "e!", "f!"]
    assert front.members.batches == [("a",), tuple("bcde"), ("f",)]
    assert front.told == [(text, "") for text in ("a!", "b!", "c!", "d!", "e!", "f!")]
    assert first.result().usage.seconds.keys() == {"wait"}


def test_a_failing_batch_fails_its_own_request_alone(front: Front) -> None:
    front.members.open = True
    with front.dispatcher._changed:  # nothing begins before all are there
        futures = {text: front.ask(text) for text in ("a", "bad", "few", "d", "e")}
    with pytest.raises(MemberFailed, match="bad"):
        futures.pop("bad").result(PATIENCE_S)
    assert {text: got(future) for text, future in futures.items()} == {text: f"{text}!" for text in futures}
    assert len(front.queue) == 0


def test_a_batch_whose_receiver_is_gone_is_not_tried_in_parts(front: Front) -> None:
    front.members.open = True
    with front.dispatcher._changed:
        futures = [front.ask(text) for text in ("a", "dead", "c")]
    for future in futures:
        with pytest.raises(MemberDied):
            future.result(PATIENCE_S)
    assert len(front.members.batches) == 1


def test_a_request_that_waits_can_be_taken_back(front: Front) -> None:
    first, second, third = (front.ask("a"), None, None)
    front.members.until("a")
    second, third = front.ask("b"), front.ask("c")
    assert second.cancel() and len(front.queue) == 2
    front.members.answer("a")
    front.members.answer("c")
    assert (got(first), got(third)) == ("a!", "c!")
    assert front.members.batches == [("a",), ("c",)] and not front.members.cancelled
    with pytest.raises(CancelledError):
        second.result()


def test_a_request_that_is_being_answered_can_be_taken_back(front: Front) -> None:
    with front.dispatcher._changed:
        one, two = front.ask("a"), front.ask("b")
    front.members.until("a", "b")
    assert one.cancel()
    third = front.ask("c")
    front.members.answer("a", "b")
    assert got(two) == "b!" and not front.members.cancelled  # its rows were for nothing, the other's were not
    front.members.until("c")
    assert third.cancel()
    fourth = front.ask("d")
    front.members.answer("d")  # and so the batch before it was cancelled, or nothing could have begun
    assert got(fourth) == "d!" and front.members.cancelled == [("c",)]
    assert len(front.queue) == 0


def test_a_request_may_be_taken_back_when_its_batch_is_over(front: Front) -> None:
    front.members.open = True
    with front.dispatcher._changed:
        one, two = front.ask("a"), front.ask("b")
    front.dispatcher._noted = lambda *_: two.cancel()  # between the two
    assert got(one) == "a!" and got(front.ask("c")) == "c!" and two.cancelled()


def test_a_deadline_passes_in_the_queue(front: Front) -> None:
    first = front.ask("a")
    front.members.until("a")  # and never ends
    late = front.ask("b", deadline_s=0.05)
    with pytest.raises(FederationBusy, match="no answer by the deadline") as caught:
        late.result(PATIENCE_S)
    assert caught.value.retry_after_s > 0 and not first.done()
    assert front.members.batches == [("a",)] and len(front.queue) == 1


def test_a_deadline_passes_while_members_work(front: Front) -> None:
    late = front.ask("a", deadline_s=0.05)
    with pytest.raises(FederationBusy):
        late.result(PATIENCE_S)
    second = front.ask("b")
    front.members.answer("b")
    assert got(second) == "b!" and front.members.cancelled == [("a",)]


def test_closing_fails_who_waits(front: Front) -> None:
    first = front.ask("a")
    front.members.until("a")
    second = front.ask("b")
    front.close()
    front.close()
    for future in (first, second):
        with pytest.raises(FedrayError, match="this federation is closed; open another"):
            future.result(PATIENCE_S)
    with pytest.raises(FedrayError, match="closed"):
        front.ask("c")
    assert front.members.cancelled == [("a",)] and not front.dispatcher._thread.is_alive()


def test_callers_of_many_threads_get_their_own(front: Front) -> None:
    front.members.open = True
    found: dict[str, str] = {}

    def call(number: int) -> None:
        for turn in range(5):
            text = f"{number}-{turn}"
            found[text] = got(front.ask(text, tenant=f"{number % 3}"))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == {text: f"{text}!" for text in found} and len(found) == 100


def test_nobody_waits_for_a_thread_that_died(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    front.queue.next_batch = lambda now: 1 / 0  # pyright: ignore
    with pytest.raises(FedrayError, match="closed"):
        front.ask("a").result(PATIENCE_S)
    with pytest.raises(FedrayError, match="closed"):
        front.ask("b")


def test_a_callback_may_ask_again(front: Front) -> None:
    front.members.open = True
    again: Future[Future[Answer]] = Future()
    front.ask("a").add_done_callback(lambda _: again.set_result(front.ask("b")))
    assert got(again.result(PATIENCE_S)) == "b!"


def test_busy_travels_between_processes() -> None:
    busy = pickle.loads(pickle.dumps(FederationBusy("full", 2.5)))
    assert (str(busy), busy.retry_after_s) == ("full; ask again in 2.5 s", 2.5)
