"""Donors: distinct questions of one batch, never about the same entity, with such answers as were asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.questions.donors import arranged, batches, drawn
from fedray.questions.tasks import Question, load_task, mismatched
from fedray.settings.settings import Donors, Settings, TaskSettings
from fedray.types import FedrayError

COLORS = ("red", "blue", "green")


def ask(entity: str, value: int, attribute: str = "color", group: str = "bird") -> Question:
    prompt = f"which {attribute} has {entity}?"
    return Question(f"{entity}-{attribute}", prompt, COLORS, value, group, entity, attribute)


def settings(count: int | None, answer: str = "different", **more: int) -> Settings:
    return Settings(donors=Donors(count, answer), **more)  # pyright: ignore[reportArgumentType]


@st.composite
def tasks(draw: st.DrawFn) -> list[Question]:
    kinds = st.tuples(st.integers(0, 6), st.integers(0, 2), st.sampled_from(("color", "mood")), st.sampled_from("ab"))
    found = draw(st.lists(kinds, min_size=1, max_size=40, unique_by=lambda kind: (kind[0], kind[2])))
    return [ask(f"e{entity}", value, attribute, group) for entity, value, attribute, group in found]


@given(tasks(), st.sampled_from(("any", "different", "same")), st.integers(0, 3), st.integers(1, 16), st.integers(0, 9))
def test_donors_are_what_they_are_said_to_be(questions, answer, count, size, seed):
    asked = list(batches(arranged(questions, answer), size, answer=answer))
    assert sorted(q.id for batch in asked for q in batch) == sorted(q.id for q in questions)
    assert all(0 < len(batch) <= size for batch in asked)
    told = settings(count, answer, seed=seed)
    try:
        found = drawn(asked, told)
    except FedrayError as error:
        most = int(str(error).rpartition("donors.count=")[2])
        assert most < count and f"donors.count={count} is more than the {most} donors" in str(error)
        assert all(len(ways) == most for ways in drawn(asked, settings(most, answer, seed=seed)))
        return
    assert found == drawn(asked, told)
    for batch, ways in zip(asked, found, strict=True):
        assert len(ways) == count
        for b, question in enumerate(batch):
            donors = [batch[way[b]] for way in ways]
            assert len(set(donors)) == count
            assert all(d.entity != question.entity for d in donors)
            if answer != "any":
                assert all((d.answer == question.answer) is (answer == "same") for d in donors)


def test_batches_are_even_and_keep_equal_answers_together():
    questions = [ask(f"e{i}", i % 3) for i in range(10)]
    assert [len(batch) for batch in batches(questions, 4)] == [4, 3, 3]
    assert [len(batch) for batch in batches(questions[:9], 4)] == [3, 3, 3]
    kept = list(batches(arranged(questions, "same"), 8, answer="same"))
    assert [[q.answer for q in batch] for batch in kept] == [["blue"] * 3 + ["green"] * 3, ["red"] * 4]
    assert arranged(questions, "different") == questions


def test_other_answers_are_of_the_same_attribute_and_group_where_there_are_such():
    batch = [ask("a", 0), ask("b", 1), ask("c", 1, group="tree"), ask("d", 1, "mood"), ask("e", 0)]
    ways = drawn([batch], settings(2))[0]
    assert [batch[way[0]].entity for way in ways] == ["b", "c"]
    tiny = load_task(replace(settings(1), task=TaskSettings(limit=64)))
    by_prompt = {q.prompt: q for q in tiny}
    asked = list(batches(tiny, 32))
    donors = [batch[d] for batch, (way,) in zip(asked, drawn(asked, settings(1)), strict=True) for d in way]
    others = [by_prompt[prompt] for prompt in mismatched(tiny, 0)]
    for question, donor, other in zip(tiny, donors, others, strict=True):
        assert donor.answer != question.answer and donor.entity != question.entity
        assert other.attribute == question.attribute


def test_where_no_number_is_said_there_are_as_many_as_can_be():
    assert [len(ways) for ways in drawn([[ask("a", 0), ask("b", 1)]], settings(None))] == [1]
    assert drawn([[ask("a", 0)], [ask("b", 0), ask("c", 1)]], settings(None)) == [(), ()]
    assert drawn([[ask("a", 0)]], settings(0)) == [()]
    assert drawn([], settings(None)) == []


def test_more_donors_than_there_are_are_refused_by_name():
    with pytest.raises(FedrayError, match=r"donors\.count=3 is more than the 1 donors \(donors\.answer=different\)"):
        drawn([[ask("a", 0), ask("b", 1)]], settings(3))
    with pytest.raises(FedrayError, match=r"the 0 donors .* choose donors\.count=0"):
        drawn([[ask("a", 0)]], settings(1, "any"))


def test_equal_answers_are_of_the_same_group_where_there_are_such():
    """Who knows one of them knows the other."""
    batch = [ask("a", 0), ask("b", 0, group="tree"), ask("c", 0), ask("d", 0, group="tree"), ask("e", 0, group="gem")]
    for seed in range(4):
        (way,) = drawn([batch], settings(1, "same", seed=seed))[0]
        assert [batch[d].entity for d in way][:4] == ["c", "d", "a", "b"]
