"""Load the questions of benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from fedray.data.catalogue import BENCHMARKS, benchmark
from fedray.data.rows import Item, Paragraph
from fedray.data.source import DataSource, read
from fedray.questions.scoring import flaw
from fedray.settings.settings import Settings
from fedray.types import FedrayError

Items = dict[str, tuple[str, Item]]  # id -> (group, question)
DISTRACTORS = 8  # of a question, as many as HotpotQA has: MuSiQue's 18 make documents of 2,500 tokens


def items(settings: Settings) -> Items:
    """Load the questions of the settings' task that have a public answer, in the data set's order.

    Raises FedrayError: no such split, another schema, offline, a split whose answers are not public.
    """
    return _load(settings)[0]


def source(settings: Settings) -> DataSource | None:
    """Find the source of the task's questions, if they are a data set's."""
    own = settings.prompt is not None or settings.questions is not None
    return None if own or settings.task.name not in BENCHMARKS else _load(settings)[1]


def dealt(paragraphs: Sequence[Paragraph], holders: Sequence[str]) -> dict[str, str]:
    """Deal a question's paragraphs one by one: holder -> its document, a line per paragraph as they stood.

    First those that the answer rests on, so that of two holders each has one of two; then up to DISTRACTORS others.
    """
    places = range(len(paragraphs))
    support = [place for place in places if paragraphs[place].supports]
    others = [place for place in places if not paragraphs[place].supports][:DISTRACTORS]
    held: dict[str, list[int]] = {}
    for round in (support, others):
        for turn, place in enumerate(round if holders else ()):
            held.setdefault(holders[turn % len(holders)], []).append(place)
    return {name: "\n".join(paragraphs[place].text for place in sorted(own)) for name, own in held.items()}


def _load(settings: Settings) -> tuple[Items, DataSource]:
    data, task = settings.data, settings.task
    return _read(task.name, task.split, task.scored_by, data.path, data.streaming, data.revision)


@lru_cache(maxsize=8)  # an evaluation asks for the same questions once per seed
def _read(
    name: str, split: str, scored_by: str, path: Path | None, streaming: bool, revision: str | None
) -> tuple[Items, DataSource]:
    data = benchmark(name)
    found, origin = read(data, split, path=path, streaming=streaming, revision=revision)
    answered = {key: row for key, row in found.items() if row[1].answered}
    if not answered:
        others = " or ".join(f"task.split={other}" for other in data.splits if other != split)
        raise FedrayError(f"the {split} split of {name} comes without answers to compare with: choose {others}")
    left_out = Counter(origin.left_out)
    left_out["no answer"] += len(found) - len(answered)
    scored = {key: row for key, row in answered.items() if not flaw(scored_by, row[1].choices, row[1].gold)}
    left_out[f"choices that {scored_by} cannot tell apart"] += len(answered) - len(scored)
    if not scored:
        raise FedrayError(f"no question of {name} can be scored by {scored_by}: choose another with task.scoring")
    return scored, replace(origin, rows=len(scored), left_out=dict(+left_out))
