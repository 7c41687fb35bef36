"""Scores of choices: those of the whole text, in bounded memory, with nothing read twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import random_llm

from fedray.fusion.combine import concat
from fedray.llm import choices as choosing
from fedray.llm.choices import score
from fedray.llm.decoding import Context, prefill, step

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
CHOICES = {
    "letters": [[[20, 21, 22, n] for n in (30, 31, 32)]] * 3,
    "texts": [[[20], [21, 22, 23, 24], [25, 26]], [[30, 31], [32, 33], [34, 35]], [[40], [41], [42]]],
    "one begins another": [[[20, 21], [20, 21, 22], [20, 21, 22, 23]], [[7], [7, 8], [7, 9]], [[1, 2], [1, 2], [3, 4]]],
    "other beginnings": [[[20, 21, 22], [20, 21, 23]], [[30, 31], [40, 41]], [[50, 51, 52, 53], [50, 54, 55, 56]]],
    "one choice": [[[20, 21, 22]], [[30]], [[40, 41]]],
    "other numbers": [[[20, 21], [22]], [[30, 31], [30, 32], [33]], [[40]]],
}


def context() -> tuple[Any, Context, torch.Tensor]:
    """Prompts of three lengths, read but for their last tokens, as members do."""
    llm = random_llm("llama-1b")
    cache, _ = prefill(llm.model, PROMPTS, 0)
    read = concat(cache.crop(cache.lengths - 1), [])
    with torch.no_grad():
        return llm.model, read, step(llm.model, read, torch.tensor([[row[-1]] for row in PROMPTS]))


def whole(model: Any, prompt: list[int], ids: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        log_p = model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
    picked = [float(log_p[at, token]) for at, token in zip(places, ids, strict=True)]
    return sum(picked), all(int(log_p[at].argmax()) == token for at, token in zip(places, ids, strict=True))


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("name", CHOICES)
@torch.no_grad()
def test_scores_are_those_of_the_whole_text(name: str, tight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tight:
        monkeypatch.setattr(choosing, "COPIED", 1)
        monkeypatch.setattr(choosing, "LOGITS", 1)
    model, read, logits = context()
    for _ in range(2):  # the context stays as it is
        scores, greedy = score(model, read, logits, CHOICES[name], 0)
        for prompt, row, found, said in zip(PROMPTS, CHOICES[name], scores, greedy, strict=True):
            wanted = [whole(model, prompt, ids) for ids in row]
            assert found == pytest.approx([log_p for log_p, _ in wanted], abs=1e-4)
            assert said == [likeliest for _, likeliest in wanted]


@torch.no_grad()
def test_what_greedy_decoding_generates_is_known_as_such() -> None:
    model, read, logits = context()
    ends = []
    for prompt in PROMPTS:
        ids: list[int] = []
        for _ in range(4):
            ids.append(int(model(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
        ends.append([ids, [*ids[:3], (ids[3] + 1) % 100], [ids[0], (ids[1] + 1) % 100, 3, 4]])
    _, greedy = score(model, read, logits, ends, 0)
    assert greedy == [[True, False, False]] * 3


@torch.no_grad()
def test_what_choices_begin_with_is_read_once_and_their_last_tokens_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read, logits = context()
    tokens: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _module, _args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    positions: list[int] = []
    head = model.lm_head.register_forward_hook(
        lambda _module, args, _output: positions.append(args[0].shape[:-1].numel())
    )
    try:
        score(model, read, logits, CHOICES["letters"], 0)
        assert sum(tokens) == 3 * 3 and sum(positions) == 3 * 3
        tokens.clear()
        score(model, read, logits, CHOICES["other beginnings"], 0)
        assert sum(tokens) == 3 * 2 + 6 * 2 - 2 * 2  # beginnings of up to 2, and of 4 choices up to 2 more
        positions.clear()
        monkeypatch.setattr(choosing, "LOGITS", 4 * 2 * model.config.vocab_size)
        score(model, read, logits, CHOICES["texts"], 0)
        assert max(positions) == 2
    finally:
        hook.remove()
        head.remove()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@torch.no_grad()
def test_what_is_no_number_stays_none(wrong: float) -> None:
    model, read, logits = context()
    logits[1, 3] = wrong
    scores, _ = score(model, read, logits, CHOICES["texts"], 0)
    fine = [[all(map(lambda x: x == x, row))] for row in scores]
    assert fine == [[True], [False], [True]]
