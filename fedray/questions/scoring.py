"""Make prompts of questions, and read the choice off answers. Scorings differ in their figures: reports name theirs.

text               the question alone; the choice whose text is likeliest (acc of lm-eval)
text-normalized    the same, log-likelihood over the text's length in characters (acc_norm of lm-eval)
letters            the choices are listed; the likeliest letter after "The correct answer is" (C2C's `logits`)
letters-generated  the same, answered freely in up to 64 tokens, the letter read off the reply (C2C's `generate`)
told               the question alone, answered freely; the one choice that the answer names
number             no choices; the number that a free answer states
exact              no choices; the few words that a free answer states, equal to a right answer as SQuAD compares them;
                   their token F1 is a figure beside it
contains           the question alone, without choices; whether a right answer stands in the reply; with a token F1

How letters, numbers and short answers are read off a reply: replies.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from fedray.data.numbers import plain_number
from fedray.data.rows import LETTERS, Item
from fedray.prompts import LETTER_FORM, NUMBER_FORM, REPLY, SHORT_FORM
from fedray.questions.replies import letter, named, number, short
from fedray.questions.short_answers import normalized
from fedray.settings.settings import OF_FEW_WORDS
from fedray.types import Row

__all__ = [
    "asked",
    "first_reply",
    "flaw",
    "letter",
    "matches",
    "named",
    "number",
    "offered",
    "picked",
    "reply",
    "title",
]

MAX_TOKENS = {"letters-generated": 64, "number": 512, "exact": 64}  # of a free answer
FREELY = (*MAX_TOKENS, "told")


def asked(scoring: str, question: str, choices: Sequence[str]) -> str:
    """Make the prompt of a question."""
    if scoring.startswith("letters"):
        listed = "\n".join(f"{label}. {choice}" for label, choice in zip(LETTERS, choices, strict=False))
        known = ", ".join(LETTERS[: len(choices) - 1]) + f" or {LETTERS[len(choices) - 1]}"
        return (
            f"Answer this multiple-choice question.\n\n{question}\n\nChoices:\n{listed}\n\n"
            f"Reply with the letter of the one best choice ({known}) and nothing else: {LETTER_FORM}"
        )
    if scoring == "number":
        return f"{question}\n\nThink step by step. End with a line in this form: {NUMBER_FORM}"
    if scoring == "exact":
        return f"{question}\n\nReply with the answer in as few words as possible and nothing else: {SHORT_FORM}"
    return question


def title(scoring: str, shots: int) -> str:
    """Name a scoring as reports do, with the solved examples above each question."""
    return f"{scoring}, {shots}-shot" if shots else scoring


def reply(scoring: str, item: Item) -> str:
    """Write the right answer to a question as its prompt asks for it: of a solved example."""
    if scoring in OF_FEW_WORDS:
        return item.target or ""
    if item.gold is None:
        return f"{item.solution}\nAnswer: {plain_number(item.target or '')}".strip()
    return f"{REPLY} {LETTERS[item.gold]}" if scoring.startswith("letters") else item.choices[item.gold]


def first_reply(scoring: str, text: str) -> str:
    """Cut a free answer where, as a base LLM does after solved examples, it goes on with the next question."""
    if scoring in ("number", "exact"):
        line = re.search(r"^Answer:.*$", text, re.MULTILINE)
        return text[: line.end()] if line else text
    return text.strip().partition("\n\n")[0]


def flaw(scoring: str, choices: Sequence[str], gold: int | None) -> str:
    """Explain why a scoring can never find these choices' right one, with the remedy; "" where it can."""
    if scoring.startswith("letters"):
        many = len(choices) > len(LETTERS)
        return f"{len(choices)} choices, and letters end at Z: take some out, or add task.scoring=text" if many else ""
    texts = [unicodedata.normalize("NFC", choice.strip()) for choice in choices]
    texts = [text.casefold() for text in texts] if scoring == "told" else texts
    if gold is not None and texts.count(texts[gold]) > 1:
        return "two equal choices, one of them right, which texts cannot tell apart: add task.scoring=letters"
    return ""


def offered(scoring: str, choices: Sequence[str] | None) -> tuple[str, ...] | None:
    """List the texts that members choose from, one per choice; None: they answer freely."""
    if choices is None or scoring in FREELY:
        return None
    return tuple(f"{REPLY} {LETTERS[i]}" for i in range(len(choices))) if scoring == "letters" else tuple(choices)


def stated(scoring: str, text: str) -> str | None:
    """Read what a free answer to a question without choices states; None: nothing."""
    return number(text) if scoring == "number" else short(text) if scoring == "exact" else text


def matches(scoring: str, answer: str | None, targets: Sequence[str]) -> bool:
    """Check whether what was stated is one of the right answers."""
    if scoring not in OF_FEW_WORDS or answer is None:
        return answer in targets
    given, wanted = normalized(answer), map(normalized, targets)
    return given in wanted if scoring == "exact" else any(f" {target} " in f" {given} " for target in wanted)


def picked(scoring: str, choices: Sequence[str], row: Row) -> int | None:
    """Read the choice off an answer; None: it names none."""
    if scoring == "letters-generated":
        return letter(row.text, choices)
    if scoring == "told":
        return named(row.text, choices)
    if scoring == "text-normalized" and row.scores:
        shares = [score / len(text) for score, text in zip(row.scores, choices, strict=True)]
        return max(range(len(shares)), key=shares.__getitem__)
    return row.choice


def is_right(choice: int | None, gold: int) -> bool:
    """Check whether a chosen index is the right one; None is a sample that failed."""
    return choice is not None and choice == gold
