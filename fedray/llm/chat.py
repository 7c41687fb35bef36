"""Encode conversations of several turns in an LLM's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.llm.letters import letters_of
from fedray.llm.model import LLM, Encoded, encode, render, template_of
from fedray.types import FedrayError

_MARK = "fedray-turn-{}-text"  # stands for a turn while a template is taken apart


@dataclass(frozen=True, slots=True)
class Words:
    """What of an LLM encodes text, without its weights."""

    name: str
    tokenizer: Any
    template: tuple[str, str]

    @classmethod
    def of(cls, name: str, tokenizer: Any) -> Words:
        return cls(name, tokenizer, template_of(tokenizer))

    def words(self) -> Any:
        return self.tokenizer


def count_tokens(llm: LLM | Words, turns: Sequence[str], answer: str) -> int:
    """Count the tokens of a conversation, prompt and answer together."""
    return len(encode_turns(llm, turns).ids) + len(letters_of(llm.words()).encode(answer)[0])


def encode_turns(llm: LLM | Words, turns: Sequence[str]) -> Encoded:
    """Encode turns of the user and the assistant, the user's last, with the generation prompt.

    The length is not checked. Raises FedrayError where the last turn is empty, or the template does not hold them all.
    """
    return encode(llm.words(), llm.template if len(turns) == 1 else _pieces(llm, len(turns)), *turns)


def _pieces(llm: LLM | Words, turns: int) -> list[str]:
    """Split the template into what stands before, between and behind so many turns; a base model gets a line each."""
    if not llm.tokenizer.chat_template:
        return [llm.template[0], *["\n"] * turns]
    roles, marks = ("user", "assistant"), [_MARK.format(number) for number in range(turns)]
    rest = render(llm.tokenizer, [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)])
    pieces = []
    for number, mark in enumerate(marks):
        if rest.count(mark) != 1:
            raise FedrayError(
                f"the chat template of {llm.name} holds turn {number + 1} of {turns} {rest.count(mark)} times after "
                "those before it; it must be once: ask without a conversation"
            )
        before, _, rest = rest.partition(mark)
        pieces.append(before)
    return [*pieces, rest]
