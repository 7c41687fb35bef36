"""Measure which words of a text another text keeps, by their form alone: overlap, copied runs, names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain

import regex

# Scripts written without spaces count a character as a word; elsewhere a number such as 3.5 or 1,000 stays whole.
_UNSPACED = r"[\w&&[\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_WORD = regex.compile(rf"(?V1)(?={_UNSPACED})\X|[\w--{_UNSPACED}]+(?:(?<=\d)[.,](?=\d)[\w--{_UNSPACED}]+)*")

FUNCTION_WORDS = frozenset(
    "a an the this that these those i me my you your he him his she her it its we us our they them their who whom "
    "whose which what when where why how and or but nor if then than as of in on at by for with about from to "
    "into over under between is are was were be been being am do does did have has had will would shall should "
    "can could may might must not no yes please tell know want name there here so such same both either each any "
    "some all".split()
)


@dataclass(frozen=True, slots=True)
class RewriteOverlap:
    """Overlap of one original with its rewrites. Of several rewrites the one that keeps most counts; only `words_kept`
    and `entities_kept` pool them. So no figure falls when one more rewrite is seen.

    The frame that all questions share ("what is the ... of the ...") counts like any other words: compare the figures
    with those of two unrelated questions before calling them high.
    """

    jaccard: float  # shared distinct words / all distinct words of the two texts
    rouge_l: float  # F1 of the longest common subsequence of words (Lin 2004): wording in the same order, with gaps
    words_kept: float  # share of the original's distinct words seen
    copied_words: int  # words of the longest run copied without a gap
    copied_share: float  # ... as share of the original's words
    entities_kept: float | None  # share of the original's rare words seen; None: it has none, or `pieces` is not given
    exact_copy: bool  # a rewrite is the original, but for case, spacing and punctuation
    template_copy: bool | None  # a rewrite is another phrasing known beforehand: recalled, not written; None: not asked


def overlap(
    original: str,
    rewrites: Sequence[str],
    *,
    pieces: Callable[[str], int] | None = None,
    known: Callable[[str], bool] | None = None,
) -> RewriteOverlap:
    """Measure the overlap of one original with its rewrites; parameters as in `leakage.measure`."""
    asked, told = words(original), [words(rewrite) for rewrite in rewrites]
    vocabulary, union = set(asked), set(chain.from_iterable(told))
    runs = (SequenceMatcher(None, asked, text, autojunk=False).find_longest_match() for text in told)
    copied_words = max((run.size for run in runs), default=0)
    rare = rare_words(original, pieces) if pieces else frozenset()
    return RewriteOverlap(
        jaccard=max((len(vocabulary & set(text)) / len(vocabulary | set(text)) for text in told), default=0.0),
        rouge_l=max((_rouge_l(asked, text) for text in told), default=0.0),
        words_kept=len(vocabulary & union) / len(vocabulary),
        copied_words=copied_words,
        copied_share=copied_words / len(asked),
        entities_kept=len(rare & union) / len(rare) if rare else None,
        exact_copy=asked in told,
        template_copy=any(known(r) for r, text in zip(rewrites, told, strict=True) if text != asked) if known else None,
    )


def rare_words(text: str, pieces: Callable[[str], int]) -> frozenset[str]:
    """Find the words that likely name something: with a digit, or split into 2 or more pieces by a tokenizer.

    pieces: how many tokenizer pieces a word has, as it is written in the text; tokenizers that mark the start of a word
    want a space before it. English function words never name anything, however a small vocabulary splits them. A common
    name of one piece is missed, a long common word is counted, and a number that the rewrite spells out counts as lost.
    """
    found = {word for word in _split(text) if any(c.isdigit() for c in word) or pieces(word) >= 2}
    return frozenset(word.casefold() for word in found) - FUNCTION_WORDS


def words(text: str) -> tuple[str, ...]:
    """Split a text into words without case and punctuation; a text without words counts as one word, itself.

    >>> words("Is Zürich 3.5 km away?"), words("東京は")
    (('is', 'zürich', '3.5', 'km', 'away'), ('東', '京', 'は'))
    """
    return tuple(word.casefold() for word in _split(text))


def _split(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text) or [text.strip()]


def _rouge_l(one: tuple[str, ...], two: tuple[str, ...]) -> float:
    """Compute rougeL's fmeasure, without the package rouge-score: its tokenizer drops all but a-z and 0-9, so that a
    text in Chinese scores 0 against itself, and it depends on nltk."""
    best = [0] * (len(two) + 1)  # best[j]: common to the words of `one` so far and the first j of `two`
    for word in one:
        row = [0]
        for j, other in enumerate(two):
            row.append(best[j] + 1 if word == other else max(row[j], best[j + 1]))
        best = row
    return 2 * best[-1] / (len(one) + len(two))
