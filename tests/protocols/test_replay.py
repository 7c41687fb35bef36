"""A request whose receiver dies is answered by its next life: with the same tokens, or from what was told already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.methods import method
from tiny import QUESTIONS, random_fuser, random_llm

from fedray.errors import MemberDied, SessionLost
from fedray.llm.loading import describe
from fedray.member.member import Member
from fedray.protocols import PROTOCOLS, replay
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.types import Answer, FedrayError, Generation, Health, Plan, Request, Row, Talk

RECEIVER, SENDER = "qwen3-0.6b", "llama-1b"
REQUEST = Request(QUESTIONS[:1], generation=Generation(max_tokens=8))
DEAD = MemberDied(f"{RECEIVER}: died")
LLMS = {name: random_llm(name) for name in (RECEIVER, SENDER)}


class Mortal(LocalGroup):
    """Its receiver dies `deaths` times: where it is asked for `at`, or in a stream behind `pieces` of its text. If
    `lonely`, its next lives find the sender gone."""

    def __init__(self, deaths: int, at: str = "", pieces: int = 0, *, lonely: bool = False) -> None:
        super().__init__({name: Member(name, llm=llm) for name, llm in LLMS.items()})
        self.deaths, self.at, self.pieces, self.lonely = deaths, at, pieces, lonely
        self.died = 0
        self.comes_back = True
        self.deadlines: list[float | None] = []

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Any:
        handle = super().start(member, method, *args, **kwargs)
        if method == self.at and self.died < self.deaths:
            self.died += 1
            handle.error = SessionLost("no session") if self.at == "answer" else DEAD
        if member == SENDER and self.lonely and self.died:
            handle.error = DEAD
        return handle

    async def stream(self, member: str, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        told = 0
        async for piece in super().stream(member, method, *args, **kwargs):
            if self.died < self.deaths and told == self.pieces:
                self.died += 1
                raise DEAD
            told += isinstance(piece, str)
            yield piece

    async def restored(self, member: str, deadline: float | None = None) -> bool:
        assert member == RECEIVER
        self.deadlines.append(deadline)
        return self.comes_back


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    sender, receiver = LLMS[SENDER], LLMS[RECEIVER]
    store = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    store.add_fuser(random_fuser(sender, receiver, "concat"), describe(sender), describe(receiver), {})
    planner = Planner(store.path, zoo=store.path and store.path / "nowhere")
    return planner.plan(describe(receiver), [describe(sender)], method(gate="open"))


def run(group: LocalGroup, plan: Plan, request: Request = REQUEST) -> Answer:
    return asyncio.run(replay.run(request, plan, group))


def stream(group: LocalGroup, plan: Plan, request: Request = REQUEST) -> tuple[list[str], Answer]:
    async def pieces() -> list[str | Answer]:
        return [piece async for piece in replay.stream(request, plan, group)]

    *told, answer = asyncio.run(pieces())
    assert isinstance(answer, Answer)
    return [str(piece) for piece in told], answer


def plain(plan: Plan) -> Answer:
    return asyncio.run(PROTOCOLS["c2c"].run(REQUEST, plan, Mortal(0)))


@pytest.mark.parametrize("at", ["open", "answer"])
@pytest.mark.parametrize("deaths", [1, replay.REPLAYS])
def test_a_replay_gives_the_same_tokens(plan: Plan, at: str, deaths: int) -> None:
    """Also where it was back before it was missed, and knew nothing of the session."""
    group = Mortal(deaths, at)
    assert run(group, plan).rows == plain(plan).rows and group.died == deaths
    assert all(member.stats()["sessions"] == 0 for member in group._members.values())


def test_a_receiver_that_dies_of_a_request_is_not_asked_for_ever(plan: Plan) -> None:
    group = Mortal(99, "open")
    with pytest.raises(MemberDied, match=f"the receiver {RECEIVER}: died"):
        run(group, plan)
    assert group.died == 1 + replay.REPLAYS


def test_one_that_does_not_come_back_ends_the_request(plan: Plan) -> None:
    group = Mortal(1, "open")
    group.comes_back = False
    with pytest.raises(MemberDied):
        run(group, plan)
    assert group.died == 1


def test_a_deadline_is_not_renewed(plan: Plan) -> None:
    group = Mortal(2, "open")
    run(group, plan, replace(REQUEST, deadline_s=60.0))
    first, second = group.deadlines
    assert first == second is not None
    spent = Mortal(1, "open")
    with pytest.raises(MemberDied):
        run(spent, plan, replace(REQUEST, deadline_s=1e-6))


def test_a_conversation_begins_anew_by_itself(plan: Plan) -> None:
    group = Mortal(1, "answer")
    with pytest.raises(SessionLost):
        run(group, plan, replace(REQUEST, talk=Talk(session="talk")))


@pytest.mark.parametrize("pieces", [0, 3])
def test_a_stream_tells_every_piece_once(plan: Plan, pieces: int) -> None:
    whole, expected = stream(Mortal(0), plan)
    assert len(whole) > 4 and "".join(whole) == expected.text
    told, answer = stream(Mortal(2, pieces=pieces), plan)
    assert "".join(told) == answer.text == expected.text and answer.rows == expected.rows
    assert not answer.resumed


def test_a_stream_goes_on_from_what_it_told(plan: Plan) -> None:
    """The sender died too, so that the replay says something else from its beginning."""
    whole, expected = stream(Mortal(0), plan)
    alone = stream(Mortal(1, lonely=True), plan)[1]
    assert not alone.text.startswith("".join(whole[:3]))
    told, answer = stream(Mortal(1, pieces=3, lonely=True), plan)
    begun = "".join(whole[:3])
    assert told[:3] == whole[:3] and "".join(told) == answer.text != expected.text
    assert answer.text.startswith(begun) and answer.resumed and answer.missing[0].member == SENDER
    assert len(answer.rows[0].tokens) <= REQUEST.generation.max_tokens


def test_a_replay_that_ends_early_goes_on_from_what_was_told(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told stays told."""
    lives = iter((["blue ", "and "], ["blue "], ["green"]))
    begun: list[str] = []

    async def pieces(request: Request, plan: Plan, group: Any) -> AsyncIterator[Any]:
        begun.append(request.begun)
        told = next(lives)
        for piece in told:
            yield piece
        if len(begun) == 1:
            raise DEAD
        yield Answer((Row(request.begun + "".join(told)),), RECEIVER, ())

    monkeypatch.setattr(replay, "protocol_of", lambda plan: SimpleNamespace(stream=pieces))
    told, answer = stream(Mortal(0), plan)
    assert "".join(told) == answer.text == "blue and green" and answer.resumed
    assert begun == ["", "", "blue and "]
    lives, begun[:] = iter((["blue ", "and "], ["blue "])), []
    monkeypatch.setattr(replay, "time", SimpleNamespace(monotonic=iter([0.0, 1.0, 9.0]).__next__))
    with pytest.raises(MemberDied, match="no time is left"):
        stream(Mortal(0), plan, replace(REQUEST, deadline_s=5.0))


def test_what_an_answer_begins_with_is_as_if_it_had_been_decoded(plan: Plan) -> None:
    whole, expected = stream(Mortal(0), plan)
    begun = "".join(whole[:3])
    told, answer = stream(Mortal(0), plan, replace(REQUEST, begun=begun))
    assert answer.text == expected.text and answer.rows[0].tokens == expected.rows[0].tokens
    assert begun + "".join(told) == expected.text


def test_of_a_sender_with_replicas_another_is_asked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Mortal(1, "prefill")
    for replicas, missing in ((1, [SENDER]), (2, [])):
        group.died = 0
        monkeypatch.setattr(group, "health", lambda n=replicas: {SENDER: Health(1, n), RECEIVER: Health()})
        answer = run(group, plan)
        assert [m.member for m in answer.missing] == missing
        assert (answer.rows == plain(plan).rows) == (not missing)


def test_other_errors_are_not_replayed(plan: Plan) -> None:
    group = Mortal(0)
    with pytest.raises(FedrayError, match="context holds"):
        run(group, plan, Request(("why? " * 600,)))
    assert not group.deadlines
