"""What the rewrites that senders read give away of the questions: a row's figures, and their table."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from fedray.privacy.leakage import POOLED, Leakage, measure, one_and_pooled
from fedray.privacy.overlap import words
from fedray.questions.tasks import Question
from fedray.reporting.report import Evaluated, Leaked
from fedray.world.world import PHRASINGS, UNSEEN_PHRASINGS, phrasing_of

EVERY = "every sender"
BASELINE = "another question's rewrites instead"
ALL = "all"
HEADINGS = (
    "rows", "questions", "seen by", "n", "rewrites", "Jaccard", "ROUGE-L", "longest copy", "of the original",
    "entities kept", "exact copies", "template copies", "linked (blind)", "MRR (blind)", "linked in group (blind)",
)  # fmt: skip

Read = tuple[str, ...]  # per question the rewrite that was read, "" for none


def leaks(questions: Sequence[Question], read: Mapping[str, Read]) -> tuple[Leaked, ...]:
    """What each sender, and all that pool what they read, learn of the questions; of all, and by known phrasing.

    read: by sender. The last row of each kind is what anybody would learn from the rewrites of another question: what
    two texts share that have nothing in common but their frame.
    """
    same = len(set(read.values())) == 1
    seen = {EVERY: next(iter(read.values()))} if same else read
    return _leaks(tuple(questions), tuple(seen.items()))


@lru_cache(maxsize=64)  # ways that rephrase alike read the same
def _leaks(questions: tuple[Question, ...], seen: tuple[tuple[str, Read], ...]) -> tuple[Leaked, ...]:
    found: list[Leaked] = []
    other = _others(questions)
    for phrasing, chosen in _by_phrasing(questions).items():
        asked = [questions[i] for i in chosen]
        read = {who: [texts[i] or () for i in chosen] for who, texts in seen}
        instead = [tuple(texts[other[i]] for _, texts in seen if texts[other[i]]) for i in chosen]
        for who, told in _measured(asked, read, instead).items():
            found.append(Leaked(phrasing, who, told.n, told.figures()))
    return tuple(found)


def _measured(
    asked: Sequence[Question], read: Mapping[str, list[str | tuple[()]]], instead: Sequence[Read]
) -> dict[str, Leakage]:
    originals, groups = [q.prompt for q in asked], [q.entity or q.id for q in asked]
    names = {word for q in asked for word in words(q.entity)}

    def pieces(word: str) -> int:
        """What the task calls an entity is rare; a tokenizer would have to guess."""
        return 1 + (word.casefold() in names)

    def known(rewrite: str) -> bool:
        return phrasing_of(rewrite) is not None

    rows = one_and_pooled(originals, read, groups=groups, pieces=pieces, templates=known)
    if EVERY in rows:  # all read the same: pooling adds nothing
        del rows[POOLED]
    return rows | {BASELINE: measure(originals, instead, groups=groups, pieces=pieces, templates=known)}


def _others(questions: Sequence[Question]) -> list[int]:
    """For every question another one, about something else where there is such."""
    rng = random.Random(0)
    about = [q.entity or q.id for q in questions]
    places = range(len(questions))
    return [rng.choice([j for j in places if about[j] != about[i]] or list(places)) for i in places]


def _by_phrasing(questions: Sequence[Question]) -> dict[str, list[int]]:
    """All questions, and where they have several known phrasings, those of each."""
    parts: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        number = phrasing_of(question.prompt)
        if number is not None:
            name = PHRASINGS[number] + (" (held out)" if number in UNSEEN_PHRASINGS else "")
            parts.setdefault(name, []).append(index)
    every = {ALL: list(range(len(questions)))}
    return every | dict(sorted(parts.items())) if len(parts) > 1 else every


def summary(row: Evaluated) -> Mapping[str, float | None]:
    """The figures of all that pool what they read, of all questions; nothing where nothing was rephrased."""
    return next((told.figures for told in row.leakage if told.phrasing == ALL and told.seen_by in (POOLED, EVERY)), {})


def lines(rows: Sequence[Evaluated]) -> Iterator[tuple[str, ...]]:
    """A table under HEADINGS. Rows whose senders read the same stand together; all figures are of an evaluation's rows,
    counted from 1."""
    different: list[tuple[Leaked, ...]] = []
    for row in rows:
        if row.leakage and row.leakage not in different:
            different.append(row.leakage)
    for found in different:
        numbers = ", ".join(str(number) for number, row in enumerate(rows, 1) if row.leakage == found)
        yield from ((numbers, *_cells(told)) for told in found)


def _cells(told: Leaked) -> Iterator[str]:
    """One line; - where something was not measured."""
    figures = told.figures

    def shown(name: str, form: str = ".3f") -> str:
        value = figures.get(name)
        return "-" if value is None else f"{value:{form}}"

    yield from (told.phrasing, told.seen_by, str(told.n), shown("rewrites", ".2f"), shown("jaccard"), shown("rouge_l"))
    yield from (shown("copied_words", ".1f"), *(shown(name, ".1%") for name in ("copied_share", "entities_kept")))
    yield from (shown(name, ".1%") for name in ("exact_copies", "template_copies"))
    yield f"{shown('linked', '.1%')} ({shown('linked_chance', '.1%')})"
    yield f"{shown('linked_mrr')} ({shown('linked_chance_mrr')})"
    yield f"{shown('linked_in_group', '.1%')} ({shown('linked_in_group_chance', '.1%')})"
