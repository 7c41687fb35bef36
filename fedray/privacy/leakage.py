"""Measure what a rephrased prompt leaks: the words it keeps, and whether it can be linked to its original.

FedRefine (arXiv 2603.28772) claims "no intent leakage" of rephrased prompts and does not measure it. These figures
measure what can be read off the texts. A low one proves no privacy:

- The intent survives by design. A sender must be able to answer the rewrite, so it knows what was asked, whatever words
  were used; a perfect paraphrase scores 0 on every overlap and hides nothing from a reader.
- The attacker of `linkability` counts words. One who knows synonyms, or asks an LLM, links more.
- Only texts are compared. What the receiver's cache and the answers leak is measured elsewhere.

Linkability above chance and entities kept do prove that something leaked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from fedray.privacy.overlap import overlap, rare_words, words
from fedray.types import FedrayError

__all__ = ("POOLED", "Leakage", "Linkability", "linkability", "measure", "one_and_pooled", "rare_words")

POOLED = "all senders pooling"

_TIE = 1e-9  # similarities closer than this are equal: only rounding tells them apart

Seen = Sequence[str | Sequence[str]]
"""Per original what was seen of it: one rewrite, or several; () where nothing was (the rephrase failed)."""


@dataclass(frozen=True, slots=True)
class Linkability:
    """How often an attacker who holds n originals and sees the rewrites of one guesses which one it was.

    The guess is the original of the highest TF-IDF cosine (word counts of all rewrites added up); ties are broken by
    lot, in expectation. An attacker who sees nothing is at chance: above it the rewrite gave something away. Not above
    it means that this attacker failed, among these originals: fewer or more alike candidates change the figure.
    """

    n: int
    top1: float  # share of first guesses that are right
    mrr: float  # mean of 1 / rank of the right one
    chance: float  # top1 of a blind guess: 1/n without groups
    chance_mrr: float  # mrr of a blind order


@dataclass(frozen=True, slots=True)
class Leakage:
    """Means over n originals of `Overlap`, and the linkability of their rewrites.

    An original of which nothing was seen counts as 0 and as a blind guess; `rewrites` tells how much was seen.
    None: not measured, because what it needs was not given, or no original has it.
    """

    n: int
    rewrites: float  # mean number of different rewrites seen per original
    jaccard: float
    rouge_l: float
    words_kept: float
    copied_words: float
    copied_share: float
    entities_kept: float | None  # mean over the originals that have rare words
    exact_copies: float  # share of originals
    template_copies: float | None  # share of originals
    linkability: Linkability  # among all n originals
    in_group: Linkability | None  # only among originals of the same group, e.g. about the same entity: harder

    def figures(self) -> dict[str, float | None]:
        """Flatten all but n; the figures of the two attacks are linked, linked_mrr, linked_in_group, ..."""
        row = asdict(self)
        del row["n"]
        attacks = {"linked": row.pop("linkability"), "linked_in_group": row.pop("in_group") or {}}
        for name, attack in attacks.items():
            row[name] = attack.get("top1")
            row |= {f"{name}_{figure}": attack.get(figure) for figure in ("mrr", "chance", "chance_mrr")}
        return row


def measure(
    originals: Sequence[str],
    seen: Seen,
    *,
    groups: Sequence[str] | None = None,
    pieces: Callable[[str], int] | None = None,
    templates: Collection[str] | Callable[[str], bool] | None = None,
) -> Leakage:
    """Measure what leaked of `originals` by what was seen of each.

    groups: per original what it is about, for the harder linkability; pieces: number of tokenizer pieces of a word (see
    `rare_words`); templates: phrasings known beforehand, as texts or as a predicate on a rewrite.
    Raises FedrayError where originals, seen and groups are not equally many, or there are none.
    """
    rewrites = _checked(originals, seen)
    known = templates if templates is None or callable(templates) else _among(templates)
    overlaps = [overlap(*pair, pieces=pieces, known=known) for pair in zip(originals, rewrites, strict=True)]
    whole = ("jaccard", "rouge_l", "words_kept", "copied_words", "copied_share")
    return Leakage(
        n=len(originals),
        rewrites=_mean([len(set(texts)) for texts in rewrites]),
        **{name: _mean([getattr(o, name) for o in overlaps]) for name in whole},
        entities_kept=_mean_or_none([o.entities_kept for o in overlaps]),
        exact_copies=_mean([o.exact_copy for o in overlaps]),
        template_copies=_mean_or_none([o.template_copy for o in overlaps]),
        linkability=linkability(originals, seen),
        in_group=_linkability_in_groups(originals, seen, groups) if groups is not None else None,
    )


def one_and_pooled(originals: Sequence[str], seen_by: Mapping[str, Seen], **how: Any) -> dict[str, Leakage]:
    """Measure what leaks to each sender alone, and to all who pool their rewrites: by sender and `POOLED`.

    seen_by: sender -> per original what it saw; how: as in `measure`. Pooling never lowers the overlaps; it may lower
    linkability, since a rewrite that points elsewhere joins in as well. Raises FedrayError without senders, and as
    `measure` does.
    """
    if not seen_by:
        raise FedrayError("leakage is measured per sender: give what at least one sender saw")
    by_sender = {sender: _checked(originals, seen, sender) for sender, seen in seen_by.items()}
    pooled = [tuple(chain.from_iterable(texts)) for texts in zip(*by_sender.values(), strict=True)]
    return {name: measure(originals, seen, **how) for name, seen in {**by_sender, POOLED: pooled}.items()}


def linkability(originals: Sequence[str], seen: Seen) -> Linkability:
    """Link what was seen to the originals; equal originals share the guess. Raises FedrayError as `measure` does."""
    similarity = _similarities([words(text) for text in originals], _checked(originals, seen))
    guesses = [_guess(row, right) for right, row in enumerate(similarity)]
    blind = [1 / rank for rank in range(1, len(guesses) + 1)]
    return Linkability(
        len(guesses), _mean([top1 for top1, _ in guesses]), _mean([rr for _, rr in guesses]), blind[-1], _mean(blind)
    )


def _checked(originals: Sequence[str], seen: Seen, sender: str = "seen") -> list[tuple[str, ...]]:
    if not originals or len(originals) != len(seen):
        raise FedrayError(
            f"leakage of {len(originals)} originals was asked with {len(seen)} entries in {sender}: "
            "give at least one original, and for each what was seen of it, () for nothing"
        )
    return [(texts,) if isinstance(texts, str) else tuple(texts) for texts in seen]


def _among(templates: Collection[str]) -> Callable[[str], bool]:
    known = {words(template) for template in templates}
    return lambda rewrite: words(rewrite) in known


def _similarities(originals: Sequence[tuple[str, ...]], rewrites: Sequence[Sequence[str]]) -> np.ndarray:
    """Compute TF-IDF cosines [rewrites, originals], idf = ln((1 + n) / (1 + df)) + 1; words in no original are left
    out."""
    columns = {word: column for column, word in enumerate(sorted(set(chain.from_iterable(originals))))}

    def bags(texts: Sequence[Sequence[str]]) -> np.ndarray:
        counts = np.zeros((len(texts), len(columns)))
        for row, text in zip(counts, texts, strict=True):
            for word in text:
                if word in columns:
                    row[columns[word]] += 1
        return counts

    asked = bags(originals)
    told = bags([[word for rewrite in texts for word in words(rewrite)] for texts in rewrites])
    idf = np.log((1 + len(asked)) / (1 + (asked > 0).sum(0))) + 1
    return _unit(told * idf) @ _unit(asked * idf).T


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _guess(similarity: np.ndarray, right: int) -> tuple[float, float]:
    """Compute the expected top-1 and reciprocal rank of the right original, ties broken by lot."""
    before = int((similarity > similarity[right] + _TIE).sum())
    ties = int((np.abs(similarity - similarity[right]) <= _TIE).sum())
    return 0.0 if before else 1 / ties, _mean([1 / (before + place) for place in range(1, ties + 1)])


def _linkability_in_groups(originals: Sequence[str], seen: Seen, groups: Sequence[str]) -> Linkability | None:
    """Average over originals, each among its group only; groups of one are left out: there is nothing to guess."""
    if len(groups) != len(originals):
        raise FedrayError(f"{len(originals)} originals came with {len(groups)} groups: give each original its group")
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    parts = [linkability([originals[i] for i in m], [seen[i] for i in m]) for m in members.values() if len(m) > 1]
    if not parts:
        return None
    n = sum(part.n for part in parts)
    figures = ("top1", "mrr", "chance", "chance_mrr")
    return Linkability(n, *(sum(part.n * getattr(part, figure) for part in parts) / n for figure in figures))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return _mean(given) if given else None
