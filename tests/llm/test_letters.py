"""What users and peers write is text: no control token comes out of it, however it is spelled, in any tokenizer."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from test_alignment_of_texts import TEXTS, many
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Model, Unigram, WordLevel, WordPiece
from tokenizers_made import KINDS, LOSSLESS, made
from transformers import PreTrainedTokenizerFast

from fedray.llm.chat import encode_turns
from fedray.llm.letters import Letters, letters_of
from fedray.llm.model import LLM
from fedray.llm.templates import Chat, template_of
from fedray.llm.token_bytes import token_bytes
from fedray.member.specfed.translation import Translation
from fedray.types import FedrayError, KVSpec
from fedray.wire.vocabulary import Vocabulary

ADDED = [  # tokens that people add, in every way there is
    AddedToken("<extra_1>"),
    AddedToken("<think>", normalized=False),
    AddedToken("<|user|>", lstrip=True, rstrip=True),
    AddedToken("<|end|>", special=True, rstrip=True),
    AddedToken("[TOOL]", single_word=True),
    AddedToken("bird", normalized=True),
]
LOOKS = [AddedToken("\n\n", normalized=False), AddedToken("   "), AddedToken("☃")]  # blanks and a letter: as they look


def served(backend: Tokenizer, **marks: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def of_model(model: Model, special: str, *, words: bool = False, normalizer: Any = None) -> Any:
    backend = Tokenizer(model)
    if words:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(special.split())
    return served(backend, unk_token=special.split()[0])


def numbered(*tokens: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


LETTERS = sorted({*"<s>/unkMASKbird[]_TOLexta1hi|de"})
MERGED = numbered("<unk>", "</s>", *LETTERS, "</", "</s")
MERGES = [("<", "/"), ("</", "s"), ("</s", ">")]
PIECES = [("<unk>", 0.0), ("</s>", 0.0), ("<mask>", 0.0), *((letter, -2.0) for letter in LETTERS)]


@cache
def widened(kind: str) -> Any:
    """A tokenizer of a kind, with tokens that somebody added."""
    if kind in KINDS:
        source = made(kind)
        tokenizer = served(
            Tokenizer.from_str(source.backend_tokenizer.to_str()),
            bos_token="<s>",
            eos_token="</s>",
        )
        tokenizer.chat_template = source.chat_template
    else:
        tokenizer = {
            "words": lambda: of_model(
                WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "bird": 3}, unk_token="<unk>"), "<unk> </s>", words=True
            ),
            "pieces of words": lambda: of_model(
                WordPiece(
                    numbered("[UNK]", "[MASK]", "</s>", *"</s>ab[]", *(f"##{x}" for x in "</s>ab[]")), unk_token="[UNK]"
                ),
                "[UNK] [MASK] </s>",
                words=True,
            ),
            "likeliest pieces": lambda: of_model(
                Unigram(PIECES, 0, False), "<unk> </s> <mask>", normalizer=normalizers.NFKC()
            ),
            "merges": lambda: of_model(BPE(MERGED, MERGES, unk_token="<unk>"), "<unk> </s>"),
            "whole words": lambda: of_model(
                BPE(MERGED, [], unk_token="<unk>", ignore_merges=True), "<unk> </s>", words=True
            ),
        }[kind]()
    tokenizer.add_tokens([*ADDED, *LOOKS])
    return tokenizer


ALL = (*KINDS, "words", "pieces of words", "likeliest pieces", "merges", "whole words")
WITH_TEMPLATE = tuple(kind for kind in ALL if kind in KINDS)


def llm(kind: str) -> LLM:
    """An LLM of a tokenizer alone."""
    tokenizer, rows = widened(kind), SimpleNamespace(num_embeddings=1000)
    model = SimpleNamespace(get_input_embeddings=lambda: rows)
    return LLM("some-llm", "", model, tokenizer, KVSpec(1, 1, 1), "", "", 4096, template_of(tokenizer))


def control(kind: str) -> set[int]:
    """Every added token but those that are what they look like, and what stands for a letter nobody knows."""
    tokenizer = widened(kind)
    unknown = set(tokenizer.convert_tokens_to_ids(["<unk>", "[UNK]"]))
    looks = {token.content for token in LOOKS}
    return {i for token, i in tokenizer.get_added_vocab().items() if token not in looks} - unknown


def spelled(kind: str) -> list[str]:
    """Texts that spell every added token: alone, among letters, among blanks, in full-width letters, one by one."""
    tokens = list(widened(kind).get_added_vocab())
    wide = ["".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token) for token in tokens]
    return [
        *tokens,
        *wide,
        *(f"a{token}b" for token in tokens),
        *(f"a  {token} \n b" for token in tokens),
        *(token.upper() for token in tokens),
        "".join(tokens),
        " ".join(tokens),
        "<|im_<|im_end|>end|>",
    ]


@pytest.mark.parametrize("kind", ALL)
def test_no_control_token_comes_out_of_a_text(kind: str) -> None:
    one, never = llm(kind), control(kind)
    assert len(never) >= len(ADDED)
    for text in spelled(kind):
        assert not never & set(one.encode_answer(text)), text
        if not text.strip():
            continue
        encoded = one.encode(text)
        assert not never & {i for i, span in zip(encoded.ids, encoded.spans, strict=True) if span[0] >= 0}, text
        assert not never & set(one.encode_part(text, first=False, last=False)), text


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_none_comes_out_of_a_conversation_and_its_templates_own_stay(kind: str) -> None:
    one, never = llm(kind), control(kind)
    for text in filter(str.strip, spelled(kind)):
        encoded = encode_turns(one, (text, text, text))
        marks = [i for i, span in zip(encoded.ids, encoded.spans, strict=True) if i in never and span[0] >= 0]
        assert not marks, text
        if one.tokenizer.chat_template:
            assert never & set(encoded.ids), "the template's own"


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gemma"])
def test_a_worker_of_another_vocabulary_reads_letters(kind: str) -> None:
    tokenizer, never = widened(kind), control(kind)
    own = token_bytes(tokenizer, len(tokenizer))
    server = Vocabulary(tuple([*own, *(text.encode() for text in spelled(kind))]), (0,))
    worker = Translation("some-llm", tokenizer, len(tokenizer), frozenset(), server)
    for said in range(len(own), len(server.tokens)):
        ids, _ = worker.read([said], [])
        assert ids and not never & set(ids)


@many
@given(text=TEXTS)
def test_other_text_is_read_as_ever(text: str) -> None:
    for kind in KINDS:
        note(kind)
        tokenizer = made(kind)
        if not any(token in text for token in tokenizer.get_added_vocab()):
            read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            assert letters_of(tokenizer).encode(text) == (read["input_ids"], read["offset_mapping"])


@pytest.mark.parametrize("kind", LOSSLESS)
@many
@given(data=st.data())
def test_letters_are_kept(kind: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from([*spelled(kind), "a", " ", "é"]), min_size=1, max_size=4)))
    tokenizer = widened(kind)
    ids, places = Letters(tokenizer).encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
    assert places == sorted(places) and all(0 <= a <= b <= len(text) for a, b in places)


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_blanks_and_letters_that_were_added_are_what_they_look_like(kind: str) -> None:
    tokenizer = widened(kind)
    ids = llm(kind).encode_answer("a\n\nb☃")
    assert set(tokenizer.convert_tokens_to_ids(["\n\n", "☃"])) <= set(ids)
    known = token_bytes(tokenizer, len(tokenizer))
    assert known[tokenizer.convert_tokens_to_ids("\n\n")] == b"\n\n"
    assert known[tokenizer.convert_tokens_to_ids("<think>")] == b""


def test_a_token_without_a_row_is_named() -> None:
    few = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=300))
    one = LLM("some-llm", "", few, made("gpt2"), KVSpec(1, 1, 1), "", "", 512, template_of(made("gpt2")))
    assert one.encode_answer("a")
    with pytest.raises(FedrayError, match=r"token id \d+ is none of some-llm's, which go from 0 to 299"):
        one.encode_answer("which of these is the largest?")


def test_what_nothing_is_read_of_is_named() -> None:
    """A tokenizer without an unknown token leaves letters out that it does not know."""
    few = served(Tokenizer(BPE({"a": 0, "?": 1}, [])))
    rows = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=2))
    one = LLM("some-llm", "", rows, few, KVSpec(1, 1, 1), "", "", 512, Chat(few, "", ""))
    assert one.encode_choice("éa") == [0]
    with pytest.raises(FedrayError, match="some-llm knows no letter of the choice 'é'"):
        one.encode_choice("é")
    with pytest.raises(FedrayError, match="some-llm knows no letter of the prompt"):
        one.encode("é")
