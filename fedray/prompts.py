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
