"""What members are asked in words: one place for every form that an LLM reads besides the user's own question.

What a peer wrote, and what a member keeps to itself, is data and never an instruction: it stands in the notes of the
prompt, one line each.
"""

from __future__ import annotations

from collections.abc import Sequence

_KEPT = frozenset("\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}")


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


def printable(text: str, limit: int | None = None) -> str:
    """Remove from a text of others what a terminal or a file would obey or refuse, and cut it to `limit` characters.

    Control characters, escape sequences, bidirectional marks and lone surrogates go; line breaks and tabs stay, other
    white space becomes a space. The joiners of Indic and Persian scripts and of emoji stay.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() or c in _KEPT else " " if c.isspace() else "" for c in text)
