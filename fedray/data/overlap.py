"""Detect evaluation questions, and words that are kept for evaluation, in training text (contamination).

A question of 13 words or more is found by any 13 of them in a row (as GPT-3's authors count, arXiv 2005.14165,
appendix C); a shorter one by all its words in a row, with all its choices, where it has some, in the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedray.data.rows import Item, TrainingTalk
from fedray.errors import FedrayError

SPAN = 13  # words
_OPENING = 4  # words that a short question is looked up by
_STEM, _SHORTEST = 5, 3  # letters
# A word is a run of letters or digits; scripts that are written without spaces count by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
Words = tuple[str, ...]


class Contamination:
    """An index of the questions of evaluation sets."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._spans: set[int] = set()
        self._short: dict[Words, list[tuple[Words, tuple[str, ...]]]] = {}
        for item in items:
            words = _words(item.question)
            if len(words) >= SPAN:
                self._spans.update(hash(span) for span in _runs(words, SPAN))
            elif words:
                choices = tuple(f" {' '.join(_words(choice))} " for choice in item.choices)
                self._short.setdefault(words[:_OPENING], []).append((words, choices))
        self._openings = sorted({len(opening) for opening in self._short})

    def gives_away(self, talk: TrainingTalk) -> bool:
        """Check whether a conversation holds one of the questions."""
        words = _words(" ".join((*talk.turns, talk.answer, *(text for _, text in talk.documents))))
        return any(hash(span) in self._spans for span in _runs(words, SPAN)) or self._holds_short(words)

    def _holds_short(self, words: Words) -> bool:
        whole = ""
        for length in self._openings:
            for start, opening in enumerate(_runs(words, length)):
                for question, choices in self._short.get(opening, ()):
                    if words[start : start + len(question)] == question:
                        whole = whole or f" {' '.join(words)} "
                        if all(choice in whole for choice in choices):
                            return True
        return False


class KeptWords:
    """Words that are kept for evaluation, read from a file, one or more a line.

    A word that begins as a kept one does (its first five letters) counts as a form of it; words of three letters or
    less are not looked for.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises FedrayError where the file cannot be read."""
        try:
            text = path.read_text(encoding="utf-8") if path else ""
        except (OSError, UnicodeDecodeError) as error:
            raise FedrayError(f"data.without={path} cannot be read ({error}): give a text file of words") from error
        self._stems = set(_stems(text))

    def are_in(self, text: str) -> bool:
        """Check whether a text holds one of them."""
        return any(stem in self._stems for stem in _stems(text)) if self._stems else False

    def are_read(self, talk: TrainingTalk) -> bool:
        """Check whether a conversation or its documents hold one of them."""
        return any(map(self.are_in, (*talk.turns, talk.answer, *(text for _, text in talk.documents))))


def _stems(text: str) -> Iterable[str]:
    return (word[:_STEM] for word in _words(text) if len(word) > _SHORTEST)


def _words(text: str) -> Words:
    return tuple(_WORD.findall(text.lower()))


def _runs(words: Words, length: int) -> Iterable[Words]:
    return zip(*(words[i:] for i in range(length)), strict=False)
