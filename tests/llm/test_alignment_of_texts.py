"""Where a text's tokens lie, and which of another tokenizer's they align with: any text, tokenizers of every kind."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tokenizers_made import KINDS, LOSSLESS, MARKS, made

from fedray.llm.alignment import align_tokens
from fedray.llm.model import HEAD, TAIL, Encoded, Span, encode
from fedray.llm.templates import template_of

EMOJI = ["😀", "👩‍👩‍👧", "🇩🇪", "✅", "👍🏽", "❤️"]
PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(EMOJI),
    st.text(alphabet="人工智能世界问题日本語한국어", min_size=1, max_size=6),
    st.integers(0, 10**12).map(str),
    st.sampled_from([" " * 9, "\n\n\n", "\t\t ", " ", " ", "　"]),
    st.sampled_from(["naïve café", "naïve", "it's", "what is the color", "3.14", *MARKS]),
)
TEXTS = st.lists(PARTS, min_size=1, max_size=8).map("".join).filter(lambda text: bool(text.strip()))
# Each text is read by tokenizers of all kinds in one test: to make texts takes longer than to read them.
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def around(tokenizer: Any, text: str = "what it is") -> list[str]:
    """What stands before and behind a text."""
    return template_of(tokenizer).around((text,))


def read(kind: str, text: str) -> Encoded:
    tokenizer = made(kind)
    return encode(tokenizer, around(tokenizer, text), text)


def overlap(a: Span, b: Span) -> int:
    return min(a[1], b[1]) - max(a[0], b[0])


@many
@given(text=TEXTS)
def test_every_token_has_its_place(text: str) -> None:
    """Template, text, template; places in order and inside the text; nothing but blanks without a token."""
    for kind in KINDS:
        note(kind)
        content, encoded = text.strip(), read(kind, text)
        assert len(encoded.ids) == len(encoded.spans)
        roles = ["head" if s[0] == HEAD else "tail" if s[0] == TAIL else "text" for s in encoded.spans]
        assert roles == sorted(roles, key=["head", "text", "tail"].index)
        places = [span for span in encoded.spans if span[0] >= 0]
        assert places and all(0 <= a <= b <= len(content) for a, b in places)
        assert places == sorted(places)
        covered = {i for a, b in places for i in range(a, b)}
        assert all(content[i].isspace() or i in covered for i in range(len(content)) if kind in LOSSLESS)
        assert [span[1] for span in encoded.spans if span[0] == TAIL] == list(range(roles.count("tail")))[::-1]


@many
@given(text=TEXTS)
def test_the_users_text_arrives_as_it_is(text: str) -> None:
    for kind in LOSSLESS:
        note(kind)
        tokenizer = made(kind)
        before, after = around(tokenizer, text)
        said = tokenizer.decode(read(kind, text).ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert said == before + text.strip() + after


@many
@given(text=TEXTS)
def test_alignment(text: str) -> None:
    """Every token of the text reads the token it shares most of the text with, in order; none reads the template."""
    for sender, receiver in product(KINDS, ("qwen3", "gemma", "unigram")):
        note(f"{sender} -> {receiver}")
        sent, own = read(sender, text).spans, read(receiver, text).spans
        aligned = align_tokens(sent, own)
        assert len(aligned) == len(own)
        previous = (0, 0)
        for span, index in zip(own, aligned, strict=True):
            if span[0] == HEAD:
                assert index == -1
            elif span[0] == TAIL:
                assert index == -1 or sent[index] == span
            else:
                best = max((overlap(span, other) for other in sent if other[0] >= 0), default=0)
                assert (index == -1) == (best <= 0)
                if index >= 0:
                    assert sent[index][0] >= 0 and overlap(span, sent[index]) == best
                    assert sent[index] >= previous  # pieces of one character share their place
                    previous = sent[index]


@many
@given(text=TEXTS)
def test_two_llms_with_one_tokenizer_read_each_other_token_by_token(text: str) -> None:
    for kind in KINDS:
        note(kind)
        spans = read(kind, text).spans
        wanted = [-1 if span[0] == HEAD or (span[0] >= 0 and span[0] == span[1]) else i for i, span in enumerate(spans)]
        assert align_tokens(spans, spans) == wanted


# -- templates ----------------------------------------------------------------------------------------------------


def test_qwen3_does_not_think() -> None:
    before, after = around(made("qwen3"))
    assert before == "<|im_start|>user\n" and after == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_each_family_speaks_its_own_template() -> None:
    assert around(made("qwen2"))[0].startswith("<|im_start|>system\n")
    assert around(made("gemma")) == ["<s><|im_start|>user\n", "<|im_end|>\n<|im_start|>model\n"]
    assert around(made("mistral")) == ["<s>[INST] ", "[/INST]"]


def test_llamas_template_does_not_change_overnight() -> None:
    assert "Today Date: 26 Jul 2024" in around(made("llama"))[0]


def test_a_base_model_gets_the_tokens_its_texts_begin_with() -> None:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    assert around(made("gpt2")) == ["", ""]
    backend = type(made("gpt2").backend_tokenizer).from_str(made("gpt2").backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", backend.token_to_id("<s>"))])
    base = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert around(base) == ["<s>", ""]
    encoded = encode(base, around(base, "what is it?"), "what is it?")
    assert encoded.ids[0] == backend.token_to_id("<s>") and encoded.ids.count(encoded.ids[0]) == 1


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0].content }} {{ messages[0].content }}", "holds the user's text 2 times"),
        ("hello", "holds the user's text 0 times"),
        ("{{ raise_exception('a system turn is needed') }}", "a system turn is needed"),
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(template: str, says: str) -> None:
    from copy import copy

    from fedray.types import FedrayError

    broken = copy(made("gpt2"))
    broken.chat_template = template
    with pytest.raises(FedrayError, match=says):
        template_of(broken)
