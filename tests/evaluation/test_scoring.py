"""How answers are read: letters, texts, numbers."""

from __future__ import annotations

import pytest

from fedray.questions.scoring import asked, letter, number, offered, picked
from fedray.types import Row

CITIES = ("Paris", "London", "Rome", "Oslo")


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("The correct answer is B", 1),
        ("The correct answer is **A**.", 0),
        ("the answer is: (C)", 2),
        ("Answer: 'D'", 3),
        ("B", 1),
        ("B.", 1),
        ("(C) Rome", 2),
        ("A: Paris", 0),
        ("I think it is Rome.", 2),
        ("Paris or Rome", None),
        ("Romeo", None),
        ("答案是C。", 2),
        ("选B项", 1),
        ("A bird flies", None),
        ("Answer: A/B", None),
        ("the answer is a good one", None),
        ("E", None),
        ("", None),
    ],
)
def test_letters(reply: str, index: int | None) -> None:
    assert letter(reply, CITIES) == index
    assert picked("letters-generated", CITIES, Row(reply, choice=None)) == index


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("48+24 = 72\n#### 72", "72"),
        ("#### 1,250,000", "1250000"),
        ("It costs $3, so Answer: **$1,200.50**", "1200.5"),
        ("the answer is 7. Check: 3 + 4 = 7", "7"),
        ("first 3, then 4.0", "4"),
        ("\\boxed{-12}", "-12"),
        ("Answer: 10%", "10"),
        ("none", None),
    ],
)
def test_numbers(reply: str, value: str | None) -> None:
    assert number(reply) == value


def test_what_members_choose_from() -> None:
    assert offered("text", CITIES) == offered("text-normalized", CITIES) == CITIES
    assert offered("letters", CITIES[:3]) == tuple(f"The correct answer is {x}" for x in "ABC")
    assert offered("letters-generated", CITIES) is offered("number", None) is offered("text", None) is None


def test_long_texts_are_not_at_a_disadvantage_when_normalized() -> None:
    row = Row("b", choice=1, scores=(-12.0, -9.0))
    texts = ("a text of some length", "short")
    assert picked("text", texts, row) == 1 and picked("text-normalized", texts, row) == 0
    assert picked("text-normalized", texts, Row("")) is None, "a failed answer names none"


def test_prompts() -> None:
    prompt = asked("letters", "Where?", CITIES[:3])
    assert "Where?\n\nChoices:\nA. Paris\nB. London\nC. Rome\n" in prompt and "(A, B or C)" in prompt
    assert asked("letters-generated", "Where?", CITIES[:3]) == prompt
    assert asked("text", "Where?", CITIES) == "Where?" and "Answer: <number>" in asked("number", "How many?", ())
