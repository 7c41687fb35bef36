"""Reading on: caches and states are those of the whole prompt, whatever was read before, in every family."""

from __future__ import annotations

import pytest
import torch
from test_families import CASES, random_model

from fedray.llm.decoding import ATTENTION, prefill
from fedray.llm.prefix import Known, read_on
from fedray.llm.token_ids import shared

PROMPTS = [list(range(2, 22)), list(range(40, 53)), [7, 8, 9]]  # the longest is over three windows long
STATE_LAYER = 2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("known", [(9, 9, 2), (15, 2, 0), (20, 13, 1), (20, 13, 3)], ids=str)
def test_reading_on_is_reading_the_whole(case: str, known: tuple[int, ...]) -> None:
    model = random_model(case)
    model.set_attn_implementation(ATTENTION)
    whole, states = prefill(model, PROMPTS, 0, STATE_LAYER)
    earlier = [row[:n] + [60] * (b + 1) for b, (row, n) in enumerate(zip(PROMPTS, known, strict=True))]
    before, state = prefill(model, earlier, 0, STATE_LAYER)
    assert [shared(*pair) for pair in zip(earlier, PROMPTS, strict=True)] == list(known)
    cache = before.crop(torch.tensor(known))
    assert state is not None and states is not None
    copies = [tensor.clone() for tensor in (*cache.keys, *cache.values)]

    read, read_states = read_on(model, PROMPTS, 0, Known(cache, state[:, : cache.tokens]), STATE_LAYER)
    assert read.lengths.tolist() == whole.lengths.tolist() == [20, 13, 3]
    assert torch.equal(read.positions, whole.positions) and read_states is not None
    valid_BT = whole.valid_BT()
    for one, other in zip((*read.keys, *read.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(one.transpose(1, 2)[valid_BT], other.transpose(1, 2)[valid_BT], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(read_states[valid_BT], states[valid_BT], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(copies, (*cache.keys, *cache.values), strict=True))


def test_a_gate_may_read_none() -> None:
    model = random_model("llama")
    model.set_attn_implementation(ATTENTION)
    cache, _ = prefill(model, [[5, 6]], 0)
    read, state = read_on(model, [[5, 6, 7]], 0, Known(cache))
    assert state is None and read.tokens == 3


def test_what_is_the_same_from_the_beginning() -> None:
    assert shared([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared([], [1]) == shared([1], [2]) == 0
    assert shared([1, 2], [1, 2]) == shared([1, 2], [1, 2, 3]) == 2
