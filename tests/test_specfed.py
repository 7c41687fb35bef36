"""SpecFed: the same answer whatever is drafted and sent, the right distribution, the paper's bounds, lost workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tiny import random_member

from fedray.group import LocalGroup, MemberFailed
from fedray.member import Member
from fedray.protocols import PROTOCOLS
from fedray.rounds import SpecFed
from fedray.speculation.acceptance import accept, acceptance_rate, draw
from fedray.speculation.drafts import uniform
from fedray.speculation.pace import FIRST, LONGEST, next_gamma
from fedray.speculation.reconstruction import average, l1, reconstruct
from fedray.speculation.translation import Translation
from fedray.types import Answer, FedrayError, Generation, Plan, Request
from fedray.wire.distributions import top_entries
from fedray.wire.payload import CorruptPayload
from fedray.wire.vocabulary import unpack_vocabulary
from fedray.zoo.world import World

DRAFT, WORKERS = "qwen2.5-0.5b", ("qwen2.5-1.5b", "qwen2.5-coder-0.5b")
ONE = WORKERS[:1]
WORLD = World(0)
KNOWN = [fact for fact in WORLD.split("test") if fact.attribute == "color" and fact.domain in ("gem", "star")]
TOLD = [WORLD.tell(fact.domain, fact.name).user for fact in (KNOWN[0], KNOWN[1], KNOWN[-1])]
PROMPTS = (*TOLD, "what is the mood of the star dika?")
REQUEST = Request(PROMPTS, generation=Generation(max_tokens=40))
WHOLE = SpecFed(top_k=1.0)


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: Member(name) for name in (DRAFT, *WORKERS)})


def plan(workers: tuple[str, ...] = WORKERS, how: SpecFed = WHOLE, **choices: Any) -> Plan:
    return Plan(DRAFT, workers, protocol="specfed", gate="none", specfed=how, **choices)


def ask(group: LocalGroup, one: Plan, request: Request = REQUEST) -> Answer:
    return asyncio.run(PROTOCOLS["specfed"](request, one, group))


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


@pytest.mark.parametrize("gamma", [0, 1, 2, 3, 4, 5, 6, 7, 8, "auto"])
@pytest.mark.parametrize("top_k", [1.0, 1])
def test_one_worker_greedy_is_its_own_greedy_decoding(group, gamma, top_k):
    """For any gamma, and for any K: the likeliest token is always among those that travel."""
    alone = group._members[ONE[0]].alone("alone", REQUEST)
    answer = ask(group, plan(ONE, SpecFed(gamma=gamma, top_k=top_k)))
    assert answer.rows == tuple(replace(row, weights={}) for row in alone.rows)
    found = answer.speculation
    assert found is not None and found.emitted == answer.usage.answer_tokens == sum(map(len, tokens(answer)))
    assert (found.rounds < max(map(len, tokens(answer)))) == (gamma != 0), "drafts save rounds"
    assert not group._members[ONE[0]].stats()["sessions"] or "alone" in group._members[ONE[0]]._sessions._open


@pytest.mark.parametrize("reconstruct", ["renorm", "spread"])
@pytest.mark.parametrize("top_k", [1.0, 64, 7])
def test_gamma_changes_no_greedy_answer(group, top_k, reconstruct):
    """Of two workers; K = V is the greedy answer of the average of whole distributions."""
    how = SpecFed(gamma=0, top_k=top_k, reconstruct=reconstruct)
    one_by_one = tokens(ask(group, plan(how=how)))
    assert all(tokens(ask(group, plan(how=replace(how, gamma=gamma)))) == one_by_one for gamma in (1, 3, 8))


def test_the_average_is_not_one_workers(group):
    both, one, other = (tokens(ask(group, plan(how=replace(WHOLE, weights=w)))) for w in ((1, 1), (1, 0), (0, 1)))
    assert one == tokens(ask(group, plan(ONE))) != both
    assert other == tokens(ask(group, plan(WORKERS[1:])))
    assert both == tokens(ask(group, plan(how=replace(WHOLE, weights=(0.5, 0.5))))) == tokens(ask(group, plan()))


def test_a_batch_says_what_its_rows_say_alone(group):
    how = SpecFed(gamma=5, top_k=1.0)
    alone = [ask(group, plan(how=how), REQUEST.select([b])).rows[0] for b in range(len(PROMPTS))]
    assert list(ask(group, plan(how=how)).rows) == alone


def test_answers_end_where_they_must(group):
    """At max_tokens, which a round may cross; past the end with generation.full; at a stop token that was drafted."""
    for longest in (1, 2, 6):
        short = replace(REQUEST, generation=Generation(max_tokens=longest))
        assert tokens(ask(group, plan(ONE), short)) == tokens(group._members[ONE[0]].alone("s", short))
    full = replace(REQUEST, generation=Generation(max_tokens=40, full=True))
    answer = ask(group, plan(ONE), full)
    assert tokens(answer) == tokens(group._members[ONE[0]].alone("f", full))
    assert [len(row) for row in tokens(answer)] == [40] * len(PROMPTS)


# -- sampling ---------------------------------------------------------------------------------------------------------

START = (260, 300, 310)  # a short prompt of ids, the same in every row


def first_distribution(member: Member, temperature: float) -> torch.Tensor:
    member._read("first", (0,), (), (START,))
    logits = torch.tensor(member.first_logits("first", (), Plan(member.name, ())))
    return torch.softmax(logits / temperature, dim=1)[0]


def fits(counts: torch.Tensor, p: torch.Tensor) -> float:
    """p-value of the chi-square test; tokens of which fewer than 5 are expected count as one."""
    expected = p.double() * counts.sum()
    rare = expected < 5
    seen, wanted = counts[~rare].tolist(), expected[~rare].tolist()
    if expected[rare].sum() > 0:
        seen, wanted = [*seen, int(counts[rare].sum())], [*wanted, float(expected[rare].sum())]
    return float(chisquare(seen, [w * sum(seen) / sum(wanted) for w in wanted]).pvalue)


def test_first_tokens_are_distributed_as_the_average(group):
    """20,000 of them, drawn by the whole protocol; the draft alone, or one worker, would be distributed otherwise."""
    temperature = 0.8
    counts = torch.zeros(640, dtype=torch.long)
    for seed in range(5):
        request = Request(
            (),
            token_ids=(START,) * 4000,
            generation=Generation(max_tokens=2, temperature=temperature, seed=seed, full=True),
        )
        first = torch.tensor([row.tokens[0] for row in ask(group, plan(how=SpecFed(gamma=1, top_k=1.0)), request).rows])
        counts += torch.bincount(first, minlength=640)
    assert counts.sum() == 20_000
    own, *theirs = (first_distribution(group._members[name], temperature) for name in (DRAFT, *WORKERS))
    assert fits(counts, (theirs[0] + theirs[1]) / 2) > 0.001
    assert all(fits(counts, p) < 1e-6 for p in (own, *theirs)), "the test could not tell them apart"


def test_tokens_behind_the_first_are_distributed_right_too():
    """All tokens of a round, not its first alone: three positions whose distributions depend on what stands before."""
    generator = torch.Generator().manual_seed(1)
    p_of, q_of = (torch.softmax(2 * torch.randn(2, 5, 5, generator=generator), dim=-1) for _ in range(2))
    rows = 20_000
    p0, q0 = p_of[0, 0], q_of[0, 0]
    draws = uniform((rows, 4), "test", 7)
    d0 = draw(q0.expand(rows, 5), draws[:, 0])
    d1 = draw(q_of[1][d0], draws[:, 1])
    p_BQV = torch.stack([p0.expand(rows, 5), p_of[1][d0], p_of[0][d1]], dim=1)
    q_BGV = torch.stack([q0.expand(rows, 5), q_of[1][d0]], dim=1)
    two = torch.full((rows,), 2)
    accepted, token = accept(p_BQV, q_BGV, torch.stack([d0, d1], dim=1), two, uniform((rows, 3), "test", 8))
    at_least_one = accepted >= 1
    first = torch.where(at_least_one, d0, token)
    second = torch.where(accepted >= 2, d1, token)[at_least_one]
    assert fits(torch.bincount(first, minlength=5), p0) > 0.001
    for before in range(5):
        counts = torch.bincount(second[d0[at_least_one] == before], minlength=5)
        assert fits(counts, p_of[1][before]) > 0.001
    rate = float(acceptance_rate(p0[None], q0[None]))
    assert float(at_least_one.float().mean()) == pytest.approx(rate, abs=0.02)


def test_a_seed_gives_the_same_answer_again(group):
    how = SpecFed(gamma=3, top_k=64)
    warm = replace(REQUEST, generation=Generation(max_tokens=20, temperature=1.0, seed=3))
    other = replace(warm, generation=replace(warm.generation, seed=4))
    assert tokens(ask(group, plan(how=how), warm)) == tokens(ask(group, plan(how=how), warm))
    assert tokens(ask(group, plan(how=how), warm)) != tokens(ask(group, plan(how=how), other))


# -- the paper's bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["renorm", "spread"])
@pytest.mark.parametrize("top_k", [1, 7, 64])
@pytest.mark.parametrize("temperature", [0.8, 1.2])
def test_what_is_lost_stays_within_the_bounds(group, how, top_k, temperature):
    """Every position of real answers, through the wire: Delta <= 2 sum w epsilon, |Delta alpha| <= Delta / 2."""
    settings = SpecFed(gamma=3, top_k=top_k, reconstruct=how, measure=True, weights=(2, 1))
    request = replace(REQUEST, generation=Generation(max_tokens=20, temperature=temperature))
    found = ask(group, plan(how=settings), request).speculation
    assert found is not None and found.measured == found.positions > 20 and found.drafts_measured > 10
    assert found.delta_excess < 1e-5 and found.gap_excess < 1e-5
    assert found.delta <= found.delta_bound + found.rounding + 1e-5 and found.gap > 0
    assert found.rounding < 2**-8 * found.measured


@pytest.mark.parametrize("how", ["renorm", "spread"])
def test_one_distributions_error(group, how):
    """renorm is off by exactly 2 epsilon, spread by no more; nothing is lost where all entries travel."""
    p_NV = torch.stack([first_distribution(group._members[name], 1.0) for name in (DRAFT, *WORKERS)])
    for count in (1, 7, 64):
        ids = p_NV.topk(count, dim=1).indices.sort(dim=1).values
        lost = 1 - p_NV.gather(1, ids).sum(1)
        error = l1(reconstruct(ids, p_NV.gather(1, ids), 640, how), p_NV)
        assert (error <= 2 * lost + 1e-5).all()
        assert how == "spread" or torch.allclose(error, 2 * lost, atol=1e-5)
    ids, kept = top_entries(p_NV, 640)
    assert (l1(reconstruct(ids, kept.float(), 640, how), p_NV) < 1e-3).all()


def test_entries_beyond_the_servers_vocabulary_are_missing_mass():
    ids, kept = torch.tensor([[1, 5]]), torch.tensor([[0.5, 0.25]])
    assert reconstruct(ids, kept, 5, "renorm").tolist() == [[0, 1, 0, 0, 0]]
    assert reconstruct(ids, kept, 5, "spread").tolist() == [[0.125, 0.5, 0.125, 0.125, 0.125]]


def test_weights_are_scaled_at_every_position():
    one, two = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    assert average([one, two], torch.tensor([[3.0, 0.0], [1.0, 2.0]])).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_gamma_follows_the_acceptance_rate():
    assert next_gamma(0, 0) == FIRST and next_gamma(1000, 1000) == LONGEST and next_gamma(1000, 0) == 1
    found = [next_gamma(1000, accepted) for accepted in range(0, 1001, 50)]
    assert found == sorted(found)
    assert next_gamma(1000, 800) == 3, "0.8 ** 3 > 0.5 > 0.8 ** 4"


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_repeated_call_changes_nothing_and_a_late_worker_catches_up(group):
    """verify again, and from an older position with all that was missed: the same distributions."""
    worker = group._members[ONE[0]]
    worker.prefill("again", (0,), PROMPTS[:1])
    greedy = worker.alone("reference", REQUEST.select([0])).rows[0].tokens

    def sent(position: int, known: tuple[int, ...], drafts: tuple[int, ...]) -> list[bytes]:
        _, payload = worker.verify("again", (0,), (position,), (known,), (drafts,), REQUEST.generation, WHOLE)
        return [buffer.tobytes() for buffer in payload.buffers]

    first = sent(0, (), greedy[:4])
    assert sent(0, (), greedy[:4]) == first
    later = sent(4, greedy[4:6], greedy[6:9])
    assert sent(4, greedy[4:6], greedy[6:9]) == later
    assert sent(0, (), greedy[:4]) == first, "taken back to the beginning"
    wide = [
        torch.frombuffer(bytearray(b[1]), dtype=torch.float16).view(-1, 640)
        for b in (later, sent(0, greedy[:6], greedy[6:9]))
    ]
    assert torch.allclose(*(w.float() for w in wide), atol=1e-3), "caught up in one call"
    with pytest.raises(FedrayError, match="has not read 20 tokens"):
        sent(20, greedy[:1], ())
    worker.release("again")


def test_the_server_says_a_round_once(group):
    server, worker = group._members[DRAFT], group._members[ONE[0]]
    one, request = plan(ONE), REQUEST.select([0])
    server.open("twice", request, one)
    worker.prefill("twice", (0,), request.prompts)
    now = server.draft("twice", request, 3, 512)
    _, payload = worker.verify("twice", (0,), (0,), ((),), now.drafts, request.generation, one.specfed)
    said = server.accept("twice", 0, (0,), ONE, request.generation, one, 3, payload)
    assert server.accept("twice", 0, (0,), ONE, request.generation, one, 3, payload) is said
    with pytest.raises(FedrayError, match="drafted nothing"):
        server.accept("twice", 1, (17,), ONE, request.generation, one, 3, payload)
    server.release("twice"), worker.release("twice")


class Failing(Member):
    """A worker whose calls of `verify` after the first few raise, or give what is damaged."""

    calls, good, damaged = 0, 2, False

    def verify(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls <= self.good:
            return super().verify(*args)
        if not self.damaged:
            raise RuntimeError("out of memory")
        receipt, payload = super().verify(*args)
        return receipt, replace(payload, buffers=payload.buffers[:1])

    verify.ships = True  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_lost_worker_leaves_its_weight_to_the_others(group, damaged):
    members = dict(group._members)
    failing = members[WORKERS[1]] = Failing(WORKERS[1])
    failing.damaged = damaged
    answer = ask(LocalGroup(members), plan())
    assert [m.member for m in answer.missing] == [WORKERS[1]] and answer.senders == ONE
    assert ("buffers" if damaged else "out of memory") in answer.missing[0].reason
    assert tokens(answer) != tokens(ask(group, plan()))
    failing.calls = failing.good  # lost in its first round: the other's own answer
    assert tokens(ask(LocalGroup(members), plan())) == tokens(ask(group, plan(ONE)))
    with pytest.raises(MemberFailed, match=r"out of memory|buffers"):
        ask(LocalGroup(members), plan(on_missing="error"))


def test_without_workers_there_is_no_answer(group):
    members = dict(group._members)
    members[ONE[0]] = Failing(ONE[0])
    with pytest.raises(MemberFailed, match=r"no worker is left.*out of memory"):
        ask(LocalGroup(members), plan(ONE))


def test_the_gate_weighs_row_by_row(group):
    """gate=oracle stands for a learned gate: each row listens to the worker it names."""
    weights = {WORKERS[0]: (1.0, 0.0, 1.0, 0.0), WORKERS[1]: (0.0, 1.0, 0.0, 1.0)}
    how = replace(WHOLE, weigh="gate")
    answer = ask(group, replace(plan(how=how), gate="oracle"), replace(REQUEST, weights=weights))
    each = [tokens(ask(group, plan((name,)))) for name in WORKERS]
    assert tokens(answer) == [each[b % 2][b] for b in range(len(PROMPTS))]


def test_a_worker_with_another_vocabulary(group):
    """Mapped by the bytes of tokens: it changes the answer, what has no counterpart is reported, and greedy answers do
    not depend on gamma where its tokens end wherever the server's do; strict refuses it."""
    members = {**group._members, "llama-1b": Member("llama-1b")}
    mixed = LocalGroup(members)
    names = (ONE[0], "llama-1b")
    told = replace(REQUEST, prompts=(WORLD.tell("tree", WORLD.entities["tree"][-1]).user, *PROMPTS[1:]))
    answer = ask(mixed, plan(names, SpecFed(top_k=1.0)), told)
    found = answer.speculation
    assert found is not None and not answer.missing
    assert tokens(answer) != tokens(ask(group, plan(ONE), told))
    assert 0 < found.translated < found.verified and 0 < found.unmapped < found.translated
    assert found.figures()["epsilon"] > 0
    with pytest.raises(FedrayError, match=r"vocab=strict: llama-1b"):
        ask(mixed, plan(names, SpecFed(vocab="strict")), told)


def test_a_worker_with_another_vocabulary_alone(group):
    """Rounds go on where its tokens do not end, one token at a time if need be, and past bytes that are no text."""
    mixed = LocalGroup({**group._members, "llama-1b": Member("llama-1b")})
    how, longer = SpecFed(gamma=6, top_k=1.0), Generation(max_tokens=24, full=True, temperature=1.5)
    for b in range(len(PROMPTS)):
        answer = ask(mixed, plan(("llama-1b",), how), replace(REQUEST, generation=longer).select([b]))
        assert len(answer.rows[0].tokens) == 24 and not answer.missing


def test_what_is_no_text_is_not_read(group):
    """Half a character, and what stands behind it: the place is that of the text before."""
    llama, server = Member("llama-1b").llm, group._members[DRAFT]
    vocabulary = unpack_vocabulary(server.vocabulary()[1])
    translation = Translation("llama-1b", llama.tokenizer, 512, llama.stop_ids, vocabulary)
    half, red = vocabulary.tokens.index(b"\xc3"), server.llm.encode_answer(" red")
    ids, before = translation.read([*red, half], red)
    assert llama.tokenizer.decode(ids) == " red" and before == [len(ids)] * (1 + len(red))


def test_tokens_mean_the_same_by_their_bytes(group):
    llama, server = Member("llama-1b").llm, group._members[DRAFT]
    vocabulary = unpack_vocabulary(server.vocabulary()[1])
    translation = Translation("llama-1b", llama.tokenizer, 512, llama.stop_ids, vocabulary)
    ids = server.llm.encode_answer("the color is red, the size is tall.")
    own, before = translation.read(ids[:4], ids[4:])
    assert llama.tokenizer.decode(own) == server.llm.tokenizer.decode(ids) and own == llama.encode_answer(
        "the color is red, the size is tall."
    )
    for i, count in enumerate(before):
        if count is not None:
            assert llama.tokenizer.decode(own[:count]) == server.llm.tokenizer.decode(ids[: 4 + i])
    assert before[-1] == len(own) and any(count is not None for count in before[:-1])
    red = llama.encode_answer(" red")
    one = torch.zeros(1, 512)
    one[0, red[0]] = 0.75
    one[0, min(llama.stop_ids)] = 0.25
    mapped = translation.distribution(one)
    same = [i for i, token in enumerate(vocabulary.tokens) if token == llama.tokenizer.decode(red[:1]).encode()]
    if same:
        assert mapped[0, same[0]] == 0.75
    assert mapped[0, vocabulary.stops[0]] == 0.25


def test_a_damaged_vocabulary_is_refused(group):
    payload = group._members[DRAFT].vocabulary()[1]
    lengths, text, stops = payload.buffers
    for wrong in (
        replace(payload, header=payload.header[:-1]),
        replace(payload, header=b"XXXX" + payload.header[4:]),
        replace(payload, buffers=(lengths[:-2], text, stops)),
        replace(payload, buffers=(lengths, text[:-1], stops)),
        replace(payload, buffers=(lengths, text, stops + 255)),
    ):
        with pytest.raises(CorruptPayload):
            unpack_vocabulary(wrong)


def test_choices_are_not_written(group):
    with pytest.raises(FedrayError, match="answered freely"):
        ask(group, plan(), replace(REQUEST, choices=(("red", "blue"),) * len(PROMPTS)))


def test_every_family_drafts_and_verifies():
    """Random weights of all three families, each with its own vocabulary throughout."""
    for name in ("qwen3-0.6b", "llama-1b", "qwen2.5-1.5b"):
        group = LocalGroup({"server": random_member(name), "worker": random_member(name)})
        one = replace(plan(), receiver="server", senders=("worker",))
        short = replace(REQUEST, generation=Generation(max_tokens=12, full=True))
        answer = ask(group, one, short)
        assert tokens(answer) == tokens(random_member(name).alone("r", short))
        assert answer.speculation is not None and answer.speculation.acceptance == 1.0
