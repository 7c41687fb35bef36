"""The gate's training, on random-weight LLMs: measured in shares, resumed anywhere, and it learns whom to trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny import random_fuser, random_llm, world

from fedray.fusion.gating import GateNetwork
from fedray.training.checkpoint import Checkpoint
from fedray.training.conversations import conversations
from fedray.training.data import prefill
from fedray.training.gate_trainer import GateRecipe, GateTraining, measure_gains, train_gate, validate_gate, weigh
from fedray.training.worker_group import WorkerGroup

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
RECIPE = GateRecipe(steps=5, batch_size=16, layers=(0, 2), starts=2)
SETS = {"train": conversations(world(), "train")[::65], "validation": conversations(world(), "validation")[::40]}
FUSERS = {name: random_fuser(random_llm(name), random_llm(RECEIVER), "concat") for name in SENDERS}


class Stop(BaseException):
    """What a kill is to the loop: nothing runs after it."""


def training(checkpoint: Checkpoint | None = None) -> GateTraining:
    llms = {name: random_llm(name) for name in SENDERS}
    return GateTraining(random_llm(RECEIVER), llms, FUSERS, SETS, RECIPE, checkpoint=checkpoint)


def test_how_many_are_read_at_a_time_changes_nothing() -> None:
    few = GateTraining(
        random_llm(RECEIVER), {name: random_llm(name) for name in SENDERS}, FUSERS, SETS, RECIPE, at_once=16
    )
    one, two = training(), few
    gates = [one.run(), two.run()]
    assert one.worth == pytest.approx(two.worth, abs=1e-4)
    for name, tensor in gates[0].state_dict().items():
        assert torch.allclose(tensor, gates[1].state_dict()[name], atol=1e-3)


def equal(one: GateNetwork, two: GateNetwork) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_training_that_is_killed_in_every_phase_ends_with_the_same_gate(tmp_path: Path) -> None:
    whole = training()
    gate = whole.run()
    checkpoint = Checkpoint(tmp_path, "a gate", {}, {})
    seen: list[tuple[str, int]] = []

    def stop(phase: str, step: int, of: int, figures: Mapping[str, float]) -> None:
        assert phase != "training" or figures.keys() == {"gain", *(f"weight/{name}" for name in SENDERS)}
        if (phase, step) not in seen and (phase != "training" or step % RECIPE.steps == 2):
            seen.append((phase, step))
            raise Stop

    resumed_at = []
    while True:
        again = training(checkpoint)
        resumed_at.append(again.resumed_at)
        try:
            found = again.run(stop)
            break
        except Stop:
            continue
    assert [phase for phase, _ in seen] == ["measuring train", "measuring validation", *["training"] * 4]
    assert resumed_at == [0, 0, 0, 0, 1, 2, 3] and len(whole.trials) == 4
    assert equal(gate, found) and whole.worth == again.worth and gate.config == found.config


def test_workers_measure_a_share_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.training.gate_trainer.BATCH", 16)

    class One(WorkerGroup):
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    prompts = [talk.prompt for talk in SETS["train"]]
    own = prefill(random_llm(RECEIVER), prompts)
    read = {name: prefill(random_llm(name), prompts) for name in SENDERS}
    whole, one, two = (
        measure_gains(own, read, FUSERS, SETS["train"], "concat", group) for group in (WorkerGroup(), One(0), One(1))
    )
    assert bool((one != 0).any()) and bool((two != 0).any()) and not bool(((one != 0) & (two != 0)).any())
    assert torch.equal(whole, one + two)


def test_it_opens_for_who_is_worth_it() -> None:
    """Sender 0 helps with colors and harms elsewhere; nobody needs sender 1."""
    talks = SETS["train"]
    own = prefill(random_llm(RECEIVER), [talk.prompt for talk in talks], 0)
    color_Q = torch.tensor(["color" in talk.prompt for talk in talks])
    gains = torch.stack([torch.where(color_Q, 0.9, -0.3), torch.full((len(talks),), -0.2)], dim=1)
    gate = train_gate(own, SENDERS, gains, GateRecipe(steps=300, batch_size=64), 0)
    weights_QS = weigh(gate, own)
    assert float(weights_QS[color_Q, 0].mean()) > 0.9 and float(weights_QS[~color_Q, 0].mean()) < 0.1
    assert float(weights_QS[:, 1].max()) < 0.2
    best = float((gains - 0.05).clamp(min=0).sum(1).mean())
    assert validate_gate(gate, own, gains, 0.05) == pytest.approx(best, abs=0.05)


def test_mean_weights_are_per_group_and_sender() -> None:
    done = training()
    done.run()
    trust = done.mean_weights()
    assert set(trust) == {talk.group for talk in SETS["validation"]}
    assert all(tuple(row) == SENDERS and all(0 < w < 1 for w in row.values()) for row in trust.values())
