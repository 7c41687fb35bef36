"""An LLM whose logits are NaN or infinite has no answer: it is named, what it said counts as wrong, others go on."""

from __future__ import annotations

import asyncio
import math
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from support.methods import method
from support.methods import plan as make_plan
from tiny import QUESTIONS, random_fuser, random_llm

from fedray.errors import MemberFailed
from fedray.evaluation.measure import _right
from fedray.evaluation.record import Record
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.llm.loading import describe
from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.methods.specfed import SpecFed
from fedray.protocols import PROTOCOLS, protocol_of
from fedray.protocols.group import LocalGroup
from fedray.questions.tasks import Question
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.settings.settings import Settings
from fedray.types import Answer, Artifact, FedrayError, Generation, Plan, Request

RECEIVER, SENDER, OTHER = "qwen3-0.6b", "qwen2.5-0.5b", "qwen2.5-1.5b"
FREE = Request(QUESTIONS, generation=Generation(max_tokens=5))
SCORED = replace(FREE, choices=(("red", "blue", "calm"),) * 3)
LONG = replace(FREE, choices=(("red", "blue and tall", "calm"),) * 3)
SAMPLED = replace(FREE, generation=Generation(max_tokens=5, temperature=0.7, seed=1))
EVERY_WAY = {"free": FREE, "choices": SCORED, "long choices": LONG, "sampled": SAMPLED}
NONE = "are no numbers"


@cache
def damaged(name: str, value: float = math.nan, *, word: str = "") -> LLM:
    """An LLM whose logits are no numbers: of every prompt, or of those that hold a word."""
    llm = random_llm(name)
    model = deepcopy(llm.model)
    if not word:
        model.model.norm.weight.data.fill_(value)
    else:
        others = {i for text in QUESTIONS if word not in text for i in llm.encode(text).ids}
        (own, *_) = sorted({i for text in QUESTIONS if word in text for i in llm.encode(text).ids} - others)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)  # it may be tied
        model.model.embed_tokens.weight.data[own] = value
    return replace(llm, model=model)


def group(receiver: LLM | None = None, sender: LLM | None = None) -> LocalGroup:
    """Three members, the first two as given."""
    llms = {RECEIVER: receiver, SENDER: sender, OTHER: None}
    return LocalGroup({name: Member(name, llm=llm or random_llm(name)) for name, llm in llms.items()})


def ask(members: LocalGroup, request: Request, senders: tuple[str, ...] = (), **plan: Any) -> Answer:
    receiver = plan.pop("receiver", RECEIVER)
    one = make_plan(receiver, senders, **{"gate": "none", "protocol": "standalone", **plan})
    return asyncio.run(protocol_of(one).run(request, one, members))


def reasons(answer: Answer) -> dict[str, str]:
    return {missing.member: missing.reason for missing in answer.missing}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_nothing_is_answered_without_numbers(way: str, value: float) -> None:
    answer = ask(group(receiver=damaged(RECEIVER, value)), EVERY_WAY[way])
    assert all(row.failed and row.choice is None and not row.text and not row.tokens for row in answer.rows)
    assert reasons(answer) == {RECEIVER: reasons(answer)[RECEIVER]}
    assert "in 3 of 3 answers the logits of its LLM are no numbers" in reasons(answer)[RECEIVER]


@pytest.mark.parametrize("way", EVERY_WAY)
def test_one_row_without_numbers_takes_no_other_along(way: str) -> None:
    whole = ask(group(), EVERY_WAY[way])
    answer = ask(group(receiver=damaged(RECEIVER, word="kruropos")), EVERY_WAY[way])
    assert [row.failed for row in answer.rows] == [False, True, False]
    for b in (0, 2):
        assert (answer.rows[b].text, answer.rows[b].choice) == (whole.rows[b].text, whole.rows[b].choice)
    assert f"in 1 of 3 answers the logits of its LLM {NONE}" in reasons(answer)[RECEIVER]


def test_a_failed_answer_is_wrong_whatever_the_gold_is() -> None:
    answer = ask(group(receiver=damaged(RECEIVER)), SCORED)
    asked = [Question(str(i), text, ("red", "blue", "calm"), gold=0) for i, text in enumerate(QUESTIONS)]
    assert (
        _right(answer.rows, asked) == [False] * 3
        and [q.said(r) for q, r in zip(asked, answer.rows, strict=True)] == [None] * 3
    )
    for scoring, target in (("number", "0"), ("text", ""), ("text-normalized", None), ("letters-generated", None)):
        free = [replace(q, scoring=scoring, target=target) for q in asked]
        free = [replace(q, choices=None, gold=None) for q in free] if target is not None else free
        assert _right(answer.rows, free) == [False] * 3
    record = Record(Settings())
    record.add(asked, answer, ask(group(), SCORED))
    left = record.report("complete")
    assert left.found.accuracy_alone == 0 and [m.member for m in left.who.missing] == [RECEIVER]


def test_a_stream_ends_with_the_members_name() -> None:
    async def read(members: LocalGroup) -> list[Any]:
        plan = Plan(RECEIVER, (), method(protocol="standalone", gate="none"))
        asked = replace(FREE, prompts=QUESTIONS[:1])
        return [piece async for piece in PROTOCOLS["standalone"].stream(asked, plan, members)]

    assert asyncio.run(read(group()))
    with pytest.raises(FedrayError, match=f"{RECEIVER}: the logits of its LLM {NONE}"):
        asyncio.run(read(group(receiver=damaged(RECEIVER))))


@pytest.mark.parametrize("protocol", ["t2t", "ensemble", "route"])
def test_a_sender_without_numbers_is_missing(protocol: str) -> None:
    request = replace(SCORED, weights={SENDER: (1.0,) * 3, OTHER: (0.0,) * 3})
    how: dict[str, Any] = {"protocol": protocol, "gate": "oracle" if protocol == "route" else "none"}
    answer = ask(group(sender=damaged(SENDER)), request, (SENDER, OTHER), **how)
    assert list(reasons(answer)) == [SENDER] and NONE in reasons(answer)[SENDER]
    assert SENDER not in answer.senders and not any(row.failed for row in answer.rows)
    without = ask(group(), replace(request, weights={OTHER: (0.0,) * 3}), (OTHER,), **how)
    assert [row.choice for row in answer.rows] == [row.choice for row in without.rows]
    heard = ask(group(), request, (SENDER, OTHER), **how)
    assert heard.senders != answer.senders


def test_one_hint_without_numbers_is_not_heard() -> None:
    one = ask(group(sender=damaged(SENDER, word="kruropos")), SCORED, (SENDER,), protocol="t2t")
    whole, alone = ask(group(), SCORED, (SENDER,), protocol="t2t"), ask(group(), SCORED)
    for row, as_in in zip(one.rows, (whole.rows[0], alone.rows[1], whole.rows[2]), strict=True):
        assert row.scores == pytest.approx(as_in.scores, abs=1e-4)
    assert whole.rows[1].scores != pytest.approx(alone.rows[1].scores, abs=1e-4)
    assert one.senders == (SENDER,) and "in 1 of 3 answers" in reasons(one)[SENDER]
    with pytest.raises(MemberFailed, match=f"{SENDER}: in 1 of 3"):
        ask(group(sender=damaged(SENDER, word="kruropos")), SCORED, (SENDER,), protocol="t2t", on_missing="error")


@pytest.mark.parametrize("protocol", ["t2t", "self_refine", "route", "ensemble"])
def test_a_receiver_without_numbers_is_named_and_its_answers_are_no_answers(protocol: str) -> None:
    request = replace(SCORED, weights={SENDER: (0.0,) * 3})
    gate = "oracle" if protocol == "route" else "none"
    answer = ask(group(receiver=damaged(RECEIVER)), request, (SENDER,), protocol=protocol, gate=gate)
    assert list(reasons(answer)) == [RECEIVER]
    if protocol == "ensemble":  # the others' probabilities decide
        assert [row.choice for row in answer.rows] == [row.choice for row in ask(group(), SCORED, receiver=SENDER).rows]
    else:
        assert all(row.failed for row in answer.rows)


def test_one_voice_without_numbers_is_not_counted() -> None:
    part = damaged(SENDER, word="kruropos")
    one, whole = (
        ask(group(sender=llm), SCORED, (SENDER, OTHER), protocol="ensemble") for llm in (part, random_llm(SENDER))
    )
    without = ask(group(), SCORED, (OTHER,), protocol="ensemble")
    for row, as_in in zip(one.rows, (whole.rows[0], without.rows[1], whole.rows[2]), strict=True):
        assert row.scores == pytest.approx(as_in.scores, abs=1e-4)
    assert whole.rows[1].scores != pytest.approx(without.rows[1].scores, abs=1e-4)


def test_nobody_with_numbers_is_no_ensemble() -> None:
    answer = ask(group(receiver=damaged(RECEIVER), sender=damaged(SENDER)), SCORED, (SENDER,), protocol="ensemble")
    assert all(row.failed for row in answer.rows) and set(reasons(answer)) == {RECEIVER, SENDER}


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    for sender in (RECEIVER, SENDER):
        for receiver in {RECEIVER, SENDER} - {sender}:
            one, two = random_llm(sender), random_llm(receiver)
            registry.add_fuser(random_fuser(one, two, "concat"), describe(one), describe(two), {})
    assert registry.path
    return Planner(registry.path, zoo=registry.path / "nowhere")


def test_a_receiver_of_caches_is_named_and_has_no_vote(planner: Planner) -> None:
    one, two = describe(random_llm(RECEIVER)), describe(random_llm(SENDER))
    plan = planner.plan(one, [two], method(gate="open"))
    answer = asyncio.run(PROTOCOLS["c2c"].run(SCORED, plan, group(receiver=damaged(RECEIVER))))
    assert (
        all(row.failed for row in answer.rows) and answer.senders == (SENDER,) and list(reasons(answer)) == [RECEIVER]
    )
    both = planner.plan(one, [two], method(gate="open", answer_all=True, vote=True))
    for role, name, good in (("receiver", RECEIVER, SENDER), ("sender", SENDER, RECEIVER)):
        answer = asyncio.run(PROTOCOLS["c2c"].run(SCORED, both, group(**{role: damaged(name)})))
        assert [row.choice for row in answer.rows] == [row.choice for row in answer.by_member[good]]
        assert all(row.failed for row in answer.by_member[name]) and name in reasons(answer)


def test_a_gate_that_reads_no_numbers_weighs_nobody() -> None:
    """NaN is not above a threshold either: the senders would be shut out without a word."""
    member = Member(RECEIVER, llm=damaged(RECEIVER, word="kruropos"))
    config = GateConfig(RECEIVER, (SENDER,), hidden=member.llm.model.config.hidden_size, operator="concat")
    member._gates["a hash"] = GateNetwork(config).eval()
    plan = Plan(RECEIVER, (SENDER,), gate_artifact=Artifact("gate", "a hash", ""))
    whole = Member(RECEIVER, llm=random_llm(RECEIVER))
    whole._gates = member._gates
    assert whole.open("s", FREE, plan).weights
    with pytest.raises(FedrayError, match=f"{RECEIVER}: its gate weighs nobody by numbers"):
        member.open("s", FREE, plan)


def test_a_worker_without_numbers_is_missing_and_a_server_fails() -> None:
    how = {"protocol": SpecFed(gamma=2, top_k=1.0), "receiver": SENDER}
    free = replace(FREE, prompts=QUESTIONS[:1])
    names = (SENDER, OTHER, "qwen2.5-coder-0.5b")
    llms = {name: random_llm(name) for name in names}

    def members(bad: str) -> LocalGroup:
        return LocalGroup({n: Member(n, llm=damaged(n) if n == bad else llm) for n, llm in llms.items()})

    answer = ask(members(OTHER), free, names[1:], **how)
    assert list(reasons(answer)) == [OTHER] and NONE in reasons(answer)[OTHER]
    assert answer.rows[0].tokens == ask(members(""), free, names[2:], **how).rows[0].tokens
    with pytest.raises(MemberFailed, match=f"the receiver {SENDER} failed: {SENDER}: the logits of its LLM {NONE}"):
        ask(members(SENDER), free, names[1:], **how)


def test_a_publisher_without_numbers_is_named() -> None:
    copies = (f"{RECEIVER}#2",)
    llm = damaged(RECEIVER)
    members = LocalGroup({name: Member(name, llm=replace(llm, name=name)) for name in (RECEIVER, *copies)})
    request = Request(("the bird dika is red. what is the color of the bird dika?",), choices=(("red", "blue"),))
    answer = ask(members, request, copies, protocol=FedAttn(participants=2))
    assert answer.rows[0].failed and list(reasons(answer)) == [RECEIVER]


def test_a_token_that_is_never_said_is_no_failure() -> None:
    """Minus infinity at some tokens is an LLM's way to leave them out; at all of them, and infinity at any, is none."""

    def with_logits(tokens: slice | list[int], value: float) -> LLM:
        llm = random_llm(RECEIVER)
        model = deepcopy(llm.model)

        def mask(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
            logits[..., tokens] = value
            return logits

        model.lm_head.register_forward_hook(mask)
        return replace(llm, model=model)

    for request in EVERY_WAY.values():
        assert not any(row.failed for row in ask(group(receiver=with_logits(slice(3), -math.inf)), request).rows)
        assert all(row.failed for row in ask(group(receiver=with_logits(slice(None), -math.inf)), request).rows)
        assert all(row.failed for row in ask(group(receiver=with_logits(slice(3), math.inf)), request).rows)
    choices = {i for row in SCORED.choices or () for text in row for i in random_llm(RECEIVER).encode_answer(text)}
    answer = ask(group(receiver=with_logits(list(choices), -math.inf)), SCORED)
    assert all(row.failed for row in answer.rows), "none of the choices can be said, the first as little as the others"
