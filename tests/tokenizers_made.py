"""Tokenizers of the real kinds, made on the spot: how each family cuts a text, on a vocabulary of a few hundred."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "which of these is the largest? what is the color of the bird, and where does the star live?",
    "In 2024 there were 1,234,567 of them: 3.14159 is not 22/7.  It's fine, isn't it?\n\n\tdef f(x):\n    return x",
    "人工智能正在改变世界。这个问题的答案是什么?日本語のテキストも少し。한국어도 있습니다.",
    "naïve café Ünïcödé, здравствуй мир, שלום, مرحبا 😀 👩‍👩‍👧 🇩🇪 ✅",
] * 3

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
MARKS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")

# What the published templates do around the user's text, shortened where nothing of it depends on what is cut.
QWEN3 = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
QWEN2 = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}" + QWEN3.partition("{%- if enable")[0] + "{%- endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- 'Today Date: ' + date_string + '\\n\\n' }}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n\\n' + m.content | trim + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"
)
MISTRAL = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endfor %}"


def _byte_level(pattern: str | None, normalizer: Any = None) -> Tokenizer:
    """GPT-2's kind; with a pattern of their own, Qwen's and Llama 3's."""
    backend = Tokenizer(BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _pieces_with_byte_fallback() -> Tokenizer:
    """Gemma's kind: spaces become ▁, and what no piece covers falls apart into bytes."""
    trained = Tokenizer(BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS[:2], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    for piece in sorted(trained.get_vocab(), key=lambda piece: trained.get_vocab()[piece]):
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [pair for pair in _merges(trained) if "".join(pair) in vocabulary]
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _unigram() -> Tokenizer:
    """The kind of T5 and many small LLMs: the likeliest pieces, a ▁ before every word, NFKC before all."""
    backend = Tokenizer(Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
    )
    return backend


_KINDS = {
    "gpt2": (lambda: _byte_level(None), None),
    "qwen2": (lambda: _byte_level(_QWEN, normalizers.NFC()), QWEN2),
    "qwen3": (lambda: _byte_level(_QWEN, normalizers.NFC()), QWEN3),
    "llama": (lambda: _byte_level(_LLAMA), LLAMA),
    "gemma": (_pieces_with_byte_fallback, GEMMA),
    "mistral": (_pieces_with_byte_fallback, MISTRAL),
    "unigram": (_unigram, None),
}
KINDS = tuple(_KINDS)
LOSSLESS = ("gpt2", "llama", "gemma", "mistral")  # they normalize nothing away


@cache
def made(kind: str) -> Any:
    """A tokenizer of this kind as transformers serves it, its marks special and its template set."""
    build, template = _KINDS[kind]
    backend = build()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = template
    return tokenizer
