"""Translators of LLMs of real size: a linear map in closed form, as many slots as the receiver has tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import random_llm

from fedray.data.overlap import KeptWords
from fedray.data.rows import TrainingTalk
from fedray.errors import FedrayError
from fedray.fusion import combine, draft, regression
from fedray.fusion.draft import DraftFuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm import decoding
from fedray.training import dictation
from fedray.training.conversations import LabelledPrompt
from fedray.training.fuser_trainer import FuserTraining, losses
from fedray.training.recipe import FuserRecipe
from fedray.training.text_pair import TextPair
from fedray.types import KVSpec

SENDER, RECEIVER = "llama-1b", "qwen3-0.6b"
ONE, TWO = KVSpec(3, 1, 4), KVSpec(2, 1, 4)
RECIPE = FuserRecipe("draft", hidden=64, steps=0, layers="all")


def translator(slots: int = 2, hidden: int = 16) -> DraftFuser:
    how = {"layer_alignment": "all", "rotary": "removed", "tokens": "draft", "slots": slots}
    return DraftFuser(FuserConfig("draft", "concat", ONE, TWO, hidden=hidden, **how))


def texts(count: int) -> list[LabelledPrompt]:
    words = sorted({word for text in dictation.PHRASINGS for word in text.split() if word.isalpha()})
    said = [f"{words[i % len(words)]} {words[i * 7 % len(words)]}" for i in range(count)]
    return [LabelledPrompt("what is the color of the bird dika?", text) for text in dict.fromkeys(said)]


@torch.no_grad()
def test_a_linear_map_is_found_and_so_is_how_many_slots_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "SPREAD", 1.0)
    torch.manual_seed(0)
    fuser = translator()
    inputs_MI = torch.randn(4000, len(fuser.shift)) * 3 + 1
    outputs = TWO.layers * 2 * TWO.kv_heads * TWO.head_dim
    maps = [torch.randn(len(fuser.shift), 6) @ torch.randn(6, outputs) for _ in range(2)]
    needed_M = 1 + (inputs_MI[:, 0] > 1).long()
    held = torch.cat([inputs_MI @ of + 5 for of in maps]).view(8000, TWO.layers, -1)
    second_M = torch.where(needed_M == 2, torch.arange(4000) + 4000, -1)
    fuser.fit(inputs_MI, held, torch.stack([torch.arange(4000), second_M], dim=1))
    made_MKLF, silent_MK = fuser.translated(inputs_MI), fuser.silent(inputs_MI)
    assert float((made_MKLF[:, 0] - held[:4000]).square().mean() / held[:4000].var()) < 0.02
    both = needed_M == 2
    assert float((made_MKLF[both, 1] - held[4000:][both]).square().mean() / held.var()) < 0.05
    assert float((silent_MK[:, 1] == (needed_M == 1)).float().mean()) > 0.85 and not silent_MK[:, 0].any()


def test_a_rank_that_is_too_low_loses_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs_MI = torch.randn(2000, 12)
    strong, weak = torch.randn(12, 1) @ torch.randn(1, 20) * 5, torch.randn(12, 1) @ torch.randn(1, 20)
    held_out_M = torch.arange(2000) % 10 == 0
    fit = regression.ridge(inputs_MI, inputs_MI @ (strong + weak), held_out_M)
    (down_IR, up_RO), whole = regression.low_rank([fit], 1), fit.weight_IO * fit.spread_O
    lost = (inputs_MI @ (whole - down_IR @ up_RO * fit.spread_O)).square().mean()
    assert float(lost / (inputs_MI @ whole).square().mean()) < 0.15


def test_slots_that_hold_nothing_are_no_place() -> None:
    fuser, batch, tokens = translator(), 2, 3
    torch.nn.init.zeros_(fuser.needed.weight)  # pyright: ignore[reportOptionalMemberAccess]
    fuser.needed.bias.data = torch.tensor([0.0, 9.0, 0.0])  # pyright: ignore[reportOptionalMemberAccess]
    layers = tuple(torch.randn(batch, 1, tokens, 4) for _ in range(ONE.layers))
    positions = torch.arange(tokens).expand(batch, -1)
    cache = combine.KVCache(ONE, layers, layers, torch.tensor([3, 2]), positions)
    own = combine.KVCache(
        TWO, *((torch.zeros(batch, 1, 1, 4),) * 2,) * 2, torch.tensor([1, 1]), torch.zeros(batch, 1).long()
    )
    part = combine.Part("a", fuser, cache, torch.ones(batch))
    (message,) = combine.project(own, [part])
    assert message.seen_BT.tolist() == [[True, False] * 3, [True, False, True, False, False, False]]
    assert message.size_B.tolist() == [3, 2]
    assert message.places_BT[0, ::2].tolist() == [0, 1, 2]


def test_between_twins_words_are_told_and_slots_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "SPREAD", 1.0)
    monkeypatch.setattr(draft, "MOST", 1.0)  # what is held out of so few words says little of their spread
    llm = random_llm(RECEIVER)
    pair = TextPair(llm, llm, texts(300), RECIPE)
    assert pair.slots == 1
    fuser = FuserTraining(pair, RECIPE).run()
    loss_M, right_M = losses(pair, fuser)
    assert float(loss_M.mean()) < 0.9 and float(right_M.mean()) > 0.3
    one, two = random_llm(SENDER), random_llm(RECEIVER)
    finer = TextPair(two, one, texts(300), RECIPE)
    assert finer.slots > 1 and bool((finer._index_MK < 0).any()), "a token of the coarser one needs fewer slots"
    there = finer._index_MK[finer._index_MK >= 0]
    assert len(there.unique()) == len(there), "none stands twice"


def test_what_stands_before_many_texts_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = random_llm(RECEIVER)
    read = decoding.prefill
    rows: list[int] = []

    def counted(model: object, ids: list[list[int]], *rest: object) -> object:
        rows.append(len(ids))
        return read(model, ids, *rest)  # pyright: ignore[reportArgumentType]

    alone = TextPair(llm, llm, texts(4), RECIPE)
    monkeypatch.setattr(decoding, "prefill", counted)
    many = TextPair(llm, llm, texts(200), RECIPE)
    assert set(rows) == {1}
    first = alone._inputs_MI.float()
    distances = torch.cdist(first, many._inputs_MI.float()).amin(1)
    assert float(distances.max()) < 0.05


def test_texts_are_words_of_both_and_never_kept_ones(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("color\nthe Night\n")
    kept = KeptWords(tmp_path / "words.txt")
    one, two = random_llm(SENDER), random_llm(RECEIVER)
    talks = [LabelledPrompt("q", "huge trees", documents=(("sender", "the birdie sings of colors at nights"),))]
    train, check = dictation.of_vocabularies(one, two, talks, 0, kept)
    said = {talk.answer for talk in (*train, *check)}
    assert "huge trees" in said and any("birdie" in text for text in said)
    assert not any("color" in text or "night" in text.lower() for text in said)
    assert not {talk.answer for talk in train} & {talk.answer for talk in check}
    spans = "huge trees birdie sings"
    words = {talk.answer for talk in train if talk.group == dictation.WORD and talk.answer not in spans}
    vocabularies = [" ".join(llm.decode([i]) for i in range(600)) for llm in (one, two)]
    assert words and all(any(f" {word}" in known for known in vocabularies) for word in words)


def test_kept_words_and_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Croatia\nN'Djamena\ntea\n")
    kept = KeptWords(path)
    for text in ("a Croatian song", "CROATIA!", "to ndjam? no: N'Djamena"):
        assert kept.are_in(text), text
    for text in ("crow", "tea", "", "Croa"):
        assert not kept.are_in(text), text
    assert kept.are_read(TrainingTalk(("q",), "a", documents=(("sender", "of Croatia"),)))
    assert not KeptWords(None).are_in("Croatia")
    with pytest.raises(FedrayError, match=r"data.without=.*none.txt cannot be read"):
        KeptWords(tmp_path / "none.txt")
