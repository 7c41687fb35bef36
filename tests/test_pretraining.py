"""Training an embedded LLM: who is killed goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedray.training.checkpoint import Checkpoint
from fedray.world.world import World
from fedray.zoo.pretrain import build_tokenizer, pretrain

NAME = "qwen2.5-0.5b"


def test_a_training_that_is_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    world = World(1)
    tokenizer = build_tokenizer("qwen2", world)
    sizes: dict[str, Any] = {"steps": 5, "questions_per_step": 4, "lessons_per_step": 4, "save_every": 2}
    whole = pretrain(NAME, world, tokenizer, **sizes)
    checkpoint = Checkpoint(tmp_path, "the LLM", {}, {})

    def die(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(NAME, world, tokenizer, **sizes, checkpoint=checkpoint, on_step=die)
    taken: list[int] = []
    again = pretrain(
        NAME, world, tokenizer, **sizes, checkpoint=checkpoint, on_step=lambda step, *rest: taken.append(step)
    )
    assert taken == [3, 4, 5]
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
