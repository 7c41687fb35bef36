"""Rotary embeddings: keys moved to another place are those of an LLM that has read the text there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import CASES, random_model

from fedray.llm.cache import layers_of
from fedray.llm.decoding import ATTENTION, empty_context, extend
from fedray.llm.rotary import rotate, unrotate

IDS = torch.tensor([list(range(2, 14)), list(range(30, 42))])
YARN = {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}


@torch.no_grad()
def keys_at(model: Any, first: int) -> tuple[torch.Tensor, ...]:
    """The keys of IDS, read from position `first` on."""
    context = empty_context(2, model.device)
    extend(model, context, IDS, positions_BQ=(torch.arange(12) + first).expand(2, -1))
    return tuple(key for key, _ in layers_of(context.cache))


@pytest.mark.parametrize("case", [*CASES, "yarn"])
def test_keys_are_moved_exactly(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "yarn", {"model_type": "llama", **YARN})
    model = random_model(case)
    model.set_attn_implementation(ATTENTION)
    here, there = keys_at(model, 3), keys_at(model, 20)
    assert not torch.allclose(here[0], there[0], atol=1e-2)
    bare = unrotate(model, here, (torch.arange(12) + 3).expand(2, -1))
    for moved, key in zip(rotate(model, bare, (torch.arange(12) + 20).expand(2, -1)), there, strict=True):
        assert torch.allclose(moved, key, atol=2e-5)
    before = (torch.arange(12) - 12).expand(2, -1)  # where a message in front stands
    for back, key in zip(unrotate(model, rotate(model, bare, before), before), bare, strict=True):
        assert torch.allclose(back, key, atol=2e-5)
