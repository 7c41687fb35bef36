"""Put a user's texts into the form in which an LLM is prompted: its chat template, or text that it goes on with.

This is the one place that knows how. An LLM without a chat template was taught to go on with a text, not to reply: its
prompt stands as it is, behind the token that its tokenizer begins every text with, and the answer begins behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.llm.catalogue import shown
from fedray.llm.explained import explained, in_steps
from fedray.prompts import ANSWER, LINE, answered, lead
from fedray.types import FedrayError, Prompting

STEPS = 1_000_000  # lines of a chat template that are run; long ones take some thousands a turn at most
_CONTENT = "fedray-user-text"  # stands for the user's text while a template is taken apart
_MARK = "fedray-turn-{}-text"  # stands for a turn
_DATE = "26 Jul 2024"  # what Llama's template says without a clock: an answer must not change overnight


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template, thinking off and the date fixed. before, after: what stands around the user's only turn; joint:
    what stands between a prompt and its answer."""

    tokenizer: Any
    before: str
    after: str
    joint = ""
    prompting: Prompting = "chat"

    def around(self, turns: Sequence[str], name: str = "") -> list[str]:
        """List what stands before, between and behind the turns of an LLM of this name, the user's last.

        Raises FedrayError where the template does not hold each turn once.
        """
        if len(turns) == 1:
            return [self.before, self.after]
        roles, marks = ("user", "assistant"), [_MARK.format(number) for number in range(len(turns))]
        rest = render(self.tokenizer, [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)])
        pieces = []
        for number, mark in enumerate(marks):
            if rest.count(mark) != 1:
                raise FedrayError(
                    f"the chat template of {name} holds turn {number + 1} of {len(turns)} {rest.count(mark)} times "
                    "after those before it; it must be once: ask without a conversation"
                )
            before, _, rest = rest.partition(mark)
            pieces.append(before)
        return [*pieces, rest]

    def is_one_line(self, prompt: str) -> bool:
        """Check whether the answer behind a whole prompt, of which this is the end, ends with its line."""
        return False


@dataclass(frozen=True, slots=True)
class Completion:
    """A text to go on with, a line for each turn. before: the token that every text begins with, or ""; joint: the
    space in front of an answer, "" where the tokenizer puts it there itself."""

    before: str
    joint: str
    prompting: Prompting = "completion"

    def around(self, turns: Sequence[str], name: str = "") -> list[str]:
        """List what stands before, between and behind the turns; see Chat."""
        between = [answered(turn)[len(turn) :] if i % 2 == 0 else LINE for i, turn in enumerate(turns[:-1])]
        return [self.before, *between, lead(turns[-1])]

    def is_one_line(self, prompt: str) -> bool:
        """Check whether the answer behind a whole prompt, of which this is the end, ends with its line."""
        return prompt.endswith(ANSWER)


Template = Chat | Completion


def template_of(tokenizer: Any, prompting: Prompting | None = None) -> Template:
    """Find how an LLM is prompted; prompting: None is a chat where its tokenizer has a template, else a completion.

    Raises FedrayError where the template does not hold the user's text exactly once, or there is none for a chat.
    """
    if tokenizer is None:
        return Chat(None, "", "")
    name = shown(tokenizer.name_or_path)
    if prompting == "completion" or (prompting is None and not tokenizer.chat_template):
        begins = tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])
        spaced = any(token.startswith("\u2581") for token in tokenizer.tokenize("a"))
        return Completion(tokenizer.bos_token if tokenizer.bos_token in begins else "", "" if spaced else " ")
    if not tokenizer.chat_template:
        raise FedrayError(f"{name} has no chat template and prompting=chat asks for one: leave prompting out")
    before, *after = render(tokenizer, [{"role": "user", "content": _CONTENT}]).split(_CONTENT)
    if len(after) != 1:
        raise FedrayError(
            f"{name}: its chat template holds the user's text {len(after)} times; it must be once: repair or remove it"
        )
    return Chat(tokenizer, before, after[0])


def render(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """Render messages in the chat template, with the generation prompt. Raises FedrayError where it fails."""
    with explained(shown(tokenizer.name_or_path), "its chat template fails", "repair or remove it"), in_steps(STEPS):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=_DATE
        )
