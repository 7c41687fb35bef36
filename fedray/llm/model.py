"""One LLM with its tokenizer: text to token ids and back, and where each token lies in the user's text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError

from fedray.types import FedrayError, KVSpec

HEAD, TAIL = -1, -2  # spans of template tokens: (HEAD, i-th from the start), (TAIL, i-th from the end)
Span = tuple[int, int]
_CONTENT = "fedray-user-text"  # stands for the user's text while a template is taken apart
_DATE = "26 Jul 2024"  # what Llama's template says without a clock: an answer must not change overnight


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the LLM reads it. spans: per token its (start, end) in the user's text, or a template mark."""

    ids: list[int]
    spans: list[Span]


@dataclass(frozen=True, slots=True, eq=False)
class LLM:
    """A loaded decoder.

    model: a transformers causal LM in evaluation mode; tokenizer: its fast tokenizer, or None (it reads and says token
    ids only); context: tokens it can hold; template: what its chat template puts before and after the user's text;
    revision: the commit of its repository.
    """

    name: str
    family: str
    model: Any
    tokenizer: Any
    spec: KVSpec
    weights_hash: str
    tokenizer_hash: str
    context: int
    template: tuple[str, str]
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
        """The prompt in this LLM's chat template, with the generation prompt; raises FedrayError if too long."""
        encoded = encode(self._words(), self.template, prompt)
        self.check_ids(encoded.ids)
        return encoded

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises FedrayError where a prompt is too long, or not in this LLM's vocabulary."""
        check_ids(self.name, ids, self.context, self.model.get_input_embeddings().num_embeddings)

    def encode_answer(self, text: str) -> list[int]:
        return self._words().encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """The text of an answer; without a tokenizer the ids themselves."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _words(self) -> Any:
        """The tokenizer. Raises FedrayError where there is none."""
        if self.tokenizer is None:
            raise FedrayError(f"{self.name} has no tokenizer and reads no text: give the request's token_ids")
        return self.tokenizer


def encode(tokenizer: Any, template: tuple[str, str], prompt: str) -> Encoded:
    """A prompt's token ids and where each lies in the user's text. Raises FedrayError on an empty prompt.

    What the user (or a peer's hint) wrote is text: a template's own tokens spelled out in it stay letters.
    """
    content = prompt.strip()
    if not content:
        raise FedrayError("the prompt is empty; give the members something to read")
    before, after = template
    start, end = len(before), len(before) + len(content)
    if any(token in content for token in tokenizer.get_added_vocab()):
        parts = [(before, False), (content, True), (after, False)]
    else:
        parts = [(before + content + after, False)]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    read = 0
    for text, as_letters in parts:
        batch = tokenizer(
            text,
            return_offsets_mapping=True,
            add_special_tokens=False,
            split_special_tokens=as_letters,
            verbose=False,
        )
        ids += batch["input_ids"]
        offsets += [(read + a, read + b) for a, b in batch["offset_mapping"]]
        read += len(text)
    spans: list[Span] = []
    for index, (a, b) in enumerate(offsets):
        if b <= start:
            spans.append((HEAD, index))
        elif a >= end:
            spans.append((TAIL, len(ids) - 1 - index))
        else:
            spans.append((max(a, start) - start, min(b, end) - start))
    return Encoded(ids, spans)


def check_ids(name: str, ids: Sequence[int], context: int, known: int) -> None:
    """Raises FedrayError where a prompt's ids are too many for a context, or not among the `known` first ones."""
    check_length(name, len(ids), context)
    strange = next((i for i in ids if not 0 <= i < known), None)
    if strange is not None:
        raise FedrayError(
            f"token id {strange} is none of {name}'s, which go from 0 to {known - 1}: it comes from a tokenizer that "
            "does not belong to this LLM"
        )


def check_length(name: str, tokens: int, context: int) -> None:
    """Raises FedrayError where a prompt leaves no room for an answer."""
    if tokens >= context:
        raise FedrayError(f"the prompt has {tokens} tokens for {name}, whose context holds {context}; shorten it")


def template_of(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after the user's text, thinking off and the date fixed.

    A base model gets the tokens its tokenizer begins every text with, and a line of its own. Raises FedrayError where
    the template does not hold the user's text exactly once.
    """
    if tokenizer is None:
        return "", ""
    if not tokenizer.chat_template:
        begins = tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])
        return tokenizer.bos_token if tokenizer.bos_token in begins else "", "\n"
    messages = [{"role": "user", "content": _CONTENT}]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=_DATE
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise FedrayError(
            f"the chat template of {tokenizer.name_or_path} fails ({error}); repair or remove it"
        ) from error
    before, *after = text.split(_CONTENT)
    if len(after) != 1:
        raise FedrayError(
            f"the chat template of {tokenizer.name_or_path} holds the user's text {len(after)} times; it must be once"
        )
    return before, after[0]


def hash_tokenizer(tokenizer: Any) -> str:
    """Content hash of vocabulary, merges and chat template; "" where there is no tokenizer."""
    if tokenizer is None:
        return ""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_vocabulary(tokenizer: Any) -> str:
    """Content hash of the tokens and their ids, whatever the template: alike where ids mean the same; "" where there
    is no tokenizer."""
    if tokenizer is None:
        return ""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
