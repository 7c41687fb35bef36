"""Draw donors: the other questions whose messages a question is answered with, to see whether its own was read.

any: whatever else the task asks; different: with another answer, about the same attribute and in the same group where
there is one (what control=mismatched draws); same: with the same answer, and in the same group where there is one, so
that who knows one answer knows the other. Never about the same entity. Donors stand in the same batch, so that what was
sent is paired anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

from fedray.questions.tasks import Question
from fedray.settings.settings import Settings
from fedray.types import FedrayError

Ways = tuple[tuple[int, ...], ...]  # per donor the row of every question's


def arranged(questions: list[Question], answer: str) -> list[Question]:
    """Put questions side by side whose donors must be in one batch."""
    return sorted(questions, key=lambda q: (q.offered is None, q.answer or "")) if answer == "same" else questions


def batches(
    questions: Sequence[Question], size: int, free: int | None = None, answer: str = ""
) -> Iterator[list[Question]]:
    """Up to `size` questions to choose an answer from, or up to `free` to answer freely, at a time.

    As even as can be, so that no last one is left without donors; answer="same": equal answers stay together.
    """
    for freely, alike in groupby(questions, key=lambda q: q.offered is None):
        step = (free or size) if freely else size
        if answer != "same":
            yield from _even(list(alike), step)
            continue
        batch: list[Question] = []
        for _, equal in groupby(alike, key=lambda q: q.answer):
            for piece in _even(list(equal), step):
                if len(batch) + len(piece) > step:
                    yield batch
                    batch = []
                batch = [*batch, *piece]
        yield batch


def _even(rows: list[Question], step: int) -> Iterator[list[Question]]:
    count = -(-len(rows) // step)
    ends = [-(-len(rows) * i // count) for i in range(count + 1)]
    yield from (rows[start:end] for start, end in pairwise(ends))


def drawn(asked: Iterable[Sequence[Question]], settings: Settings) -> list[Ways]:
    """Draw per batch donors for every question: distinct ones, as many as the settings say.

    Where they say no number: the usual one, or as many as every question has. Raises FedrayError where there are fewer
    than they say.
    """
    how, answer, rng = settings.donors, settings.donors.answer, random.Random(f"donors-{settings.seed}")
    if how.count == 0:
        return [()] * len(list(asked))
    ranked = [[_ranked(b, batch, answer, rng) for b in range(len(batch))] for batch in asked]
    most = min((len(row) for batch in ranked for row in batch), default=0)
    count = min(settings.usual_donors, most) if how.count is None else how.count
    if count > most:
        raise FedrayError(
            f"donors.count={count} is more than the {most} donors (donors.answer={answer}) that some question has in "
            f"its batch: ask more questions (task.limit, task.batch_size), or choose donors.count={most}"
        )
    return [tuple(zip(*(row[:count] for row in batch), strict=True)) for batch in ranked]


def _ranked(b: int, batch: Sequence[Question], answer: str, rng: random.Random) -> list[int]:
    """The rows that may be a question's donors, those that suit best first and of equals in random order."""
    own = batch[b]
    fits = {
        "any": lambda q: True,
        "different": lambda q: q.answer is None or q.answer != own.answer,
        "same": lambda q: q.answer == own.answer,
    }[answer]
    rows = [
        d
        for d, q in enumerate(batch)
        if q.prompt != own.prompt and (not q.entity or q.entity != own.entity) and fits(q)
    ]
    rng.shuffle(rows)
    if answer == "any":
        return rows
    return sorted(rows, key=lambda d: (batch[d].attribute != own.attribute, batch[d].group != own.group))
