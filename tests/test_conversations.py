"""Conversations: every turn is answered as the whole would be, asked at once, and only what is new is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_cluster import RECEIVER, SENDERS
from support.methods import method
from tiny import QUESTIONS, random_llm

from fedray import Federation
from fedray.errors import SessionLost
from fedray.federation.conversation import Conversation
from fedray.llm.chat import encode_turns
from fedray.llm.loading import describe
from fedray.llm.token_ids import shared
from fedray.member import sessions
from fedray.protocols import PROTOCOLS
from fedray.protocols.caches import collect
from fedray.protocols.exchange import Exchange
from fedray.protocols.standalone import alone
from fedray.registry.store import Registry
from fedray.types import Answer, FedrayError, Missing, Plan, Request, Talk
from fedray.wire.payload import unpack

TURNS = (*QUESTIONS, "and what else?")
EVERYONE = (RECEIVER, *SENDERS)
WAYS: dict[str, dict[str, Any]] = {
    "standalone": {"protocol": "standalone"},
    "concat": {"gate": {"kind": "open", "route": "eager"}},
    "concat, learned": {"gate": {"kind": "learned", "route": "lazy"}},
    "mix": {"fusion": "mix", "gate": {"kind": "open", "route": "lazy"}},
    "mix, learned": {"fusion": "mix", "gate": {"kind": "learned", "route": "eager"}},
}


@pytest.fixture(scope="module")
def here(random_federation: dict[str, Any], mixing: Path) -> Iterator[Federation]:
    with Federation(**random_federation, registry={"path": mixing}, ray=False) as fed:
        yield fed


@pytest.fixture(params=["here", "spread"])
def fed(request: pytest.FixtureRequest) -> Federation:
    return request.getfixturevalue(request.param)


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def whole(fed: Federation, before: tuple[tuple[str, ...], ...], *prompts: str, plan: Plan | None = None) -> Answer:
    """The whole conversation asked at once, of members that keep nothing."""
    return fed.run(fed.request(*prompts, talk=Talk(before)), plan)


def first_logits(fed: Federation, request: Request, plan: Plan) -> torch.Tensor:
    """(B, V), by the way of the protocol."""
    plan = alone(plan) if plan.method.protocol.name == "standalone" else plan

    async def run() -> Any:
        async with Exchange(request, plan, fed._group) as exchange:
            payloads = await collect(exchange)
            names, handles = tuple(name for name, _ in payloads), [handle for _, handle in payloads]
            asked = fed._group.start(plan.receiver, "first_logits", exchange.session, names, plan, *handles)
            return await exchange.of_receiver(asked)

    return torch.tensor(fed._loop.run(run()))


@pytest.mark.parametrize("way", WAYS)
def test_every_turn_is_answered_as_the_whole_conversation(fed: Federation, way: str) -> None:
    plan = fed.plan_for(**WAYS[way])
    twin = Talk(session=f"twin {way}")
    heard = set()
    with fed.conversation(plan) as talk:
        for number, prompt in enumerate(TURNS):
            before = talk.turns
            answer, wanted = talk.say(prompt), whole(fed, before, prompt, plan=plan)
            assert tokens(answer) == tokens(wanted) and answer.senders == wanted.senders and not answer.missing
            for row, other in zip(answer.rows, wanted.rows, strict=True):
                assert row.weights == pytest.approx(other.weights, abs=1e-5)
            heard.add(answer.senders)
            request = fed.request(prompt, talk=replace(twin, before=before))
            logits = first_logits(fed, request, plan)
            fresh = first_logits(fed, replace(request, talk=Talk(before)), plan)
            torch.testing.assert_close(logits, fresh, atol=1e-5, rtol=0)
            if number:
                forgotten = first_logits(fed, replace(request, talk=Talk()), plan)
                assert (forgotten - fresh).abs().max() > 1e-3, "what was said before must matter"
            twin = replace(twin, held_by=frozenset({RECEIVER}))
            assert (
                answer.usage.reused_tokens.get(RECEIVER, 0) + answer.usage.read_tokens[RECEIVER]
                == (wanted.usage.read_tokens[RECEIVER])
            )
            assert bool(answer.usage.reused_tokens) == (number > 0) and not answer.reread
    fed._release(twin.session)
    if "learned" in way:
        assert len(heard) > 1, "the gate must tell turns apart"


def test_ray_reads_what_one_process_reads(here: Federation, spread: Federation) -> None:
    said = []
    for fed in (here, spread):
        with fed.conversation() as talk:
            said.append([talk.say(prompt) for prompt in TURNS])
    for local, remote in zip(*said, strict=True):
        assert tokens(local) == tokens(remote)
        assert local.usage.read_tokens == remote.usage.read_tokens and set(local.usage.read_tokens) == set(EVERYONE)
        assert local.usage.reused_tokens == remote.usage.reused_tokens
        assert local.usage.payload_bytes == remote.usage.payload_bytes > 0


class Counter:
    """Tokens that go through the LLM of each member, one entry a forward pass."""

    def __init__(self, fed: Federation, stack: ExitStack) -> None:
        self.passes: dict[str, list[int]] = {}
        for name, member in fed._group._members.items():  # pyright: ignore[reportAttributeAccessIssue]
            self.passes[name] = []
            hook = member.llm.model.model.register_forward_pre_hook(self._count(name), with_kwargs=True)
            stack.callback(hook.remove)

    def _count(self, name: str) -> Any:
        return lambda model, args, kwargs: self.passes[name].append(kwargs["input_ids"].numel())

    def take(self) -> dict[str, list[int]]:
        taken = {name: passes.copy() for name, passes in self.passes.items()}
        for passes in self.passes.values():
            passes.clear()
        return taken


@pytest.mark.parametrize("way", WAYS)
def test_only_the_new_turn_goes_through_the_llms(here: Federation, way: str) -> None:
    plan = here.plan_for(**{**WAYS[way], "gate": "open"})
    llms = {name: here._group._members[name].llm for name in (plan.receiver, *plan.senders)}  # pyright: ignore
    held: dict[str, list[int]] = {name: [] for name in llms}
    with ExitStack() as stack:
        counter = Counter(here, stack)
        talk = stack.enter_context(here.conversation(plan))
        for prompt in TURNS:
            turns = (*(talk.turns[0] if talk.turns else ()), prompt)
            answer, passes = talk.say(prompt), counter.take()
            for name, llm in llms.items():
                if name in SENDERS and plan.method.protocol.name == "standalone":
                    assert passes[name] == []
                    continue
                ids = encode_turns(llm, turns).ids
                new = len(ids) - shared(held[name], ids)
                assert passes[name][0] == new == answer.usage.read_tokens[name]
                assert new == len(ids) - len(held[name]), "in these templates a turn begins with all that was read"
                held[name] = ids
                rest = passes[name][1:]  # at the receiver the last token over the fused cache, then token by token
                assert rest == [1] * len(rest) and bool(rest) == (name == RECEIVER)


def test_a_repeated_call_reads_nothing_and_says_the_same(fed: Federation) -> None:
    with fed.conversation() as talk:
        first = talk.say(TURNS[0])
        request = fed.request(TURNS[1], talk=replace(talk._talk, before=talk.turns))
        answers = [fed.run(request) for _ in range(3)]
        assert tokens(answers[0]) == tokens(answers[1]) == tokens(answers[2]) != tokens(first)
        assert answers[1].usage.read_tokens == dict.fromkeys(EVERYONE, 0)
        other = fed.request(TURNS[2], talk=replace(talk._talk, before=talk.turns))
        assert tokens(fed.run(other)) == tokens(whole(fed, talk.turns, TURNS[2])), "another turn in its place"
        assert tokens(talk.say(TURNS[1])) == tokens(answers[0])


def lose(fed: Federation, talk: Conversation, *members: str) -> None:
    """Let members drop a conversation, and wait until they have: on Ray a release may be overtaken by the next turn."""
    handles = [fed._group.start(member, "release", talk._talk.session) for member in members]
    assert not fed._loop.run(fed._group.wait(handles)).failed


@pytest.mark.parametrize("loser", EVERYONE)
def test_what_a_member_has_lost_is_read_again_once(fed: Federation, loser: str) -> None:
    with fed.conversation() as talk:
        talk.say(TURNS[0])
        lose(fed, talk, loser)
        before = talk.turns
        answer, wanted = talk.say(TURNS[1]), whole(fed, before, TURNS[1])
        assert answer.reread.startswith(loser) and fed.last is not None
        assert tokens(answer) == tokens(wanted) and answer.senders == SENDERS and not answer.missing
        assert answer.usage.read_tokens == wanted.usage.read_tokens and not answer.usage.reused_tokens
        again = talk.say(TURNS[2])
        assert not again.reread and set(again.usage.reused_tokens) == set(EVERYONE)


def test_a_stream_reads_again_too(fed: Federation) -> None:
    with fed.conversation() as talk:
        assert "".join(talk.stream(TURNS[0])) == talk.turns[0][1] == fed.ask(TURNS[0]).text
        before = talk.turns
        for _ in talk.stream(TURNS[1]):
            break
        assert talk.turns == before, "a turn whose stream is left was not said"
        lose(fed, talk, *EVERYONE)
        pieces = list(talk.stream(TURNS[1]))
        assert fed.last is not None and fed.last.reread
        assert "".join(pieces) == fed.last.text == whole(fed, before, TURNS[1]).text


def test_sessions_time_out_and_end(here: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    members = here._group._members.values()  # pyright: ignore[reportAttributeAccessIssue]
    assert [member.stats()["sessions"] for member in members] == [0, 0, 0]
    with here.conversation() as talk:
        talk.say(TURNS[0])
        assert [member.stats()["sessions"] for member in members] == [1, 1, 1]
        monkeypatch.setattr(sessions, "TTL_S", 0.0)
        assert talk.say(TURNS[1]).reread
        monkeypatch.undo()
    assert [member.stats()["sessions"] for member in members] == [0, 0, 0]


def test_a_member_that_holds_nothing_says_so(here: Federation) -> None:
    member = here._group._members[SENDERS[0]]  # pyright: ignore[reportAttributeAccessIssue]
    talk = Talk(session="unknown", held_by=frozenset({SENDERS[0]}))
    with pytest.raises(SessionLost, match=f"{SENDERS[0]} holds no session 'unknown'"):
        member.prefill("s", (0,), QUESTIONS[:1], None, talk)
    member.prefill("s", (0,), QUESTIONS[:1], None, replace(talk, held_by=frozenset()))
    member.release("s")
    member.release("unknown")


def test_rows_may_be_left_out_of_a_turn_and_change_their_order(here: Federation) -> None:
    """As under a gate that lets a sender in on some rows only."""
    member = here._group._members[SENDERS[0]]  # pyright: ignore[reportAttributeAccessIssue]
    prompts = (TURNS[0], TURNS[1], "why?")
    once, twice = (
        [len(encode_turns(member.llm, (p, *more)).ids) for p in prompts] for more in ((), ("red", "and now?"))
    )
    talk = Talk(session="rows")
    for rows, reused in (((0, 1, 2), 0), ((2, 0), once[2] + once[0]), ((1, 0), twice[0])):
        texts = tuple(prompts[row] for row in rows)
        talk = replace(talk, before=tuple((text, "red") if talk.held_by else () for text in texts))
        asked = tuple("and now?" for _ in rows) if talk.held_by else texts
        receipt, payload = member.share("kept", rows, prompts=asked, talk=talk, spans=True)
        _, fresh = member.share("fresh", rows, prompts=asked, talk=Talk(talk.before), spans=True)
        assert receipt.usage.reused_tokens.get(SENDERS[0], 0) == reused
        one, other = unpack(payload), unpack(fresh)
        assert (one.rows, one.spans, one.whole) == (other.rows, other.spans, other.whole)
        valid = other.cache.valid_BT()
        for key, wanted in zip(one.cache.keys + one.cache.values, other.cache.keys + other.cache.values, strict=True):
            torch.testing.assert_close(key.transpose(1, 2)[valid], wanted.transpose(1, 2)[valid], atol=1e-5, rtol=0)
        talk = replace(talk, held_by=frozenset({SENDERS[0]}))
    for session in ("rows", "kept", "fresh"):
        member.release(session)


def test_a_sender_that_was_away_catches_up(here: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SENDERS[0]
    member = here._group._members[gone]  # pyright: ignore[reportAttributeAccessIssue]
    with here.conversation() as talk:
        talk.say(TURNS[0])
        with monkeypatch.context() as patch:
            patch.setattr(member, "prefill", _fail)
            answer = talk.say(TURNS[1])
            assert answer.missing == (Missing(gone, "no memory left"),) and not answer.reread
        before = talk.turns
        answer, wanted = talk.say(TURNS[2]), whole(here, before, TURNS[2])
        assert tokens(answer) == tokens(wanted) and not answer.missing
        assert 0 < answer.usage.reused_tokens[gone] < answer.usage.reused_tokens[SENDERS[1]]


def _fail(*args: Any) -> None:
    raise RuntimeError("no memory left")


@pytest.mark.parametrize("way", WAYS)
def test_conversations_side_by_side_are_those_of_their_own(here: Federation, way: str) -> None:
    """Of unequal lengths, so that what each holds ends elsewhere; under a learned gate senders read some rows only."""
    plan = here.plan_for(**WAYS[way])
    drafts = [TURNS, [f"{prompt} tell me more, if you can." for prompt in TURNS], [prompt[:8] for prompt in TURNS]]
    with ExitStack() as stack:
        together = stack.enter_context(here.conversation(plan))
        apart = [stack.enter_context(here.conversation(plan)) for _ in drafts]
        for prompts in zip(*drafts, strict=True):
            answer = together.say(*prompts)
            own = [talk.say(prompt) for talk, prompt in zip(apart, prompts, strict=True)]
            assert tokens(answer) == [tokens(one)[0] for one in own]
            for row, one in zip(answer.rows, own, strict=True):
                assert row.weights == pytest.approx(one.rows[0].weights, abs=1e-4)
            assert answer.usage.read_tokens[RECEIVER] == sum(one.usage.read_tokens[RECEIVER] for one in own)
        with pytest.raises(FedrayError, match="2 prompts for 3 conversations"):
            together.say("one", "two")


def test_private_documents_stand_above_the_first_question(random_federation: dict[str, Any], tmp_path: Path) -> None:
    """They are read once, and stay before all that is said."""
    (tmp_path / "note.txt").write_text("the color of the bird dika is gold.")
    with Federation(**random_federation, ray=False, evidence={"llama-1b": str(tmp_path / "note.txt")}) as fed:
        with fed.conversation() as talk:
            answers = [talk.say(prompt) for prompt in TURNS]
            assert tokens(answers[2]) == tokens(whole(fed, (talk.turns[0][:4],), TURNS[2]))
        plain = fed.request(TURNS[0], evidence={})
        sent = answers[0].usage.read_tokens["llama-1b"]
        assert sent > fed.run(plain).usage.read_tokens["llama-1b"] and answers[1].usage.read_tokens["llama-1b"] < sent


REFUSED: Mapping[str, dict[str, Any]] = {
    "protocol=t2t": {"protocol": "t2t"},
    "protocol=self_refine": {"protocol": "self_refine"},
    "rephrase=shared": {"rephrase": "shared"},
}


@pytest.mark.parametrize("says", REFUSED)
def test_other_ways_hold_no_conversation(here: Federation, says: str) -> None:
    plan = here.plan_for(**REFUSED[says])
    for start in (
        lambda: here.conversation(plan),
        lambda: here.run(here.request("hello", talk=Talk((("a", "b"),))), plan),
    ):
        with pytest.raises(FedrayError, match=f"{says} holds no conversation: choose protocol=c2c or standalone"):
            start()


def test_what_cannot_be_a_conversation_is_refused(here: Federation) -> None:
    with here.conversation() as talk:
        with pytest.raises(FedrayError, match="prompt is empty"):
            talk.say(" ")
        with pytest.raises(FedrayError, match=r"'a\\ud800' has \\ud800"):
            talk.say("a\ud800")
        talk.say(TURNS[0])
        with pytest.raises(FedrayError, match="whose context holds 512; shorten it"):
            talk.say("why? " * 600)
        assert len(talk.turns[0]) == 2, "a turn that fails was not said"
        assert talk.say(TURNS[1]).usage.reused_tokens
    with pytest.raises(FedrayError, match="pairs"):
        here.request("hello", talk=Talk((("a",),)))
    with pytest.raises(FedrayError, match="equally many"):
        here.request("hello", talk=Talk(((), ())))


def test_a_sender_that_reads_the_receivers_ids_reads_its_conversation(tmp_path: Path) -> None:
    """C2C as published: one to one, in the receiver's template."""
    from test_token_alignment import RECEIVER as LLAMA
    from test_token_alignment import SENDER, fuser_of
    from tiny import random_member

    from fedray.protocols.group import LocalGroup

    group = LocalGroup({name: random_member(name) for name in (LLAMA, SENDER)})
    sender, receiver = random_llm(SENDER), random_llm(LLAMA)
    fuser = fuser_of(sender.spec, receiver.spec, "ids")
    made = Registry(tmp_path, embedded=None).add_fuser(fuser, describe(sender), describe(receiver), {})
    plan = Plan(LLAMA, (SENDER,), method(gate="none", fusion="mix"), fusers={SENDER: made})
    before: tuple[tuple[str, ...], ...] = ((),)
    for prompt in TURNS:
        request = Request((prompt,), talk=Talk(before, "ids"))
        answer = asyncio.run(PROTOCOLS["c2c"].run(request, plan, group))
        fresh = asyncio.run(PROTOCOLS["c2c"].run(replace(request, talk=Talk(before)), plan, group))
        assert tokens(answer) == tokens(fresh) and not answer.missing
        assert (
            answer.usage.read_tokens[SENDER]
            == answer.usage.read_tokens[LLAMA]
            < fresh.usage.read_tokens[LLAMA] + (not before[0])
        )
        before = ((*before[0], prompt, answer.text),)
