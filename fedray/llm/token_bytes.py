"""Convert a tokenizer's tokens to bytes, by which tokens of different vocabularies are compared."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedray.llm.letters import letters_of

_LINE_BREAKS: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """Convert every id below `size` to its bytes; b"" where it has none: a control token, or no token at all.

    Byte-level tokenizers write every byte as one printable character; others write a space as U+2581, and a byte that
    is no character as <0x0A>.
    """
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    added = letters_of(tokenizer)
    own = added.control.keys() | added.kept.keys()
    tokens = {i: token for token, i in tokenizer.get_vocab().items() if i < size and i not in own}
    by_letters = all(set(token) <= letters.keys() for token in tokens.values())
    found = {i: token.encode() for i, token in added.kept.items()}
    for i, token in tokens.items():
        if by_letters:
            found[i] = bytes(letters[letter] for letter in token)
        else:
            byte = _BYTE.fullmatch(token)
            found[i] = bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return [found.get(i, b"") for i in range(size)]


def line_breaks(tokenizer: Any) -> frozenset[int]:
    """Find the tokens with a line break in them, once per tokenizer."""
    if tokenizer not in _LINE_BREAKS:
        size = max(tokenizer.get_vocab().values(), default=-1) + 1
        _LINE_BREAKS[tokenizer] = frozenset(i for i, text in enumerate(token_bytes(tokenizer, size)) if b"\n" in text)
    return _LINE_BREAKS[tokenizer]
