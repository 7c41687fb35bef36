"""What senders read, as a row's figures and as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedray.evaluation.leakage_table import ALL, BASELINE, EVERY, HEADINGS, leaks, lines, summary
from fedray.privacy.leakage import POOLED
from fedray.questions.tasks import Question, load_task
from fedray.reporting.report import Evaluated, Leaked
from fedray.settings.settings import build
from fedray.world.world import PHRASINGS, UNSEEN_PHRASINGS, World, phrasing_of

WORLD = World(0)
FACTS = WORLD.split("test")[:40]
QUESTIONS = [Question(str(i), fact.ask(6 + i % 2), entity=fact.name) for i, fact in enumerate(FACTS)]
TAUGHT = tuple(fact.ask(0) for fact in FACTS)  # word for word a phrasing that the LLM was taught
OWN = tuple(f"say, {fact.name}: its {fact.attribute}?" for fact in FACTS)


def by_name(found: tuple[Leaked, ...], phrasing: str = ALL) -> dict[str, Leaked]:
    return {told.seen_by: told for told in found if told.phrasing == phrasing}


def test_one_rewrite_for_all_tells_everybody_the_same() -> None:
    found = leaks(QUESTIONS, {"a": TAUGHT, "b": TAUGHT})
    assert list(by_name(found)) == [EVERY, BASELINE]
    told, other = by_name(found)[EVERY].figures, by_name(found)[BASELINE].figures
    assert told["template_copies"] == told["entities_kept"] == 1 and told["rewrites"] == 1
    assert told["linked"] == 1 and told["linked_chance"] == 1 / 40
    assert other["template_copies"] == 1 and other["entities_kept"] == 0, "the rewrite of a question about another one"
    assert (other["jaccard"] or 0) < (told["jaccard"] or 0) and other["linked"] == 0


def test_another_rewrite_for_each_is_pooled() -> None:
    told = by_name(leaks(QUESTIONS, {"a": TAUGHT, "b": OWN}))
    assert list(told) == ["a", "b", POOLED, BASELINE]
    assert told["a"].figures["template_copies"] == 1 and told["b"].figures["template_copies"] == 0
    assert told[POOLED].figures["rewrites"] == 2
    for name in ("jaccard", "rouge_l", "words_kept", "copied_words"):
        assert told[POOLED].figures[name] >= max(told["a"].figures[name], told["b"].figures[name])  # pyright: ignore[reportOperatorIssue, reportArgumentType]


def test_every_known_phrasing_has_rows_of_its_own() -> None:
    found = leaks(QUESTIONS, {"a": TAUGHT})
    names = list(dict.fromkeys(told.phrasing for told in found))
    assert names[0] == ALL and sorted(names[1:]) == sorted(f"{PHRASINGS[i]} (held out)" for i in UNSEEN_PHRASINGS)
    assert [by_name(found, name)[EVERY].n for name in names] == [40, 20, 20]
    mine = [replace(question, prompt=f"hello, {question.prompt}") for question in QUESTIONS]
    assert {told.phrasing for told in leaks(mine, {"a": TAUGHT})} == {ALL}


def test_what_nobody_read_gives_nothing_away() -> None:
    told = by_name(leaks(QUESTIONS, {"a": (*TAUGHT[:10], *[""] * 30)}))[EVERY]
    assert told.n == 40 and told.figures["rewrites"] == told.figures["entities_kept"] == 1 / 4
    assert told.figures["template_copies"] == 1 / 4


def test_rows_that_read_the_same_stand_together(rows: list[Evaluated]) -> None:
    shared, distinct = leaks(QUESTIONS, {"a": TAUGHT, "b": TAUGHT}), leaks(QUESTIONS, {"a": TAUGHT, "b": OWN})
    told = list(lines([rows[0], *(replace(rows[0], leakage=leakage) for leakage in (shared, distinct, shared))]))
    assert [line[0] for line in told] == ["2, 4"] * 6 + ["3"] * 12
    assert all(len(line) == len(HEADINGS) and all(line) for line in told)
    assert told[0][HEADINGS.index("template copies")] == "100.0%"
    assert told[0][HEADINGS.index("linked (blind)")] == "100.0% (2.5%)"
    assert summary(replace(rows[0], leakage=distinct))["rewrites"] == 2 and summary(rows[0]) == {}


@pytest.fixture
def rows() -> list[Evaluated]:
    """A row of nothing: its leakage is what matters."""
    from test_results import FOUND

    return list(FOUND.rows())


def test_the_task_asks_in_held_out_phrasings_only() -> None:
    held_out = load_task(build({"task": {"name": "tiny-phrasings", "limit": None}}))
    assert {phrasing_of(q.prompt) for q in held_out} == set(UNSEEN_PHRASINGS)
    plain = load_task(build({"task": {"limit": None}}))
    assert {phrasing_of(q.prompt) for q in plain} == set(range(len(PHRASINGS)))
    assert {q.id for q in plain} == {q.id for q in held_out} and phrasing_of("what is it?") is None
