"""One LLM with its tokenizer: encode text with the place of each token in the user's text, and decode it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedray.llm.catalogue import shown
from fedray.llm.letters import letters_of
from fedray.llm.templates import Template
from fedray.llm.token_bytes import line_breaks
from fedray.types import FedrayError, KVSpec

HEAD, TAIL = -1, -2  # spans of template tokens: (HEAD, i-th from the start), (TAIL, i-th from the end)
Span = tuple[int, int]
_END = 8  # tokens of a prompt that show how it ends


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the LLM reads it. spans: per token its (start, end) in the user's text, or a template mark."""

    ids: list[int]
    spans: list[Span]


@dataclass(frozen=True, slots=True, eq=False)
class LLM:
    """A loaded decoder.

    model: a transformers causal LM in evaluation mode; tokenizer: its fast tokenizer, or None (it reads and generates
    token ids only); context: tokens it can hold; template: how it is prompted; revision: the commit of its repository.
    """

    name: str
    family: str
    model: Any
    tokenizer: Any
    spec: KVSpec
    weights_hash: str
    tokenizer_hash: str
    context: int
    template: Template
    revision: str = ""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def stop_ids(self) -> frozenset[int]:
        eos = self.model.generation_config.eos_token_id
        listed = eos if isinstance(eos, list) else [eos]
        own = self.tokenizer.eos_token_id if self.tokenizer else None
        return frozenset(i for i in (*listed, own) if i is not None)

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id if self.tokenizer else None
        return pad if pad is not None else next(iter(self.stop_ids), 0)

    def encode(self, prompt: str) -> Encoded:
        """Encode a prompt in this LLM's template, with the generation prompt. Raises FedrayError if too long."""
        encoded = encode(self.words(), self.template.around((prompt,)), prompt)
        self.check_ids(encoded.ids)
        return encoded

    def encode_part(self, text: str, *, first: bool, last: bool) -> list[int]:
        """Encode a part of a prompt: the template's head before the first part, its tail after the last."""
        before, after = self.template.around((text,))
        return encode(self.words(), (before if first else "", after if last else ""), text, strip=False).ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """Validate a prompt's length and that its tokens are in this LLM's vocabulary. Raises FedrayError."""
        check_length(self.name, len(ids), self.context)
        self.check_known(ids)

    def check_known(self, ids: Sequence[int]) -> None:
        """Validate that tokens are in this LLM's vocabulary. Raises FedrayError."""
        check_known(self.name, ids, self.model.get_input_embeddings().num_embeddings)

    def encode_answer(self, text: str) -> list[int]:
        """Encode a text, control tokens spelled out in it as letters. Raises FedrayError."""
        ids, _ = letters_of(self.words()).encode(text)
        self.check_known(ids)
        return ids

    def encode_reply(self, text: str) -> list[int]:
        """Encode an answer as it follows a prompt. Raises FedrayError."""
        return self.encode_answer(f"{self.template.joint}{text}" if text else text)

    def encode_choice(self, text: str) -> list[int]:
        """Encode an answer that is scored. Raises FedrayError, also where it has no tokens."""
        ids = self.encode_reply(text)
        if not ids:
            raise FedrayError(f"{shown(self.name)} knows no letter of the choice {text!r}; write it in other letters")
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode an answer; without a tokenizer to the ids themselves."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(ids, skip_special_tokens=True).removeprefix(self.template.joint)

    def stops_behind(self, ids: Sequence[int]) -> frozenset[int]:
        """Find the tokens that end an answer behind a prompt: those of a line as well, where it asks for one."""
        if self.template.prompting == "chat" or not self.template.is_one_line(self.tokenizer.decode(ids[-_END:])):
            return self.stop_ids
        return self.stop_ids | line_breaks(self.tokenizer)

    def words(self) -> Any:
        """Get the tokenizer. Raises FedrayError where there is none."""
        if self.tokenizer is None:
            raise FedrayError(f"{shown(self.name)} has no tokenizer and reads no text: give the request's token_ids")
        return self.tokenizer


def encode(tokenizer: Any, template: Sequence[str], *turns: str, strip: bool = True) -> Encoded:
    """Encode a prompt, or all turns of a conversation: token ids, and the place of each in the turns' texts.

    The texts count one after the other; strip: without the space around them. template: what stands before, between
    and behind them. Control tokens spelled out in what the user (or a peer's hint) wrote stay letters (letters.py).
    What stands between turns is marked as HEAD, like what stands before them. Raises FedrayError where the last turn
    is empty.
    """
    texts = [turn.strip() if strip else turn for turn in turns]
    if not texts[-1].strip():
        raise FedrayError("the prompt is empty; give the members something to read")
    parts = [(template[0], False)]
    for text, after in zip(texts, template[1:], strict=True):
        parts += [(text, True), (after, False)]
    places: list[tuple[int, int, int]] = []  # per turn that is not empty: where it starts and ends, and what was before
    start = told = 0
    for text, as_letters in parts:
        if as_letters and text:
            places.append((start, start + len(text), told))
            told += len(text)
        start += len(text)
    encoded = _encode(tokenizer, [("".join(text for text, _ in parts), False)], places)
    letters, of_users = letters_of(tokenizer), "".join(texts)
    spelled = (
        letters.is_spelled(i, of_users[a:b]) for i, (a, b) in zip(encoded.ids, encoded.spans, strict=True) if a >= 0
    )
    return _encode(tokenizer, parts, places) if any(spelled) else encoded


def _encode(tokenizer: Any, parts: Sequence[tuple[str, bool]], places: Sequence[tuple[int, int, int]]) -> Encoded:
    """Encode parts of a text, each on its own: as letters, or with its control tokens."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    start = 0
    for text, as_letters in parts:
        if as_letters:
            read, covered = letters_of(tokenizer).encode(text)
        else:
            batch = tokenizer(
                text, return_offsets_mapping=True, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
            read, covered = batch["input_ids"], batch["offset_mapping"]
        ids += read
        offsets += [(start + a, start + b) for a, b in covered]
        start += len(text)
    return Encoded(ids, [_span(index, a, b, places, len(ids)) for index, (a, b) in enumerate(offsets)])


def _span(index: int, a: int, b: int, places: Sequence[tuple[int, int, int]], tokens: int) -> Span:
    """Find the span of the token that covers characters a to b of the whole text."""
    if a >= places[-1][1]:
        return TAIL, tokens - 1 - index
    first = bisect_right(places, a, key=lambda place: place[1])
    last = bisect_left(places, b, key=lambda place: place[0]) - 1
    if last < first:
        return HEAD, index
    (start, _, before), (last_start, end, last_before) = places[first], places[last]
    return before + max(a, start) - start, last_before + min(b, end) - last_start


def check_known(name: str, ids: Sequence[int], known: int) -> None:
    """Validate that tokens are below `known`. Raises FedrayError."""
    strange = next((i for i in ids if not 0 <= i < known), None)
    if strange is not None:
        raise FedrayError(
            f"token id {strange} is none of {shown(name)}'s, which go from 0 to {known - 1}: it comes from a tokenizer "
            "that does not belong to this LLM; save the right one in its folder"
        )


def check_length(name: str, tokens: int, context: int, prompt: str = "") -> None:
    """Validate that a prompt (by its name) has tokens and leaves room for an answer. Raises FedrayError."""
    which = f" {prompt}" if prompt else ""
    if not tokens:
        raise FedrayError(
            f"{shown(name)} knows no letter of the prompt{which}; write it in letters that its tokenizer knows"
        )
    if tokens >= context:
        raise FedrayError(
            f"the prompt{which} has {tokens} tokens for {shown(name)}, whose context holds {context}; shorten it"
        )


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash vocabulary, merges and chat template; "" where there is no tokenizer."""
    if tokenizer is None:
        return ""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_vocabulary(tokenizer: Any) -> str:
    """Hash the tokens and their ids, whatever the template: alike where ids mean the same; "" without a tokenizer."""
    if tokenizer is None:
        return ""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
