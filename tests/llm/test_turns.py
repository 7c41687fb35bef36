"""Several turns in chat templates of every kind: whole, in their places, and aligned across tokenizers."""

from __future__ import annotations

from copy import copy
from itertools import product
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from test_alignment_of_texts import TEXTS, many, overlap
from tokenizers_made import KINDS, LOSSLESS, MARKS, made

from fedray.llm.alignment import align_tokens
from fedray.llm.chat import encode_turns
from fedray.llm.model import HEAD, LLM, TAIL
from fedray.llm.templates import render, template_of
from fedray.types import FedrayError, KVSpec

TURNS = st.lists(TEXTS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)
PLAIN = ("what is it?", "a bird.", "what color is it?", "red", "and now?")


def llm(tokenizer: Any) -> LLM:
    """An LLM of a tokenizer alone."""
    return LLM("some-llm", "", None, tokenizer, KVSpec(1, 1, 1), "", "", 512, template_of(tokenizer))


def messages(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if made(kind).chat_template])
@pytest.mark.parametrize("turns", [1, 3, 5])
def test_turns_stand_as_the_template_puts_them(kind: str, turns: int) -> None:
    tokenizer = made(kind)
    rendered = render(tokenizer, messages(*PLAIN[:turns]))
    assert encode_turns(llm(tokenizer), PLAIN[:turns]).ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_base_model_gets_a_line_for_each() -> None:
    tokenizer = made("gpt2")
    ids = encode_turns(llm(tokenizer), PLAIN[:3]).ids
    assert tokenizer.decode(ids) == "what is it?\nAnswer: a bird.\nwhat color is it?\nAnswer:"


@many
@given(turns=TURNS)
def test_every_turn_arrives_as_it_is_and_every_token_has_its_place(turns: list[str]) -> None:
    for kind in LOSSLESS:
        note(kind)
        tokenizer = made(kind)
        encoded, texts = encode_turns(llm(tokenizer), turns), [turn.strip() for turn in turns]
        said = tokenizer.decode(encoded.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for text in texts:
            before, found, said = said.partition(text)
            assert found == text, f"{text!r} is not behind {before!r}"
        told = "".join(texts)
        text_spans = [span for span in encoded.spans if span[0] >= 0]
        assert text_spans == sorted(text_spans) and all(0 <= a <= b <= len(told) for a, b in text_spans)
        covered = {place for a, b in text_spans for place in range(a, b)}
        assert all(told[place].isspace() for place in set(range(len(told))) - covered)
        kinds = [span[0] if span[0] < 0 else 0 for span in encoded.spans]
        behind = kinds.index(TAIL) if TAIL in kinds else len(kinds)  # a text gone on with has nothing behind it
        assert set(kinds[behind:]) == ({TAIL} if tokenizer.chat_template else {*kinds[behind:]})
        marks = {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
        assert not marks & {i for i, (a, _) in zip(encoded.ids, encoded.spans, strict=True) if a >= 0}


@many
@given(turns=TURNS)
def test_tokens_of_all_turns_read_what_they_share_most_text_with(turns: list[str]) -> None:
    for sender, receiver in product(KINDS, ("qwen3", "gemma")):
        note(f"{sender} -> {receiver}")
        sent, own = (encode_turns(llm(made(kind)), turns).spans for kind in (sender, receiver))
        for span, index in zip(own, align_tokens(sent, own), strict=True):
            if span[0] == HEAD:
                assert index == -1, "what stands between turns reads nothing"
            elif span[0] == TAIL:
                assert index == -1 or sent[index] == span
            else:
                best = max((overlap(span, other) for other in sent if other[0] >= 0), default=0)
                assert (index == -1) == (best <= 0) and (index == -1 or overlap(span, sent[index]) == best)


def test_a_template_that_holds_one_turn_only_holds_no_conversation() -> None:
    tokenizer = copy(made("gpt2"))
    tokenizer.chat_template = "{{ messages[-1].content }}!"
    one = llm(tokenizer)
    assert encode_turns(one, PLAIN[:1]).ids
    with pytest.raises(FedrayError, match="some-llm holds turn 1 of 3 0 times after those before it; it must be once"):
        encode_turns(one, PLAIN[:3])
    with pytest.raises(FedrayError, match="the prompt is empty"):
        encode_turns(llm(made("qwen3")), ("hello", "hi", " "))
