"""Encode conversations of several turns in an LLM's own template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.llm.letters import letters_of
from fedray.llm.model import LLM, Encoded, encode
from fedray.llm.templates import Template, template_of


@dataclass(frozen=True, slots=True)
class Words:
    """What of an LLM encodes text, without its weights."""

    name: str
    tokenizer: Any
    template: Template

    @classmethod
    def of(cls, name: str, tokenizer: Any) -> Words:
        return cls(name, tokenizer, template_of(tokenizer))

    def words(self) -> Any:
        return self.tokenizer


def count_tokens(llm: LLM | Words, turns: Sequence[str], answer: str) -> int:
    """Count the tokens of a conversation, prompt and answer together."""
    return len(encode_turns(llm, turns).ids) + len(letters_of(llm.words()).encode(f"{llm.template.joint}{answer}")[0])


def encode_turns(llm: LLM | Words, turns: Sequence[str]) -> Encoded:
    """Encode turns of the user and the assistant, the user's last, with the generation prompt.

    The length is not checked. Raises FedrayError where the last turn is empty, or the template does not hold them all.
    """
    return encode(llm.words(), llm.template.around(turns, llm.name), *turns)
