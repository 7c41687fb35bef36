"""Drafts: a sender's answer travels as the cache of its tokens, and is read where a note of it would stand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from support.methods import plan as planned
from support.methods import revised
from tiny import QUESTIONS, random_llm, random_member

from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm import decoding
from fedray.llm.loading import describe
from fedray.llm.rotary import unrotate
from fedray.methods.method import FuserChoice
from fedray.prompts import hint_prompt
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.store import Registry
from fedray.types import Answer, FedrayError, Generation, Plan, Request, Talk
from fedray.wire.payload import unpack

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
DRAFT = FuserChoice("draft", max_tokens=5)
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=8))


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: random_member(name) for name in (RECEIVER, *SENDERS)})


@pytest.fixture(scope="module", params=["first", "all"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two senders, both of whose drafts are read; one gives two slots for every token."""
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    fusers = {}
    for number, sender in enumerate(SENDERS, 1):
        one, two = random_llm(sender), random_llm(RECEIVER)
        how = {"rotary": "removed", "tokens": "draft", "slots": number, "layer_alignment": request.param}
        torch.manual_seed(number)
        fuser = build_fuser(FuserConfig("draft", "concat", one.spec, two.spec, hidden=16, **how))
        fusers[sender] = registry.add_fuser(fuser, describe(one), describe(two), {})
    return planned(RECEIVER, SENDERS, fuser=DRAFT, gate="open", fusers=fusers)


def ask(group: LocalGroup, plan: Plan, request: Request = REQUEST, protocol: str = "c2c") -> Answer:
    return asyncio.run(PROTOCOLS[protocol](request, plan, group))


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def test_it_stands_among_the_notes_and_changes_the_answer(group: LocalGroup, plan: Plan) -> None:
    assert (plan.method.fusion.read, plan.method.fusion.slots) == ("prompt", "inline"), "what the fuser implies"
    answer, alone = ask(group, plan), ask(group, plan, protocol="standalone")
    assert answer.senders == SENDERS and not answer.missing and tokens(answer) != tokens(alone)
    assert {f"draft[{sender}]" for sender in SENDERS} <= answer.usage.seconds.keys()


@pytest.mark.parametrize("unrotated", [True, False])
def test_what_is_sent_is_the_cache_of_the_answers_tokens(group: LocalGroup, plan: Plan, unrotated: bool) -> None:
    sender = group._members[SENDERS[0]]
    llm, rows = sender.llm, tuple(range(len(QUESTIONS)))
    said = sender.alone("said", Request(QUESTIONS, generation=Generation(DRAFT.max_tokens))).rows
    _, payload = sender.share("sent", rows, prompts=QUESTIONS, tokens="draft", unrotated=unrotated, draft=DRAFT)
    cache = unpack(payload).cache
    assert cache.lengths.tolist() == [len(row.tokens) for row in said]
    assert cache.positions[0].tolist() == list(range(cache.tokens)), "places in the draft, not in the prompt"
    for b, (row, question) in enumerate(zip(said, QUESTIONS, strict=True)):
        prompt = llm.encode(question).ids
        whole, _ = decoding.prefill(llm.model, [[*prompt, *row.tokens]], llm.pad_id)
        keys = unrotate(llm.model, whole.keys, whole.positions) if unrotated else whole.keys
        for got, want in zip((*cache.keys, *cache.values), (*keys, *whole.values), strict=True):
            length = len(row.tokens)
            torch.testing.assert_close(got[b, :, :length], want[0, :, len(prompt) :], atol=1e-4, rtol=0)


def test_the_mark_that_closes_a_draft_is_not_sent(group: LocalGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = group._members[SENDERS[0]]
    said = sender.alone("said", Request(QUESTIONS, generation=Generation(DRAFT.max_tokens))).rows
    last = sender.llm.decode(list(said[0].tokens[-1:])).strip()
    monkeypatch.setattr("fedray.member.sending.CLOSING", {last})
    for most, less in ((DRAFT.max_tokens, 1), (1, 0)):  # an answer that is nothing else is sent
        draft = replace(DRAFT, max_tokens=most)
        _, payload = sender.share(
            f"of {most}", (0,), prompts=QUESTIONS[:1], tokens="draft", unrotated=True, draft=draft
        )
        cache = unpack(payload).cache
        assert cache.lengths.tolist() == [min(most, len(said[0].tokens)) - less]
    rows = tuple(range(len(QUESTIONS)))
    _, payload = sender.share("of all", rows, prompts=QUESTIONS, tokens="draft", unrotated=True, draft=DRAFT)
    together = unpack(payload).cache
    ends = [sender.llm.decode(list(row.tokens[-1:])).strip() == last for row in said]
    assert together.lengths.tolist() == [len(row.tokens) - end for row, end in zip(said, ends, strict=True)]
    for b, question in enumerate(QUESTIONS):
        _, payload = sender.share(f"row {b}", (0,), prompts=(question,), tokens="draft", unrotated=True, draft=DRAFT)
        alone = unpack(payload).cache
        for got, want in zip((*together.keys, *together.values), (*alone.keys, *alone.values), strict=True):
            torch.testing.assert_close(got[b, :, : alone.tokens], want[0], atol=1e-4, rtol=0)


def test_only_what_is_read_of_it_is_sent(group: LocalGroup, plan: Plan) -> None:
    answer, layers = ask(group, plan), plan.fusers[SENDERS[0]].layers
    assert layers is not None and (layers[0] == (0,)) == (len(layers[0]) == 1)
    small = ask(group, revised(plan, wire="int8"))
    assert 0 < small.usage.payload_bytes < answer.usage.payload_bytes and not small.missing
    prompts = ask(group, revised(plan, fuser={"max_tokens": 1}))
    assert prompts.usage.payload_bytes < answer.usage.payload_bytes


def test_lazy_routes_batches_and_streams_give_the_same(group: LocalGroup, plan: Plan) -> None:
    whole = ask(group, plan)
    assert tokens(ask(group, revised(plan, gate={"route": "lazy"}))) == tokens(whole)
    assert [tokens(ask(group, plan, REQUEST.select([i])))[0] for i in range(len(QUESTIONS))] == tokens(whole)

    async def streamed() -> Answer:
        pieces = [piece async for piece in PROTOCOLS["c2c"].stream(REQUEST.select([0]), plan, group)]  # pyright: ignore
        assert "".join(piece for piece in pieces[:-1] if isinstance(piece, str)) == pieces[-1].rows[0].text  # pyright: ignore
        return pieces[-1]  # pyright: ignore

    assert tokens(asyncio.run(streamed())) == tokens(whole)[:1]


def test_shut_gates_are_the_receiver_alone(group: LocalGroup, plan: Plan) -> None:
    shut = replace(REQUEST, weights=dict.fromkeys(SENDERS, (0.0,) * len(QUESTIONS)))
    alone = tokens(ask(group, plan, protocol="standalone"))
    closed = ask(group, revised(plan, gate="oracle"), shut)
    assert tokens(closed) == alone and closed.usage.payload_bytes == 0
    some = replace(shut, weights={SENDERS[0]: (1.0, 0.0, 0.0), SENDERS[1]: (0.0, 0.0, 0.0)})
    found = tokens(ask(group, revised(plan, gate="oracle"), some))
    assert found[1:] == alone[1:] and found[0] != alone[0]


def test_every_turn_is_answered_as_the_whole_conversation(group: LocalGroup, plan: Plan) -> None:
    before, session = (), f"talk {plan.fusers[SENDERS[0]].hash}"
    for number, prompt in enumerate(QUESTIONS):
        held = frozenset((RECEIVER, *SENDERS)) if number else frozenset()
        turn = Request((prompt,), generation=REQUEST.generation)
        answer = ask(group, plan, replace(turn, talk=Talk((before,) if before else (), session, held_by=held)))
        fresh = ask(group, plan, replace(turn, talk=Talk((before,) if before else ())))
        assert tokens(answer) == tokens(fresh) and answer.senders == SENDERS
        assert bool(answer.usage.reused_tokens) == (number > 0)
        before = (*before, prompt, answer.rows[0].text)


def test_a_hint_is_another_draft(group: LocalGroup, plan: Plan) -> None:
    hinted = ask(group, revised(plan, fuser={"ask": "hint"}))
    asked = replace(REQUEST, asked=dict.fromkeys(SENDERS, tuple(map(hint_prompt, QUESTIONS))))
    assert tokens(hinted) == tokens(ask(group, plan, asked)) != tokens(ask(group, plan))


def test_everybody_answers(group: LocalGroup, plan: Plan, tmp_path: object) -> None:
    one, two = SENDERS
    own = planned(one, (RECEIVER,), fuser=DRAFT, gate="open", fusers={RECEIVER: _fuser(RECEIVER, one, tmp_path)})
    pair = replace(revised(plan, answer_all=True), senders=(one,), fusers={one: plan.fusers[one]}, peers=(own,))
    answer = ask(group, pair)
    assert set(answer.by_member) == {RECEIVER, one} and not answer.missing and two not in answer.by_member


def test_a_translator_for_another_tokenizer_is_refused_by_name(tmp_path: object) -> None:
    _fuser(SENDERS[0], RECEIVER, tmp_path)
    registry = Registry(tmp_path, embedded=None)  # pyright: ignore
    other = replace(describe(random_llm(SENDERS[0])), tokenizer_hash="0" * 16)
    with pytest.raises(FedrayError, match=r"draft fuser llama-1b -> qwen3-0.6b .* tokenizer differ"):
        registry.find_fuser(other, describe(random_llm(RECEIVER)), "draft", "concat")


def _fuser(sender: str, receiver: str, folder: object):
    one, two = random_llm(sender), random_llm(receiver)
    how = {"rotary": "removed", "tokens": "draft", "layer_alignment": "first"}
    fuser = build_fuser(FuserConfig("draft", "concat", one.spec, two.spec, hidden=16, **how))
    return Registry(folder, embedded=None).add_fuser(fuser, describe(one), describe(two), {})  # pyright: ignore
