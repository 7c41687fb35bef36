"""Identity tests of cache-to-cache, on random-weight LLMs: what is closed changes nothing, and opening it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from support.methods import method, revised
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.errors import SessionLost
from fedray.fusion import controls
from fedray.fusion.gating import fixed_weights
from fedray.llm.cache import KVCache
from fedray.llm.loading import describe
from fedray.member.member import Member
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.store import Registry
from fedray.types import Answer, Artifact, Generation, KVSpec, Plan, Request
from fedray.wire.payload import unpack

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=8))


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: random_member(name) for name in (RECEIVER, *SENDERS)})


@pytest.fixture(scope="module", params=["concat", "mix"])
def plan(request, tmp_path_factory) -> Plan:
    """Two senders, every gate open."""
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    receiver = random_llm(RECEIVER)
    fusers = {
        s: registry.add_fuser(
            random_fuser(random_llm(s), receiver, request.param), describe(random_llm(s)), describe(receiver), {}
        )
        for s in SENDERS
    }
    return Plan(RECEIVER, SENDERS, method(gate="open", fusion=request.param), fusers=fusers)


def ask(group: LocalGroup, plan: Plan, request: Request = REQUEST, protocol: str = "c2c") -> Answer:
    return asyncio.run(PROTOCOLS[protocol](request, plan, group))


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def logits(group: LocalGroup, plan: Plan, senders: tuple[str, ...], weights: float, prompts=QUESTIONS) -> torch.Tensor:
    """First next-token logits with every sender's weight forced to `weights`, the caches fetched all the same."""
    receiver: Member = group._members[RECEIVER]
    receiver.open("identity", Request(prompts), replace(plan, senders=senders))
    held = receiver._sessions.get("identity")
    held.weights_BS = torch.full((len(prompts), len(senders)), weights)
    payloads = []
    for sender in senders:
        member = group._members[sender]
        payloads.append(member.share("identity", tuple(range(len(prompts))), prompts=prompts, spans=True)[1])
    return torch.tensor(receiver.first_logits("identity", senders, replace(plan, senders=senders), *payloads))


def test_standalone_equals_generate_of_transformers(group, plan):
    answer = ask(group, plan, protocol="standalone")
    llm = random_llm(RECEIVER)
    for row, question in zip(answer.rows, QUESTIONS, strict=True):
        ids = torch.tensor([llm.encode(question).ids])
        wanted = llm.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=llm.pad_id)
        assert row.tokens == tuple(wanted[0, ids.shape[1] :].tolist())


def test_masked_senders_leave_the_receiver_alone(group, plan):
    alone = logits(group, plan, (), 0.0)
    torch.testing.assert_close(logits(group, plan, SENDERS, 0.0), alone, atol=1e-5, rtol=0)
    assert (logits(group, plan, SENDERS, 1.0) - alone).abs().max() > 1e-2, "an open gate must change the answer"
    assert (logits(group, plan, SENDERS, 0.5) - logits(group, plan, SENDERS, 1.0)).abs().max() > 1e-4


def test_closed_gates_equal_standalone(group, plan):
    closed = revised(plan, gate="random", seed=_seed_of_gates(lambda w: not w.any()))
    answer = ask(group, closed)
    assert answer.senders == () and answer.usage.payload_bytes == 0
    assert tokens(answer) == tokens(ask(group, plan, protocol="standalone"))
    assert tokens(ask(group, plan)) != tokens(answer), "the same senders with open gates must change the answer"


def test_a_batch_equals_its_rows(group, plan):
    whole = logits(group, plan, SENDERS, 1.0)
    rows = [logits(group, plan, SENDERS, 1.0, (question,))[0] for question in QUESTIONS]
    torch.testing.assert_close(whole, torch.stack(rows), atol=1e-5, rtol=0)
    assert tokens(ask(group, plan)) == [tokens(ask(group, plan, REQUEST.select([i])))[0] for i in range(len(QUESTIONS))]


def test_padding_never_leaks(group, plan):
    """A row beside one several times its length, far beyond any length in training, answers as it does alone."""
    long = " ".join(QUESTIONS * 3)
    batch = logits(group, plan, SENDERS, 1.0, (QUESTIONS[0], long))
    for row, prompt in zip(batch, (QUESTIONS[0], long), strict=True):
        torch.testing.assert_close(row, logits(group, plan, SENDERS, 1.0, (prompt,))[0], atol=1e-5, rtol=0)


def test_lazy_equals_eager(group, plan):
    seed = _seed_of_gates(lambda w: 0 < w.sum() < w.numel())
    eager, lazy = (
        ask(group, revised(plan, gate={"kind": "random", "route": route}, seed=seed)) for route in ("eager", "lazy")
    )
    assert tokens(eager) == tokens(lazy)
    assert eager.usage.payload_bytes == lazy.usage.payload_bytes > 0
    assert eager.usage.payload_bytes < ask(group, plan).usage.payload_bytes


def test_choices_are_scored_as_their_tokens(group, plan):
    """Scores of choices of one and of several tokens equal a forward pass over prompt and choice."""
    choices = (("red", "blue and tall", "calm"),) * len(QUESTIONS)
    answer = ask(group, plan, replace(REQUEST, choices=choices), protocol="standalone")
    llm = random_llm(RECEIVER)
    for row, question in zip(answer.rows, QUESTIONS, strict=True):
        for text, got in zip(choices[0], row.scores, strict=True):
            prompt, ids = llm.encode(question).ids, llm.encode_answer(text)
            logp = torch.log_softmax(llm.model(torch.tensor([prompt + ids])).logits[0], -1)
            wanted = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))
            assert got == pytest.approx(wanted, abs=1e-4)
        assert row.text == choices[0][row.choice]


@pytest.mark.parametrize("receiver", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sender", [torch.float32, torch.bfloat16])
def test_members_answer_together_in_any_precision(group, plan, receiver, sender):
    """Close to what 32 bit say, and further from the receiver alone."""

    def halved(name: str, dtype: torch.dtype) -> Member:
        llm = random_llm(name)
        return Member(name, llm=replace(llm, model=deepcopy(llm.model).to(dtype)))

    members = {RECEIVER: halved(RECEIVER, receiver), **{name: halved(name, sender) for name in SENDERS}}
    here = LocalGroup(members)
    assert ask(here, plan).text
    exact, alone = logits(group, plan, SENDERS, 1.0), logits(group, plan, (), 1.0)
    error, change = (logits(here, plan, SENDERS, 1.0) - exact).abs().max(), (exact - alone).abs().max()
    assert error < change / 4


def test_streaming_says_what_answering_says(group, plan):
    from fedray.protocols import c2c

    async def collect() -> list:
        return [piece async for piece in c2c.stream(REQUEST.select([1]), plan, group)]

    *pieces, answer = asyncio.run(collect())
    assert isinstance(answer, Answer)
    assert "".join(pieces) == answer.text == ask(group, plan).rows[1].text


def test_sessions_are_released(group, plan):
    before = [m.stats()["sessions"] for m in group._members.values()]
    ask(group, plan)
    assert [m.stats()["sessions"] for m in group._members.values()] == before


def keys_of(group: LocalGroup, control: str, prompt: str) -> torch.Tensor:
    """Keys (L, 1, N, T, H) that a sender ships for a prompt."""
    payload = group._members[SENDERS[0]].share("control", (0,), prompts=(prompt,), control=control, seed=5)[1]
    return torch.stack(unpack(payload).cache.keys)


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    tokens = min(one.shape[3], other.shape[3])
    return torch.nn.functional.cosine_similarity(one[..., :tokens, :], other[..., :tokens, :], dim=-1)


def test_a_constant_cache_is_the_same_for_every_question_and_token(group):
    one, other = (keys_of(group, "constant", text) for text in QUESTIONS[:2])
    assert float((one - one[..., :1, :]).abs().max()) == 0
    torch.testing.assert_close(one[..., :1, :], other[..., :1, :], atol=0, rtol=0)
    assert float(cosine(keys_of(group, "none", QUESTIONS[0]), keys_of(group, "none", QUESTIONS[1])).min()) < 0.9


def test_noise_has_the_moments_of_a_cache_channel_by_channel_and_nothing_of_this_one(group):
    real, noise = (keys_of(group, kind, QUESTIONS[0]) for kind in ("none", "noise"))
    assert abs(float(cosine(noise - noise.mean(3, keepdim=True), real - real.mean(3, keepdim=True)).mean())) < 0.05
    torch.testing.assert_close(noise, keys_of(group, "noise", QUESTIONS[0]), atol=0, rtol=0)
    spec = KVSpec(2, 2, 16)

    def cache(seed: int, tokens: int) -> KVCache:
        generator = torch.Generator().manual_seed(seed)
        size, near = (torch.rand(2, 1, 2, 1, 16, generator=generator) for _ in range(2))
        side = tuple(near + size * torch.randn(2, 1, 2, tokens, 16, generator=generator))
        return KVCache(spec, side, side, torch.tensor([tokens]), torch.arange(tokens)[None])

    fixed = cache(0, 4000)
    drawn = controls.noise(cache(1, 4000), fixed, ["a"])
    torch.testing.assert_close(drawn.keys, controls.noise(cache(2, 4000), fixed, ["a"]).keys, atol=0, rtol=0)
    for got, want in zip((*drawn.keys, *drawn.values), (*fixed.keys, *fixed.values), strict=True):
        for moment, wanted in zip(torch.std_mean(got, dim=2), torch.std_mean(want, dim=2), strict=True):
            torch.testing.assert_close(moment, wanted, atol=0.1, rtol=0.1)
    assert not drawn.keys[0].equal(controls.noise(cache(1, 4000), fixed, ["b"]).keys[0])


@pytest.fixture(scope="module")
def soft_prompts(tmp_path_factory) -> dict[str, Artifact]:
    registry, receiver = Registry(tmp_path_factory.mktemp("soft"), embedded=None), random_llm(RECEIVER)
    made = {s: random_fuser(random_llm(s), receiver, "concat", "soft") for s in SENDERS}
    return {s: registry.add_fuser(m, describe(random_llm(s)), describe(receiver), {}) for s, m in made.items()}


@pytest.mark.parametrize("plan", ["concat"], indirect=True)
@pytest.mark.parametrize("read", ["last", "prompt"])
def test_what_stands_in_for_messages_carries_nothing_of_the_sender(group, plan, soft_prompts, read):
    """Whatever senders have read, of as many tokens, the answer is the same; and it is not the receiver's alone."""
    texts = [text.replace("mood", "size").replace("color", "mood").replace("home", "size") for text in QUESTIONS]
    for sender in SENDERS:
        encode = random_llm(sender).encode
        assert [len(encode(a).ids) for a in texts] == [len(encode(b).ids) for b in QUESTIONS]
    asked = replace(REQUEST, choices=(("red", "blue and tall", "calm"),) * len(QUESTIONS))
    other = replace(asked, asked=dict.fromkeys(SENDERS, tuple(texts)))
    found = {"alone": ask(group, plan, asked, protocol="standalone").rows}
    for control in ("zero", "self", "soft", "none"):
        how = replace(revised(plan, control=control, fusion={"read": read}), soft_prompts=soft_prompts)
        answer, changed = (ask(group, how, request) for request in (asked, other))
        assert answer.senders == SENDERS and not answer.missing
        assert ([a.scores for a in answer.rows] == [b.scores for b in changed.rows]) is (control != "none"), control
        found[control] = answer.rows
    scores = [[row.scores for row in rows] for rows in found.values()]
    assert all(one != other for one, other in combinations(scores, 2))


def test_zero_and_self_are_slots_of_the_receivers_own_space(group, plan):
    held = {}
    for kind in ("zero", "self"):
        receiver = group._members[RECEIVER]
        receiver.open("own", Request(QUESTIONS), plan)
        own = receiver._sessions.get("own").own()
        fuser = controls.Instead(kind, receiver.fuser(plan.fusers[SENDERS[0]]), own, (2, 0, 40))
        made = fuser.project((), ())
        assert made.keys[0].shape == (1, own.spec.kv_heads, 42, own.spec.head_dim)
        assert not any(weights.any() for weights in made.log_weights), "as visible as the receiver's own"
        held[kind] = made.keys[1][0]
    assert not held["zero"].any()
    first, length = own.keys[1], int(own.lengths[2])
    torch.testing.assert_close(held["self"][:, 1], first[0, :, int(own.lengths[0]) // 2])
    assert {t * length // 40 for t in range(40)} == set(range(length)), "every token of a prompt that is shorter"
    torch.testing.assert_close(held["self"][:, -1], first[2, :, length - 1])


@pytest.mark.parametrize("plan", ["concat"], indirect=True)
def test_a_soft_prompt_takes_the_place_of_a_message_slot_by_slot(group, plan, soft_prompts):
    receiver = group._members[RECEIVER]
    fuser, soft = (receiver.fuser(of[SENDERS[0]]) for of in (plan.fusers, soft_prompts))
    receiver.open("soft", Request(QUESTIONS), plan)
    own, trained = receiver._sessions.get("soft").own(), soft.slots.shape[3]
    made = controls.Instead("soft", fuser, own, (2, 0, trained + 3), soft).project((), ())
    slots = soft.slots[2, 1]
    wanted = torch.cat([slots[:, :2], slots, slots[:, :3]], dim=1)
    torch.testing.assert_close(made.values[2][0], wanted, atol=0, rtol=0)
    assert not any(weights.any() for weights in made.log_weights), "as visible as the receiver's own"


def test_every_number_of_soft_slots_is_trained():
    soft = random_fuser(random_llm(SENDERS[0]), random_llm(RECEIVER), "concat", "soft").train()
    sent = tuple(torch.zeros(2, spec.kv_heads, 6, spec.head_dim) for spec in [soft.config.sender]), ()
    shown = set()
    for step in range(60):
        soft.on_step(step / 60)
        shown.add(int((soft.project(*sent).log_weights[0][0, 0] == 0).sum()))
    assert shown == set(range(1, 7))
    soft.on_step(0.5)
    first = soft.project(*sent).log_weights[0]
    soft.on_step(0.5)
    torch.testing.assert_close(soft.project(*sent).log_weights[0], first, atol=0, rtol=0)  # also after a resume
    assert not soft.eval().project(*sent).log_weights[0].any()


def test_noise_of_a_batch_is_that_of_its_rows(group):
    member = group._members[SENDERS[0]]
    rows = tuple(range(len(QUESTIONS)))
    cache = unpack(member.share("control", rows, prompts=QUESTIONS, control="noise", seed=5)[1]).cache
    for b, question in enumerate(QUESTIONS):
        alone = keys_of(group, "noise", question)
        torch.testing.assert_close(torch.stack(cache.keys)[:, b : b + 1, :, : alone.shape[3]], alone, atol=1e-5, rtol=0)


def test_what_still_waits_for_a_released_session_is_dropped(group, plan):
    """A prefill that runs after its exchange is over, as that of a sender without weight may, keeps nothing."""
    member = group._members[SENDERS[0]]
    before = member.stats()["sessions"]
    member.release("late")
    with pytest.raises(SessionLost):
        member.prefill("late", (0, 1, 2), QUESTIONS)
    assert member.stats()["sessions"] == before


def test_rows_that_a_sender_did_not_send_are_as_without_it(group, plan):
    """Rows of unequal length and weight, some sent and some not, answer as each does alone."""
    member, receiver = group._members[SENDERS[0]], group._members[RECEIVER]
    prompts = (QUESTIONS[0], " ".join(QUESTIONS), QUESTIONS[2])
    weights = torch.tensor([[1.0], [0.0], [0.6]])
    one = replace(plan, senders=SENDERS[:1])

    def first(rows: list[int]) -> torch.Tensor:
        texts = tuple(prompts[i] for i in rows)
        receiver.open("rows", Request(texts), one)
        receiver._sessions.get("rows").weights_BS = weights[rows]
        sent = tuple(b for b, i in enumerate(rows) if weights[i] > 0)
        if not sent:
            return torch.tensor(receiver.first_logits("rows", (), replace(one, senders=())))
        payload = member.share("rows", sent, prompts=tuple(texts[b] for b in sent), spans=True)[1]
        return torch.tensor(receiver.first_logits("rows", SENDERS[:1], one, payload))

    torch.testing.assert_close(first([0, 1, 2]), torch.cat([first([i]) for i in range(3)]), atol=1e-5, rtol=0)


def _seed_of_gates(wanted: Callable[[torch.Tensor], bool]) -> int:
    """A seed whose random gates are as the test needs them."""
    return next(s for s in range(10_000) if wanted(fixed_weights("random", len(QUESTIONS), len(SENDERS), s)))
