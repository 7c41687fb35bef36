"""The bytes a tokenizer's tokens stand for: what tokens of different vocabularies have in common."""

from __future__ import annotations

import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedray.llm.letters import letters_of

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """Per id below `size` its bytes; b"" where it has none: a control token, or no token at all.

    Byte-level tokenizers write every byte as one printable character; others write a space as U+2581, and a byte that
    is no character as <0x0A>.
    """
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    added = letters_of(tokenizer)
    tokens = {i: token for token, i in tokenizer.get_vocab().items() if i < size}
    tokens = {i: token for i, token in tokens.items() if i not in added.control and i not in added.kept}
    by_letters = all(set(token) <= letters.keys() for token in tokens.values())
    found = [b""] * size
    for i in (i for i in added.kept if i < size):
        found[i] = added.kept[i].encode()
    for i, token in tokens.items():
        if by_letters:
            found[i] = bytes(letters[letter] for letter in token)
        else:
            byte = _BYTE.fullmatch(token)
            found[i] = bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return found
