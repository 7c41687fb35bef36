"""Solved examples above each question: whose they are, how they are written, and what is read of the reply."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from samples import ARC, GSM8K, MMLU_REDUX, OPENBOOKQA, write

from fedray.evaluation.settings import build_evaluation
from fedray.federation.federation import Federation
from fedray.jobs import evaluate, federate
from fedray.questions.tasks import Question, load_task, scorings
from fedray.reporting import report as reports
from fedray.settings.check import check
from fedray.settings.settings import Settings, build
from fedray.types import FedrayError, Row

QUIET = {"ray": {"enabled": False}, "tracking": {"enabled": False}}
SETS = {"openbookqa": OPENBOOKQA, "arc-challenge": ARC, "gsm8k": GSM8K, "mmlu-redux": MMLU_REDUX}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in SETS.items():
        write(tmp_path / name / "test.jsonl", rows)
        if name != "mmlu-redux":
            write(tmp_path / name / "train.jsonl", [{**row, "id": f"train-{i}"} for i, row in enumerate(rows)])
    return tmp_path


def asked(data: Path | None, task: str, shots: int, **more: Any) -> list[Question]:
    settings = build({"task": {"name": task, "shots": shots, **more}, "data": {"path": data}})
    check(settings)
    return load_task(settings)


@pytest.mark.parametrize("scoring", ["text", "text-normalized", "letters", "letters-generated"])
@pytest.mark.parametrize("name", ["openbookqa", "arc-challenge"])
def test_examples_are_solved_as_the_scoring_asks(data: Path, name: str, scoring: str) -> None:
    bare = {q.id: q for q in asked(data, name, 0, scoring=scoring)}
    solved = {q.prompt: q for q in asked(data, name, 0, scoring=scoring, split="train")}
    questions = asked(data, name, 2, scoring=scoring)
    assert questions and len({q.prompt.removesuffix(bare[q.id].prompt) for q in questions}) == 1
    for question in questions:
        above = question.prompt.removesuffix(bare[question.id].prompt)
        assert above + bare[question.id].prompt == question.prompt and question.gold == bare[question.id].gold
        examples = [q for prompt, q in solved.items() if above.count(prompt)]
        assert len(examples) == 2
        for example in examples:
            assert example.gold is not None and example.choices is not None
            right = f"The correct answer is {'ABCDE'[example.gold]}" if "letters" in scoring else example.answer
            leads = "\nAnswer:" if example.prompt.endswith(("?", '<letter>".')) else ""
            assert f"{example.prompt}{leads} {right}\n\n" in above
            assert example.right(Row(right or "", choice=example.gold)), "an example's reply would be read as right"


def test_numbers_come_with_their_solutions(data: Path) -> None:
    (question, *_) = asked(data, "gsm8k", 1)
    assert "<<" in GSM8K[0]["answer"]
    solutions = []
    for row in GSM8K:
        solution, _, target = re.sub("<<.*?>>", "", row["answer"]).partition("####")
        solutions.append(f"Answer: <number>\n{solution.strip()}\nAnswer: {target.strip()}\n\n")
    assert sum(solution in question.prompt for solution in solutions) == 1 and "####" not in question.prompt


@pytest.mark.parametrize("name", ["tiny", "tiny-unasked", "tiny-phrasings", "tiny-joint", "tiny-tell"])
def test_the_tiny_world_has_training_entities(name: str) -> None:
    bare, questions = asked(None, name, 0, limit=20), asked(None, name, 3, limit=20)
    above = {q.prompt.removesuffix(b.prompt) for q, b in zip(questions, bare, strict=True)}
    (examples,) = above
    assert examples.count("\n\n") == 3 and not any(q.entity in examples.split() for q in bare if q.entity)
    assert [(q.id, q.choices, q.gold) for q in questions] == [(q.id, q.choices, q.gold) for q in bare]


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("mmlu-redux", {}, "task=mmlu-redux has no training split to take task.shots=2 from: .*openbookqa"),
        ("ceval", {}, "task=ceval has no training split"),
        ("openbookqa", {"shots": 9}, "task=openbookqa has 2 solved examples: choose task.shots=2 or fewer"),
        ("openbookqa", {"split": "train"}, "would give away questions of task.split=train"),
        ("tiny-evidence", {}, "task=tiny-evidence gives members texts of their own"),
        ("tiny-joint-halves", {}, "task=tiny-joint-halves gives members texts of their own"),
        ("tiny-unmet", {}, "task=tiny-unmet gives members texts of their own"),
        ("tiny", {"shots": -1}, "task.shots must be from 0 to 64"),
    ],
)
def test_what_has_no_examples_is_refused(data: Path, name: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        asked(data, name, **{"shots": 2, **more})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", [{"prompt": "why?"}, {"questions": "q.txt"}])
def test_questions_of_ones_own_have_none(tmp_path: Path, more: dict[str, Any]) -> None:
    (tmp_path / "q.txt").write_text("why?")
    more = {key: tmp_path / value if key == "questions" else value for key, value in more.items()}
    with pytest.raises(FedrayError, match="questions of your own have no training split"):
        check(build({"task": {"shots": 2}, **more}))
    with pytest.raises(FedrayError, match="rephrase rewrites a question"):
        check(build({"task": {"shots": 2}, "rephrase": "shared"}))


def test_what_is_too_long_with_its_examples_is_refused_first() -> None:
    def load(_: Settings) -> Federation:
        raise AssertionError("nothing is loaded")

    settings = build({**QUIET, "task": {"shots": 64, "limit": 4}})
    check(settings)
    with pytest.raises(FedrayError, match=r"the prompt \S+ has \d+ tokens for qwen3-0.6b, whose context"):
        federate.run(settings, load)


def test_a_base_llms_next_example_is_not_read() -> None:
    choices = ("red", "blue")
    letters = Question("q", "?", choices, 0, scoring="letters-generated", shots=1)
    text = "The correct answer is A\n\nAnswer this multiple-choice question.\n\nWhich?\nThe correct answer is B"
    assert letters.right(Row(text)) and letters.said(Row(text)) == "red"
    number = Question("q", "?", target="7", scoring="number", shots=1)
    assert number.right(Row("3+4 is 7.\n\nSo:\nAnswer: 7\n\nHow many?\n1+1.\nAnswer: 2"))
    assert number.right(Row("it is 7")) and not number.right(Row("Answer: 2\nAnswer: 7"))
    told = Question("q", "?", choices, 1, scoring="told", shots=2)
    assert told.right(Row(" blue\n\nwhat is red?\nred"))


def test_a_report_says_how_many(tmp_path: Path) -> None:
    settings = build({**QUIET, "senders": ["llama-1b"], "task": {"shots": 2, "limit": 4}, "output": tmp_path / "out"})
    check(settings)
    assert federate.run(settings) == 0
    left = reports.read(tmp_path / "out")
    assert left.scoring == "text, 2-shot" == scorings(settings, ()) and left.found.n == 4
    assert all(row.question.count("\n\n") == 2 for row in left.answers)


def test_an_evaluation_says_it_in_every_row(tmp_path: Path) -> None:
    given = {**QUIET, "senders": ["llama-1b"], "task": {"shots": 1, "limit": 4}, "latency_requests": 1}
    settings = build_evaluation({**given, "output": tmp_path / "out"})
    assert evaluate.run(settings) == 0
    left = reports.read(tmp_path / "out")
    assert {left.scoring, *(row.scoring for row in left.rows)} == {"text, 1-shot"} and len(left.rows) == 2
    with pytest.raises(FedrayError, match=r"\d+ tokens for qwen3-0.6b, whose context"):
        evaluate.run(build_evaluation({**given, "task": {"shots": 64, "limit": 4}, "output": tmp_path / "long"}))
