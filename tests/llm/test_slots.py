"""A cache with room to grow holds what transformers' own holds, and does not touch what it was made of."""

from __future__ import annotations

import pytest
import torch
from tiny import random_llm
from transformers import DynamicCache

from fedray.llm.decoding import Context, prefill, step
from fedray.llm.preallocated_cache import slots

RECEIVER = "qwen3-0.6b"


@pytest.mark.parametrize("room", [0, 1, 64])
@torch.no_grad()
def test_tokens_read_one_by_one_give_the_same_logits(room: int) -> None:
    llm = random_llm(RECEIVER)
    cache, _ = prefill(llm.model, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 3]], llm.pad_id)
    before = [key.clone() for key in cache.keys]

    def context(grown: DynamicCache) -> Context:
        return Context(grown, cache.valid_BT(), cache.lengths.clone())

    pairs = list(zip(cache.keys, cache.values, strict=True))
    half = cache.tokens // 2
    pieces = [tuple([side[:, :, :half], side[:, :, half:]] for side in pair) for pair in pairs]
    ours, theirs = context(slots(pieces, room)), context(DynamicCache(pairs))  # pyright: ignore[reportArgumentType]
    for token in range(10, 14):
        ids = torch.tensor([[token], [token + 1]])
        got, want = step(llm.model, ours, ids), step(llm.model, theirs, ids)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    for one, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=0)
    assert all(map(torch.equal, cache.keys, before))


@torch.no_grad()
def test_a_token_is_written_where_it_stays() -> None:
    llm = random_llm(RECEIVER)
    cache, _ = prefill(llm.model, [[1, 2, 3]], llm.pad_id)
    made = slots([([k], [v]) for k, v in zip(cache.keys, cache.values, strict=True)], room=4)
    context = Context(made, cache.valid_BT(), cache.lengths.clone())
    places = [layer.keys.data_ptr() for layer in made.layers]  # pyright: ignore[reportOptionalMemberAccess]
    for _ in range(4):
        step(llm.model, context, torch.tensor([[5]]))
    assert [layer.keys.data_ptr() for layer in made.layers] == places  # pyright: ignore[reportOptionalMemberAccess]
    step(llm.model, context, torch.tensor([[5]]))
    assert made.get_seq_length() == 8 and made.layers[0].keys.data_ptr() != places[0]  # pyright: ignore
