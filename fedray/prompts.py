"""Build the prompts that an LLM reads besides the user's own question.

What a peer wrote, and what a member keeps to itself, is data and never an instruction: it stands in the notes of the
prompt, one line each. Invalid Unicode is refused where it comes in.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.text import one_line


def hint_prompt(question: str) -> str:
    return f"give a hint: {question}"


def rephrase_prompt(question: str) -> str:
    return f"rephrase: {question}"


NOTES = ("notes:\n", "-", "\n")  # what stands above all notes, before each, and behind each


def notes_prompt(notes: Sequence[str], question: str) -> str:
    """Put a question under its notes, a line each; without notes it is the question alone."""
    lines = [one_line(note) for note in notes if note.strip()]
    above, before, behind = NOTES
    return above + "".join(f"{before} {line}{behind}" for line in lines) + question if lines else question


REPLY = "The correct answer is"
LETTER_FORM = f'"{REPLY} <letter>".'  # how prompts end that ask for a letter, and
NUMBER_FORM = "Answer: <number>"  # for steps and a number, and
SHORT_FORM = '"Answer: <answer>".'  # for a few words
ANSWER, LINE = "\nAnswer:", "\n"
_ASKING, _CLOSING = ("?", "\uff1f", "\u061f"), "\"'\u201d\u2019\u00bb)]"


def lead(text: str) -> str:
    """Find what leads from a text to its answer where an LLM goes on with a text: of a question "Answer:" on a line of
    its own, of one that is answered in steps a new line, of any other text nothing."""
    text = text.rstrip()
    if text.endswith(NUMBER_FORM):
        return LINE
    return ANSWER if text.endswith((LETTER_FORM, SHORT_FORM)) or text.rstrip(_CLOSING).endswith(_ASKING) else ""


def answered(text: str, answer: str = "") -> str:
    """Write a text with its answer, as one who goes on with a text does."""
    leading = lead(text)
    return f"{text}{leading}{'' if leading == LINE else ' '}{answer}"
