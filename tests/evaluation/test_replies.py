"""How replies are read. tests/fixtures/letter_replies.json and number_replies.json: forms of replies, by kind, with the
right reading beside them; null: none is stated, or several are.

The forms are those that public harnesses prompt for, or have reported as misread: lm-evaluation-harness, simple-evals,
inspect_ai, HELM, OpenCompass, C2C.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from fedray.data.numbers import plain_number
from fedray.data.rows import LETTERS
from fedray.questions import scoring
from fedray.questions.replies import letter, named, number
from fedray.types import Row

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BY_LETTER: list[dict[str, Any]] = json.loads((FIXTURES / "letter_replies.json").read_text(encoding="utf-8"))
BY_NUMBER: dict[str, dict[str, str | None]] = json.loads((FIXTURES / "number_replies.json").read_text(encoding="utf-8"))
THINGS = ("iron", "wood", "glass", "wool", "a bird")


@pytest.mark.parametrize("forms", BY_LETTER, ids=[forms["kind"] for forms in BY_LETTER])
def test_letters(forms: dict[str, Any]) -> None:
    read = {reply: letter(reply, forms["choices"]) for reply in forms["replies"]}
    assert {reply: None if i is None else LETTERS[i] for reply, i in read.items()} == forms["replies"]


@pytest.mark.parametrize("kind", BY_NUMBER)
def test_numbers(kind: str) -> None:
    assert {reply: number(reply) for reply in BY_NUMBER[kind]} == BY_NUMBER[kind]


CORPUS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("replies.json").read_text(encoding="utf-8")
)
MISREAD = {"Let's think step by step. Iron is a metal, so option A would carry the current. Glass is"}  # as A


def test_a_corpus_that_was_written_without_the_reader_in_sight() -> None:
    """In the forms of public harnesses and LLMs, each named; the few that are misread are listed."""
    letters = {e["reply"]: letter(e["reply"], e["choices"]) for e in CORPUS["letters"]}
    wrong = {e["reply"] for e in CORPUS["letters"] if letters[e["reply"]] != _place(e["letter"])}
    wrong |= {e["reply"] for e in CORPUS["numbers"] if number(e["reply"]) != e["number"]}
    assert wrong == MISREAD and sum(map(len, CORPUS.values())) == 227


def _place(label: str | None) -> int | None:
    return None if label is None else LETTERS.index(label)


SAID = (
    "The correct answer is {d}.",
    "Answer: {d}",
    "I choose {d}.",
    "{d} is the correct answer.",
    "{d}",
    "({L}) {t}",
    "The correct answer is {L}) {t}",
    "\\boxed{{{L}. {t}}}",
    "故选{d}。",
    "The answer is not {o} but {L}.",
)
DECORATED = ("{L}", "({L})", "<{L}>", "**{L}**", "_{L}_", "“{L}”", "${L}$")
BEFORE = (
    "",
    "Let me think. Iron rusts and glass melts.\n\n",
    "<think>The answer is {o}.</think>\n",
    "A. iron: it rusts\nB. wood: it floats\nC. glass: it melts\nD. wool: it shrinks\nE. a bird: it flies\n\n",
)
AFTER = ("", "\n\nOption {o} is incorrect because it does not fit.", "\n\nQuestion: what else?\nAnswer: {o}")


@pytest.mark.parametrize("said", SAID)
def test_what_is_said_around_an_answer_changes_nothing(said: str) -> None:
    for decorated, before, after in product(DECORATED if "{d}" in said else ("",), BEFORE, AFTER):
        for index, text in enumerate(THINGS):
            words = {"L": LETTERS[index], "t": text, "o": LETTERS[(index + 2) % 5]}
            reply = (before + said + after).format(d=decorated.format(**words), **words)
            assert letter(reply, THINGS) == index, reply


@pytest.mark.parametrize(
    "piece",
    [
        "[A",
        "(",
        "A is ",
        "not ",
        "wood ",
        "answer: 1 + ",
        "1,",
        "1 ",
        "\n",
        "答案",
        "<a>",
        "- ",
        "####",
        "A\n",
        "\\text{",
    ],
)
def test_a_reply_that_repeats_itself_is_read(piece: str) -> None:
    """Patterns that go back and forth would take minutes here."""
    reply = piece * (4000 // len(piece))
    assert letter(f"{reply}\n\nThe correct answer is B.", THINGS) == 1
    assert number(f"{reply}\n\nAnswer: 18") == "18"


def test_scoring_reads_by_these(reply: str = "<think>A</think>\nThe correct answer is **B) wood**.") -> None:
    assert scoring.letter is letter and scoring.number is number
    assert scoring.picked("letters-generated", THINGS, Row(reply)) == 1
    assert scoring.picked("told", THINGS, Row("it is made of wool")) == 3


@pytest.mark.parametrize(
    ("reply", "index"),
    [("it is wood.", 1), ("it is not wood", None), ("wood or iron", None), ("a bird", 4), ("not iron but wool", 3)],
)
def test_a_choice_is_named_by_its_text(reply: str, index: int | None) -> None:
    assert named(reply, THINGS) == index


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("18", "18"),
        ("18.00", "18"),
        ("1,250,000", "1250000"),
        ("$1,200.50", "1200.5"),
        ("\u22123", "-3"),
        ("- 5", "-5"),
        ("-0", "0"),
        ("1/2", "0.5"),
        ("-1 1/2", "-1.5"),
        ("\u00bd", "0.5"),
        ("\\frac{3}{4}", "0.75"),
        ("1/3", "1/3"),
        ("2/6", "1/3"),
        ("1e3", "1000"),
        ("2 x 10^3", "2000"),
        ("18%", "18"),
        ("\uff11\uff18", "18"),
        ("12345678901234567890123456789012345", "12345678901234567890123456789012345"),
        ("N/A", None),
        ("", None),
        ("18 apples", None),
        ("18 or 20", None),
        ("1,2", None),
        ("5 - 3", None),
        ("1/0", None),
        ("1e99999", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_have_one_plain_form(written: str, plain: str | None) -> None:
    assert plain_number(written) == plain
