"""Which tokens a mix fuser reads is part of what it is: by text, or the receiver's own token ids, one to one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.methods import method, revised
from tiny import QUESTIONS, random_llm, random_member

from fedray.federation.federation import Federation
from fedray.fusion import combine
from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.llm.cache import KVCache
from fedray.llm.loading import describe, load
from fedray.llm.model import HEAD, TAIL, Span
from fedray.llm.templates import Chat
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.store import Registry
from fedray.types import Answer, FedrayError, Generation, KVSpec, Plan, Request

RECEIVER, SENDER = "llama-1b", "qwen2.5-1.5b"  # of other tokenizers; the sender knows more ids
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=6))
SPEC = KVSpec(1, 1, 2)


def fuser_of(sender: KVSpec, receiver: KVSpec, how: str) -> Fuser:
    """A c2c fuser of random weights whose gates are open."""
    torch.manual_seed(0)
    config = FuserConfig("c2c", "mix", sender, receiver, hidden=32, intermediate=32, token_alignment=how)
    fuser = build_fuser(config).eval()
    for name, parameter in fuser.named_parameters():
        if name.endswith("gate_logit"):
            torch.nn.init.constant_(parameter, 1.0)
    return fuser


def cache(lengths: list[int]) -> KVCache:
    layer = (torch.zeros(len(lengths), 1, max(lengths), 2),)
    positions = torch.arange(max(lengths)).expand(len(lengths), -1)
    return KVCache(SPEC, layer, layer, torch.tensor(lengths), positions)


# "<user>", two tokens of text, "<end>", "<say>"; the sender has a longer head and one token for the whole text
OWN: list[Span] = [(HEAD, 0), (0, 2), (2, 4), (TAIL, 1), (TAIL, 0)]
SENT: list[Span] = [(HEAD, 0), (HEAD, 1), (0, 4), (TAIL, 1), (TAIL, 0)]


@pytest.mark.parametrize(
    ("how", "reads"),
    [("assembled", [-1, 2, 2, 4]), ("text", [-1, 2, 2, -1]), ("ids", [0, 1, 2, 3])],
)
def test_which_token_reads_which(how: str, reads: list[int]) -> None:
    part = combine.Part("sender", fuser_of(SPEC, SPEC, how), cache([5]), torch.ones(1), (tuple(SENT),))
    index_BT, aligned_BT = combine.alignment(part, cache([5]).crop(torch.tensor([4])), [OWN])
    assert [i if a else -1 for i, a in zip(index_BT[0].tolist(), aligned_BT[0].tolist(), strict=True)] == reads


def test_ids_are_counted_from_the_end() -> None:
    """The receiver may have read notes in front; a row that was not sent aligns with nothing."""
    part = combine.Part("sender", fuser_of(SPEC, SPEC, "ids"), cache([3, 0]), torch.ones(2), ((), ()))
    own = cache([5, 5]).crop(torch.tensor([4, 4]))
    index_BT, aligned_BT = combine.alignment(part, own, [OWN, OWN])
    assert aligned_BT.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert index_BT[0, 2:].tolist() == [0, 1]


def test_the_usual_alignment_is_left_out_of_the_hash() -> None:
    for how, said in (("assembled", False), ("ids", True)):
        config = FuserConfig("mlp", "mix", SPEC, SPEC, token_alignment=how)
        assert ("token_alignment" in config.to_dict()) is said
        assert FuserConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="token alignment 'words'; choose one of assembled, text, ids"):
        build_fuser(FuserConfig("mlp", "mix", SPEC, SPEC, token_alignment="words"))


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: random_member(name) for name in (RECEIVER, SENDER)})


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """A plan per alignment, of fusers with the same weights."""
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)

    def plan(how: str, root: Path) -> Plan:
        fuser = fuser_of(sender.spec, receiver.spec, how)
        made = Registry(root, embedded=None).add_fuser(fuser, describe(sender), describe(receiver), {})
        assert made.reads_ids is (how == "ids")
        return Plan(RECEIVER, (SENDER,), method(gate="none", fusion="mix"), fusers={SENDER: made})

    return {how: plan(how, tmp_path_factory.mktemp(how)) for how in ("assembled", "ids")}


def ask(group: LocalGroup, plan: Plan, request: Request = REQUEST) -> Answer:
    answer = asyncio.run(PROTOCOLS["c2c"].run(request, plan, group))
    assert not answer.missing
    return answer


def scored(group: LocalGroup, plan: Plan, **changed: Any) -> torch.Tensor:
    request = replace(REQUEST, choices=(("red", "blue"),) * len(QUESTIONS), **changed)
    return torch.tensor([row.scores for row in ask(group, plan, request).rows])


@pytest.mark.parametrize("route", ["eager", "lazy"])
def test_the_sender_reads_what_the_receiver_reads(group: LocalGroup, plans: dict[str, Plan], route: str) -> None:
    """A question as text is answered as its ids in the receiver's template are, whoever the sender is."""
    plan = revised(plans["ids"], gate={"route": route})
    ids = tuple(tuple(random_llm(RECEIVER).encode(question).ids) for question in QUESTIONS)
    assert max(map(max, ids)) < random_llm(SENDER).model.config.vocab_size
    torch.testing.assert_close(scored(group, plan), scored(group, plan, prompts=(), token_ids=ids), atol=1e-5, rtol=0)
    assert (scored(group, plan) - scored(group, plans["assembled"])).abs().max() > 1e-3


@pytest.mark.slow
def test_ids_reach_a_sender_on_ray(random_zoo: Path, cluster: Any, tmp_path: Path) -> None:
    """As a handle, from member to member."""
    receiver, sender = (load(name, folder=random_zoo) for name in ("qwen3-0.6b", SENDER))
    fuser = fuser_of(sender.spec, receiver.spec, "ids")
    Registry(tmp_path, embedded=None).add_fuser(fuser, describe(sender), describe(receiver), {})
    places = {"zoo": {"path": random_zoo}, "registry": {"path": tmp_path}, "generation": {"max_tokens": 6}}
    said = {}
    for ray in (False, True):
        with Federation(receiver=receiver.name, senders=(SENDER,), fuser="c2c", gate="none", ray=ray, **places) as fed:
            answer = fed.run(fed.request(*QUESTIONS))
            assert not answer.missing and answer.senders == (SENDER,)
            said[ray] = [row.tokens for row in answer.rows]
            alone = [row.tokens for row in fed.alone(fed.request(*QUESTIONS)).rows]
    assert said[True] == said[False] != alone


def test_another_question_for_the_sender_is_in_the_receivers_template_too(
    group: LocalGroup, plans: dict[str, Plan]
) -> None:
    """control=mismatched: the caches are those of the other question's ids."""
    other = scored(group, plans["ids"], asked={SENDER: QUESTIONS[1:] + QUESTIONS[:1]})
    assert (other - scored(group, plans["ids"])).abs().max() > 1e-3


def test_both_ways_needs_one_prompt_for_all(group: LocalGroup, plans: dict[str, Plan]) -> None:
    peer = replace(plans["assembled"], receiver=SENDER, senders=(RECEIVER,), fusers={})
    with pytest.raises(FedrayError, match="answer_all does not go with fusers whose senders read the receiver's ids"):
        ask(group, replace(plans["ids"], peers=(peer,)))


def test_ids_that_nobody_knows_are_refused(group: LocalGroup) -> None:
    known = random_llm(RECEIVER).model.config.vocab_size
    request = Request((), token_ids=((1, 2, known),))
    with pytest.raises(FedrayError, match=rf"token id {known} is none of {RECEIVER}'s, which go from 0 to {known - 1}"):
        asyncio.run(PROTOCOLS["standalone"].run(request, Plan(RECEIVER, ()), group))


def test_without_a_tokenizer_ids_are_all_it_reads(group: LocalGroup) -> None:
    member = random_member(RECEIVER)
    member.llm = replace(member.llm, tokenizer=None, template=Chat(None, "", ""), tokenizer_hash="")
    bare = LocalGroup({RECEIVER: member})
    request = Request((), token_ids=((5, 6, 7), (8, 9)), generation=Generation(max_tokens=3))
    rows, known = (asyncio.run(PROTOCOLS["standalone"].run(request, Plan(RECEIVER, ()), g)).rows for g in (bare, group))
    assert [row.tokens for row in rows] == [row.tokens for row in known]
    assert rows[0].text == " ".join(map(str, rows[0].tokens)) != known[0].text
    with pytest.raises(FedrayError, match="llama-1b has no tokenizer and reads no text: give the request"):
        asyncio.run(PROTOCOLS["standalone"].run(REQUEST, Plan(RECEIVER, ()), bare))
