"""What members are asked in words: one place for every form that an LLM reads besides the user's own question.

What a peer wrote, and what a member keeps to itself, is data and never an instruction: it stands in the notes of the
prompt, one line each.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.types import FedrayError


def check_text(text: str, where: str) -> None:
    """Raises FedrayError on a lone surrogate, which is what bytes that are no UTF-8 become; where: what holds it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = text[error.start : error.end]
        raise FedrayError(f"{where} is no Unicode text, it holds {wrong!r}: write it in UTF-8") from error


def hint_prompt(question: str) -> str:
    return f"give a hint: {question}"


def rephrase_prompt(question: str) -> str:
    return f"rephrase: {question}"


def notes_prompt(notes: Sequence[str], question: str) -> str:
    """The question under its notes, a line each; without notes the question alone."""
    lines = [one_line(note) for note in notes if note.strip()]
    return "notes:\n" + "".join(f"- {line}\n" for line in lines) + question if lines else question


def one_line(text: str) -> str:
    """A note without line breaks, which would end it."""
    return " ".join(text.split())
