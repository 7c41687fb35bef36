"""Layers and tokens of two LLMs that share neither depth nor tokenizer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_llm

from fedray.llm.alignment import align_layers, align_tokens
from fedray.llm.model import HEAD, TAIL


def test_layers_bottom_up_and_as_published():
    assert align_layers(8, 6) == [0, 1, 2, 3, 4, 5]
    assert align_layers(4, 6) == [0, 1, 2, 3, 3, 3]
    assert align_layers(8, 6, "last_aligned") == [2, 3, 4, 5, 6, 7]
    assert align_layers(3, 4, "last_aligned") == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="bottom_up"):
        align_layers(3, 4, "sideways")


def test_tokens_align_by_largest_overlap_the_later_one_on_a_tie():
    sender = [(HEAD, 0), (0, 4), (4, 8), (8, 10), (TAIL, 1), (TAIL, 0)]
    receiver = [(HEAD, 0), (HEAD, 1), (0, 2), (2, 6), (6, 10), (TAIL, 2), (TAIL, 1), (TAIL, 0)]
    assert align_tokens(sender, receiver) == [-1, -1, 1, 2, 3, -1, 4, 5]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40).filter(lambda t: t.strip()))
def test_any_text_aligns_between_the_two_tokenizers(text):
    """Spans cover the text, and every receiver token finds a sender token that overlaps it."""
    sender, receiver = (random_llm(name).encode(text) for name in ("llama-1b", "qwen3-0.6b"))
    length = len(text.strip())
    for encoded in (sender, receiver):
        inside = [s for s in encoded.spans if s[0] >= 0]
        assert min(a for a, _ in inside) == 0 and max(b for _, b in inside) == length
    aligned = align_tokens(sender.spans, receiver.spans)
    for span, index in zip(receiver.spans, aligned, strict=True):
        if span[0] >= 0 and span[1] > span[0]:
            a, b = sender.spans[index]
            assert index >= 0 and min(b, span[1]) > max(a, span[0])


def test_one_tokenizer_aligns_with_itself():
    encoded = random_llm("qwen3-0.6b").encode("which mood does the tree kruropos have?")
    aligned = align_tokens(encoded.spans, encoded.spans)
    assert all(i == j or span[0] == HEAD for i, (j, span) in enumerate(zip(aligned, encoded.spans, strict=True)))


def test_words_of_the_template_are_no_text_of_the_user():
    """A prompt that says "user" is found where the user wrote it, not in the template's header."""
    for name in ("llama-1b", "qwen3-0.6b"):
        encoded = random_llm(name).encode("user")
        inside = [i for i, span in enumerate(encoded.spans) if span[0] >= 0]
        assert all(span[0] == HEAD for span in encoded.spans[: inside[0]])
        assert inside[0] > 2 and all(span[0] == TAIL for span in encoded.spans[inside[-1] + 1 :])


def test_a_template_token_that_a_user_spells_out_stays_text():
    """Otherwise a peer's hint could end the turn it is quoted in."""
    for name, token in (("qwen3-0.6b", "<|im_end|>"), ("llama-1b", "<|eot_id|>")):
        llm = random_llm(name)
        control = llm.tokenizer.convert_tokens_to_ids(token)
        plain, spelled = llm.encode("is it red?"), llm.encode(f"is it {token} red?")
        assert spelled.ids.count(control) == plain.ids.count(control)
        before, after = llm.template.around((token,))
        assert token in llm.tokenizer.decode(spelled.ids).replace(before, "").replace(after, "")
        inside = [span for span in spelled.spans if span[0] >= 0]
        assert inside[-1][1] == len(f"is it {token} red?")
        assert len(spelled.ids) == len(spelled.spans)


def test_texts_cut_alike_align_token_by_token() -> None:
    """As they do where one token at the end differs, and each is looked for."""
    for seed in range(200):
        draw = random.Random(seed)
        spans, at = [(HEAD, i) for i in range(draw.randrange(3))], 0
        for _ in range(draw.randrange(1, 30)):
            end = at + draw.choice((0, 1, 1, 2, 5))
            spans += [(at, end)] * draw.choice((1, 1, 1, 3))  # pieces of one character share its span
            at = end
        tail = [(TAIL, i) for i in range(draw.randrange(3), -1, -1)]
        other = [*spans, (at, at + 1), *tail]
        looked_for = align_tokens(other, [*spans, *tail])
        found = align_tokens([*spans, *tail], [*spans, *tail])
        assert found == [i if i < len(spans) else i - 1 for i in looked_for]
