"""The training loop, on random-weight LLMs: it can stop anywhere, and how a batch is read changes nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny import QUESTIONS, random_llm, world

from fedray.fusion.build import build_fuser
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.mlp import MLPFuser
from fedray.member.member import Member
from fedray.training.checkpoint import Checkpoint
from fedray.training.conversations import LabelledPrompt, conversations
from fedray.training.fuser_trainer import FuserTraining, losses
from fedray.training.pair import Pair, draws
from fedray.training.recipe import FuserRecipe, Schedule, schedule
from fedray.training.worker_group import WorkerGroup
from fedray.types import FedrayError
from fedray.wire.payload import unpack

SENDER, RECEIVER = "llama-1b", "qwen3-0.6b"
RECIPE = FuserRecipe(hidden=16, steps=6, batch_size=8, validate_every=2)
TALKS = conversations(world(), "train")[:600:15]  # of all domains


class Stop(BaseException):
    """What a kill is to the loop: nothing runs after it."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(random_llm(SENDER), random_llm(RECEIVER), TALKS)


@pytest.fixture(scope="module")
def check() -> Pair:
    return Pair(random_llm(SENDER), random_llm(RECEIVER), conversations(world(), "validation")[::60])


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Bits may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(training: FuserTraining) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.fuser.state_dict().items()}


def equal(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def distance(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    return max(float((tensor - two[name]).abs().max()) for name, tensor in one.items())


def trained(pair: Pair, recipe: FuserRecipe, check: Pair | None = None) -> FuserTraining:
    training = FuserTraining(pair, recipe, check=check)
    training.run()
    return training


def killed(pair: Pair, recipe: FuserRecipe, check: Pair, checkpoint: Checkpoint) -> tuple[FuserTraining, list[int]]:
    """A training that is killed at every second step, one after the last it has saved; and where each start began."""
    begun: list[int] = []

    def stop(step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step == begun[-1] + 2:
            raise Stop

    while True:
        training = FuserTraining(pair, recipe, check=check, checkpoint=checkpoint, save_every=1)
        begun.append(training.resumed_at)
        try:
            training.run(stop)
            return training, begun
        except Stop:
            continue


@pytest.mark.parametrize(("kind", "operator"), [("mlp", "concat"), ("mlp", "mix"), ("c2c", "mix")])
@pytest.mark.parametrize("how", ["onecycle", "linear"])
def test_a_training_that_is_killed_at_every_step_ends_with_the_same_weights(
    tmp_path: Path, pair: Pair, check: Pair, kind: str, operator: str, how: Schedule
) -> None:
    """c2c draws dropout and gates: a resumed step draws what it would have drawn."""
    recipe = replace(RECIPE, kind=kind, operator=operator, schedule=how)
    whole = trained(pair, recipe, check)
    checkpoint = Checkpoint(tmp_path, "a fuser", {}, {})
    training, begun = killed(pair, recipe, check, checkpoint)
    assert begun == [0, 1, 2, 3, 4, 5]
    assert equal(weights(whole), weights(training)) and whole.means == training.means
    assert whole.validations == training.validations
    again = FuserTraining(pair, recipe, check=check, checkpoint=checkpoint)
    assert again.finished and equal(weights(whole), weights(again)), "a finished training is not done twice"
    again.run()
    assert equal(weights(whole), weights(again))
    assert not equal(weights(whole), weights(trained(pair, replace(recipe, seed=1))))


def test_a_training_that_diverges_is_named_and_keeps_no_wreck(tmp_path: Path, pair: Pair) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, schedule="constant", warmup=0.0)
    checkpoint = Checkpoint(tmp_path, "a fuser", {}, {})
    with pytest.raises(FedrayError, match=r"no number any more after step \d.*lower learning_rate=1e\+30"):
        FuserTraining(pair, recipe, checkpoint=checkpoint, save_every=1).run()
    left = checkpoint.load()
    assert left is not None and not left.values["finished"]


def test_only_the_fuser_learns(pair: Pair) -> None:
    llms = (pair.sender.model, pair.receiver.model)
    before = [p.clone() for llm in llms for p in llm.parameters()]
    fresh = FuserTraining(pair, RECIPE)
    begun = weights(fresh)
    fresh.run()
    assert distance(begun, weights(fresh)) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, (p for m in llms for p in m.parameters()), strict=True))


def test_a_batch_read_in_parts_is_the_same_step(pair: Pair) -> None:
    whole, parts = trained(pair, RECIPE), trained(pair, replace(RECIPE, accumulation=4))
    assert distance(weights(whole), weights(parts)) < 1e-3
    assert parts.means["loss"] == pytest.approx(whole.means["loss"], abs=1e-4)
    assert distance(weights(whole), weights(trained(pair, replace(RECIPE, batch_size=2)))) > 1e-3


def test_caches_read_batch_by_batch_are_those_kept_in_memory(pair: Pair) -> None:
    streamed = Pair(pair.sender, pair.receiver, TALKS, memory_bytes=0)
    assert pair.in_memory and not streamed.in_memory
    size = pair._size()
    assert Pair(pair.sender, pair.receiver, TALKS, memory_bytes=size).in_memory
    one, two = trained(pair, RECIPE), trained(streamed, RECIPE)
    assert distance(weights(one), weights(two)) < 1e-3 and one.means["loss"] == pytest.approx(
        two.means["loss"], abs=1e-4
    )


def test_bfloat16_is_of_the_forward_pass_alone(pair: Pair) -> None:
    exact, rounded = trained(pair, RECIPE), trained(pair, replace(RECIPE, precision="bfloat16"))
    assert {tensor.dtype for tensor in weights(rounded).values()} == {torch.float32}
    assert distance(weights(exact), weights(rounded)) > 0
    assert rounded.means["loss"] == pytest.approx(exact.means["loss"], rel=0.02)


def test_training_stops_early_and_takes_the_best(tmp_path: Path, pair: Pair, check: Pair) -> None:
    recipe = replace(RECIPE, steps=40, learning_rate=0.5, schedule="constant", warmup=0.0, patience=2)
    training = FuserTraining(pair, recipe, check=check)
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int, of: int, figures: Mapping[str, float]) -> None:
        seen[step] = weights(training)

    training.run(keep)
    losses_seen = [loss for _, loss in training.validations]
    best = losses_seen.index(min(losses_seen))
    assert training.step < recipe.steps and len(losses_seen) - 1 - best == recipe.patience
    assert equal(weights(training), seen[training.validations[best][0]])
    assert not equal(weights(training), seen[training.step])
    resumed, begun = killed(pair, recipe, check, Checkpoint(tmp_path, "a fuser", {}, {}))
    assert len(begun) == training.step and equal(weights(resumed), weights(training))


@pytest.mark.parametrize("how", ["onecycle", "linear", "constant"])
def test_the_rate_rises_and_falls(how: Schedule) -> None:
    recipe = replace(RECIPE, steps=20, schedule=how, warmup=0.25, learning_rate=1.0)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 1.0)
    rates, now = [], schedule(optimizer, recipe, 0)
    for _ in range(recipe.steps):
        rates.append(now.get_last_lr()[0])
        optimizer.step()
        now.step()
    top = rates.index(max(rates))
    assert 3 <= top <= 5 and max(rates) == pytest.approx(1.0) and rates[0] < 0.5
    assert rates[:top] == sorted(rates[:top])
    assert (set(rates[top:]) == {1.0}) if how == "constant" else (rates[top:] == sorted(rates[top:], reverse=True))
    assert how == "constant" or rates[-1] < 0.1


def test_workers_share_every_batch_and_a_later_start_draws_the_rest() -> None:
    class One(WorkerGroup):
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    lengths = random.Random(0).choices(range(5, 50), k=100)

    def drawn(group: WorkerGroup, first: int = 0, parts: int = 2) -> list[list[int]]:
        return list(draws(lengths, 16, 5, random.Random(7), first=first, parts=parts, group=group))

    whole = drawn(WorkerGroup(), parts=1)
    shares = [drawn(One(rank)) for rank in (0, 1)]
    for step, rows in enumerate(whole):
        parts = [share[part] for part in (2 * step, 2 * step + 1) for share in shares]
        assert sorted(rows) == sorted(row for part in parts for row in part) and {len(p) for p in parts} == {4}
        spans = [(min(lengths[row] for row in part), max(lengths[row] for row in part)) for part in parts]
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), "of similar lengths"
    assert drawn(One(1), first=3) == shares[1][6:] and drawn(WorkerGroup(), first=2, parts=1) == whole[2:]


def test_in_epochs_every_row_comes_once_before_any_comes_again() -> None:
    def drawn(first: int = 0) -> list[list[int]]:
        rng = random.Random(7)
        return list(draws([1] * 30, 8, 15, rng, first=first, parts=1, group=WorkerGroup(), sampling="epochs"))

    rows = [row for batch in drawn() for row in batch]
    assert all(len(set(batch)) == 8 for batch in drawn())
    for epoch in range(4):
        seen = rows[30 * epoch : 30 * (epoch + 1)]
        assert sorted(seen) == list(range(30)) and seen != list(range(30))
    assert drawn(first=9) == drawn()[9:]


def test_without_a_sender_all_questions_look_alike(pair: Pair) -> None:
    """control=single: what the fuser sees in place of the sender's cache says nothing about the question."""
    blind = Pair(pair.sender, pair.receiver, TALKS, blind=True)
    batch = blind.rows(range(8))
    seen, cache = pair.sent(batch).cache, blind.sent(batch).cache
    assert torch.equal(cache.lengths, seen.lengths)
    tokens = [tensor for side in (cache.keys, cache.values) for tensor in side]
    assert all(torch.equal(t, t[:1, :, :1].expand_as(t)) for t in tokens)
    assert not torch.equal(seen.keys[0], seen.keys[0][:1, :, :1].expand_as(seen.keys[0]))


@pytest.mark.parametrize(("operator", "shape"), [("concat", (1, 6, 2)), ("mix", (2, 6, 2))])
def test_openness_is_what_the_fuser_lets_in(pair: Pair, operator: str, shape: tuple[int, ...]) -> None:
    fuser = FuserTraining(pair, replace(RECIPE, operator=operator)).fuser.eval()
    batch = pair.rows(range(8))
    with torch.no_grad():
        between = pair.openness(fuser, batch)
        assert between.shape == shape and float(between.min()) > 0 and float(between.max()) < 1
        assert isinstance(fuser, MLPFuser)
        for bias, wanted in ((-1e3, 0.0), (1e3, 1.0)):
            fuser.weight.bias.fill_(bias)
            torch.testing.assert_close(pair.openness(fuser, batch), torch.full(shape, wanted))


def test_openness_of_c2c_is_its_gates_times_its_weights(pair: Pair) -> None:
    fuser = FuserTraining(pair, replace(RECIPE, kind="c2c", operator="mix")).fuser.eval()
    batch = pair.rows(range(8))
    assert isinstance(fuser, C2CFuser)
    with torch.no_grad():
        assert float(pair.openness(fuser, batch).abs().max()) == 0, "fresh gates are shut"
        fuser.projectors[2].value_gate_logit.fill_(1.0)  # pyright: ignore
        open_RLN = pair.openness(fuser, batch)
    assert [(r, t) for r in range(2) for t in range(6) if float(open_RLN[r, t].min()) > 0] == [(1, 2)]
    assert float(open_RLN.max()) < 1


def test_losses_are_of_every_question(pair: Pair) -> None:
    fuser = FuserTraining(pair, RECIPE).fuser.eval()
    loss_Q, right_Q = losses(pair, fuser)
    alone_Q, _ = losses(pair, None)
    assert loss_Q.shape == right_Q.shape == (len(TALKS),) and not torch.allclose(loss_Q, alone_Q)
    (first, _), (last, _) = (losses(Pair(pair.sender, pair.receiver, [TALKS[i]]), fuser) for i in (0, -1))
    torch.testing.assert_close(loss_Q[[0, -1]], torch.cat([first, last]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("tokens", ["prompt", "text"])
def test_training_reads_what_a_sender_sends(tokens: str) -> None:
    """All of the prompt, or the user's text; keys without the sender's rotation."""
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    asked = [LabelledPrompt(question, "red") for question in QUESTIONS]
    pair = Pair(sender, receiver, asked)
    fuser = build_fuser(pair.config(FuserRecipe(hidden=16, tokens=tokens)))
    assert (fuser.config.rotary, fuser.config.tokens) == ("removed", tokens)
    read = pair.sent(pair.rows(range(len(pair)))).part(fuser).cache
    member, rows = Member(SENDER, llm=sender), tuple(range(len(QUESTIONS)))
    _, payload = member.share("sent", rows, prompts=QUESTIONS, tokens=tokens, unrotated=True)
    sent = unpack(payload).cache
    assert read.lengths.tolist() == sent.lengths.tolist() and read.positions[0, :3].tolist() == [0, 1, 2]
    for b, length in enumerate(sent.lengths.tolist()):
        for one, other in zip((*read.keys, *read.values), (*sent.keys, *sent.values), strict=True):
            torch.testing.assert_close(one[b, :, :length], other[b, :, :length], atol=1e-5, rtol=0)
    whole = [len(sender.encode(question).ids) for question in QUESTIONS]
    assert (sent.lengths.tolist() == whole) is (tokens == "prompt")
