"""Tokenize text of users and peers without control tokens, whatever tokens it spells out.

A tokenizer takes its added tokens ("<|im_end|>", "<think>") out of every text before its model reads the rest;
`split_special_tokens` leaves out those that are special and no others, and models of words find theirs themselves.
"""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer

Place = tuple[int, int]
_NO_LETTER = "\U0010fffd"  # in no vocabulary


class Letters:
    """A tokenizer that shares another's normalizer, pre-tokenizer and model, and has none of its control tokens.

    control: their ids and spellings. Added tokens that are blanks or one letter are kept, unless they are special. A
    letter that a model does not know is its unknown token still.
    """

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a fast one of transformers, which is not changed once it is read here."""
        backend: Tokenizer = tokenizer.backend_tokenizer
        added, special = backend.get_added_tokens_decoder(), set(tokenizer.all_special_ids)
        as_they_look = {i: token for i, token in added.items() if _is_a_letter(token) and i not in special}
        self.control = {i: token.content for i, token in added.items() if i not in as_they_look}
        self.kept = {i: token.content for i, token in as_they_look.items()}
        self._unknown = _unknown(backend.model, self.control)
        self._tokenizer = Tokenizer(_without(backend.model, self.control, self._unknown))
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(self._tokenizer, part, getattr(backend, part))
        self._tokenizer.add_tokens(list(as_they_look.values()))
        self._ids = {self._tokenizer.token_to_id(content): i for i, content in self.kept.items()}

    def encode(self, text: str) -> tuple[list[int], list[Place]]:
        """Encode a text: its ids, and the characters that each covers."""
        read = self._tokenizer.encode(text, add_special_tokens=False)
        return [self._ids.get(i, i) for i in read.ids], read.offsets

    def is_spelled(self, token: int, text: str) -> bool:
        """Check whether a token is a control token that this text, which it covers, spells out: not one beside the
        text that takes in the blanks around it, and not the unknown token in the place of a letter."""
        spelling = self.control.get(token)
        if spelling is None or token == self._unknown:
            return spelling is not None and spelling in text
        return bool(text.strip()) or not spelling.strip()


_CACHE: WeakKeyDictionary[Any, Letters] = WeakKeyDictionary()


def letters_of(tokenizer: Any) -> Letters:
    """Get a tokenizer's Letters, which are made once."""
    if tokenizer not in _CACHE:
        _CACHE[tokenizer] = Letters(tokenizer)
    return _CACHE[tokenizer]


def _is_a_letter(token: AddedToken) -> bool:
    return not token.special and len(token.content.strip().strip("\u2581")) <= 1


def _unknown(model: Any, control: dict[int, str]) -> int | None:
    """Find the control token, if any, that is a model's unknown token."""
    return next((part.id for part in model.tokenize(_NO_LETTER) if part.id in control), None)


def _without(model: Any, control: dict[int, str], unknown: int | None) -> Any:
    """Remove control tokens from a model: a copy where the model itself finds any in letters, else the model."""
    found = {token for i, token in control.items() if any(part.id == i for part in model.tokenize(token))}
    if not found:
        return model
    state = json.loads(model.__getstate__())
    vocabulary = state["vocab"]
    if isinstance(vocabulary, list):  # Unigram: (piece, score) by id; nothing in a text is the empty piece
        state["vocab"] = [["" if piece in found else piece, score] for piece, score in vocabulary]
    else:
        state["vocab"] = kept = {token: i for token, i in vocabulary.items() if token not in found}
        if state.get("unk_token") in found:
            kept[""], state["unk_token"] = unknown, ""
        if "merges" in state:
            pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in state["merges"])
            state["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= kept.keys()]
    copy = type(model).__new__(type(model))  # pyright: ignore[reportCallIssue]
    copy.__setstate__(json.dumps(state).encode())
    return copy
