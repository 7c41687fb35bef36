"""How a question is put, and what an answer to it stands for. Scorings differ in their numbers: reports name theirs.

text               the question alone; the choice whose text is likeliest (acc of lm-eval)
text-normalized    the same, log-likelihood over the text's length in characters (acc_norm of lm-eval)
letters            the choices are listed; the likeliest letter after "The correct answer is" (C2C's `logits`)
letters-generated  the same, answered freely in up to 64 tokens, the letter read off the reply (C2C's `generate`)
told               the question alone, answered freely; the one choice that the answer names
number             no choices; the number that a free answer ends with
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation

from fedray.settings import Settings
from fedray.types import Row

REPLY = "The correct answer is"
MAX_TOKENS = {"letters-generated": 64, "number": 512}  # of a free answer
FREELY = (*MAX_TOKENS, "told")
_LETTERS = "ABCDEFGHIJ"
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_MARKED = re.compile(r"(?:####|\\boxed\{|answer(?:\s+is)?\s*:?)\s*\**\s*\$*(" + _NUMBER.pattern + ")", re.IGNORECASE)


def for_task(settings: Settings) -> Settings:
    """The settings, free answers as long as their task's scoring needs."""
    longest = settings.task.max_tokens or MAX_TOKENS.get(settings.task.scored_by, settings.generation.max_tokens)
    return replace(settings, generation=replace(settings.generation, max_tokens=longest))


def asked(scoring: str, question: str, choices: Sequence[str]) -> str:
    """The prompt of a question."""
    if scoring.startswith("letters"):
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
        known = ", ".join(_LETTERS[: len(choices) - 1]) + f" or {_LETTERS[len(choices) - 1]}"
        return (
            f"Answer this multiple-choice question.\n\n{question}\n\nChoices:\n{listed}\n\n"
            f'Reply with the letter of the one best choice ({known}) and nothing else: "{REPLY} <letter>".'
        )
    if scoring == "number":
        return f"{question}\n\nThink step by step. End with a line in this form: Answer: <number>"
    return question


def offered(scoring: str, choices: Sequence[str] | None) -> tuple[str, ...] | None:
    """The texts members choose from, one per choice; None: they answer freely."""
    if choices is None or scoring in FREELY:
        return None
    return tuple(f"{REPLY} {_LETTERS[i]}" for i in range(len(choices))) if scoring == "letters" else tuple(choices)


def picked(scoring: str, choices: Sequence[str], row: Row) -> int | None:
    """The choice an answer stands for; None: it names none."""
    if scoring == "letters-generated":
        return letter(row.text, choices)
    if scoring == "told":
        return named(row.text, choices)
    if scoring == "text-normalized" and row.scores:
        shares = [score / len(text) for score, text in zip(row.scores, choices, strict=True)]
        return max(range(len(shares)), key=shares.__getitem__)
    return row.choice


def letter(reply: str, choices: Sequence[str]) -> int | None:
    """The choice that a reply names: behind "answer is", as its first or only word, or by the choice's own text."""
    known = _LETTERS[: len(choices)]
    for pattern in (
        rf"(?i:answer|choice|option|答案|选)(?:\s+is|是|为)?\s*[:\uff1a]?\s*[*\"'(\[]*([{known}])(?![A-Za-z0-9/]|'\w)",
        rf"^[\s*\"'(\[]*([{known}])(?:[\s*\"'.:,)\]]*$|[*\"')\]]*[.:,)\]])",
    ):
        if found := re.search(pattern, reply):
            return known.index(found[1])
    return named(reply, choices)


def named(reply: str, choices: Sequence[str]) -> int | None:
    """The one choice whose text stands in a reply; None: none does, or several do."""
    said = [i for i, text in enumerate(choices) if _says(reply.lower(), text.lower())]
    return said[0] if len(said) == 1 else None


def _says(reply: str, text: str) -> bool:
    """Whether a text stands in a reply as words of its own."""
    return re.search(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", reply) is not None


def number(text: str) -> str | None:
    """The number a text marks as its answer, or else its last one, as it is written most plainly; None: there is none.

    >>> number("... so #### $1,200.50")
    '1200.5'
    """
    found = _MARKED.findall(text) or _NUMBER.findall(text)
    if not found:
        return None
    try:
        plain = Decimal(re.sub(r"[$,]", "", found[-1])).normalize()
    except InvalidOperation:
        return None
    return f"{plain:f}"
