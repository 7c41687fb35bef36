"""SpecFed: the same answer whatever is drafted and sent, the right distribution, the paper's bounds, lost workers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from speculating import DRAFT, ONE, PROMPTS, REQUEST, WHOLE, WORKERS, ask, nothing_is_open, plan, tokens

from fedray.member.member import Member
from fedray.member.specfed.acceptance import accept, acceptance_rate, draw, uniform
from fedray.member.specfed.reconstruction import average, l1, reconstruct
from fedray.methods.specfed import FIRST, LONGEST, SpecFed, next_gamma
from fedray.protocols.group import LocalGroup
from fedray.types import Generation, Plan, Request
from fedray.wire.distributions import top_entries

SHORT = replace(REQUEST, generation=Generation(max_tokens=16))


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: Member(name) for name in (DRAFT, *WORKERS)})


@pytest.fixture(scope="module")
def own() -> Member:
    """The first worker outside the group."""
    return Member(ONE[0])


@pytest.mark.parametrize(
    ("gamma", "top_k"), [*((gamma, 1.0) for gamma in (0, 1, 3, 8, "auto")), (0, 1), (7, 1), ("auto", 1)]
)
def test_one_worker_greedy_is_its_own_greedy_decoding(group, own, gamma, top_k):
    """For any gamma, and for any K: the likeliest token is always among those that travel."""
    alone = own.alone("alone", REQUEST)
    answer = ask(group, plan(ONE, SpecFed(gamma=gamma, top_k=top_k)))
    assert answer.rows == tuple(replace(row, weights={}) for row in alone.rows)
    found = answer.speculation
    assert found is not None and found.emitted == answer.usage.answer_tokens == sum(map(len, tokens(answer)))
    assert (found.rounds < max(map(len, tokens(answer)))) == (gamma != 0), "drafts save rounds"
    assert nothing_is_open(group)


@pytest.mark.parametrize(
    ("top_k", "reconstruct"), [(1.0, "spread"), (64, "renorm"), (64, "spread"), (7, "renorm"), (7, "spread")]
)
def test_gamma_changes_no_greedy_answer(group, top_k, reconstruct):
    """Of two workers; K = V is the greedy answer of the average of whole distributions."""
    how = SpecFed(gamma=0, top_k=top_k, reconstruct=reconstruct)
    one_by_one = tokens(ask(group, plan(how=how), SHORT))
    assert all(tokens(ask(group, plan(how=replace(how, gamma=gamma)), SHORT)) == one_by_one for gamma in (1, 3, 8))


def test_the_average_is_not_one_workers(group):
    def said(workers=WORKERS, weights=None):
        return tokens(ask(group, plan(workers, replace(WHOLE, weights=weights)), SHORT))

    both, one, other = (said(weights=w) for w in ((1, 1), (1, 0), (0, 1)))
    assert one == said(ONE) != both
    assert other == said(WORKERS[1:])
    assert both == said(weights=(0.5, 0.5)) == said()


def test_a_batch_says_what_its_rows_say_alone(group):
    how = SpecFed(gamma=5, top_k=1.0)
    alone = [ask(group, plan(how=how), REQUEST.select([b])).rows[0] for b in range(len(PROMPTS))]
    assert list(ask(group, plan(how=how)).rows) == alone


def test_answers_end_where_they_must(group, own):
    """At max_tokens, which a round may cross; past the end with generation.full; at a stop token that was drafted."""
    for longest in (1, 2, 6):
        short = replace(REQUEST, generation=Generation(max_tokens=longest))
        assert tokens(ask(group, plan(ONE), short)) == tokens(own.alone("alone", short))
    full = replace(REQUEST, generation=Generation(max_tokens=40, full=True))
    answer = ask(group, plan(ONE), full)
    assert tokens(answer) == tokens(own.alone("alone", full))
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
    """4,000 of them, drawn by the whole protocol; the draft alone, or one worker, would be distributed otherwise."""
    temperature = 0.8
    drawing = Generation(max_tokens=2, temperature=temperature, seed=0, full=True)
    request = Request((), token_ids=(START,) * 4000, generation=drawing)
    first = torch.tensor([row.tokens[0] for row in ask(group, plan(how=SpecFed(gamma=1, top_k=1.0)), request).rows])
    counts = torch.bincount(first, minlength=640)
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
    request = replace(REQUEST, generation=Generation(max_tokens=12, temperature=temperature))
    found = ask(group, plan(how=settings), request).speculation
    assert found is not None and found.measured == found.positions > 20 and found.drafts_measured > 10
    assert found.delta_excess < 1e-5 and found.gap_excess < 1e-5
    assert found.delta <= found.delta_bound + found.rounding + 1e-5 and found.gap > 0
    assert found.gap <= found.gap_bound + found.rounding and found.gap_bound < found.delta_bound / 2
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
