"""Data sets as tasks: how their questions are put, asked of a federation, and named in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import ARC, CEVAL, GSM8K, MMLU_REDUX, OPENBOOKQA, redux, write

from fedray.evaluation.check import check_evaluation
from fedray.evaluation.settings import build_evaluation
from fedray.jobs import evaluate, federate
from fedray.questions import benchmarks
from fedray.questions.tasks import Question, load_task
from fedray.reporting import report
from fedray.settings.check import check
from fedray.settings.settings import TaskSettings, build
from fedray.types import FedrayError, Row

pytest.importorskip("datasets")
FILES = {
    "openbookqa": ("test.jsonl", OPENBOOKQA),
    "arc-challenge": ("test.parquet", ARC),
    "mmlu-redux": ("virology/test.parquet", MMLU_REDUX),
    "ceval": ("test/logic_test.csv", CEVAL),
    "gsm8k": ("test.jsonl", GSM8K),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a copy of every data set."""
    for name, (file, rows) in FILES.items():
        write(tmp_path / "data" / name / file, rows)
    return tmp_path / "data"


def load(data: Path, name: str, **task: Any) -> list[Question]:
    settings = build({"task": {"name": name, "limit": None, **task}, "data": {"path": data}})
    check(settings)
    return load_task(settings)


@pytest.mark.parametrize(("name", "n"), [("openbookqa", 2), ("arc-challenge", 4), ("mmlu-redux", 5), ("ceval", 2)])
def test_choices_are_put_as_each_scoring_wants_them(data: Path, name: str, n: int) -> None:
    published, text, letters = (load(data, name, scoring=how) for how in (None, "text", "letters"))
    assert len(published) == n and {q.scoring for q in published} == {"letters-generated"}
    for free, plain, lettered in zip(published, text, letters, strict=True):
        assert free.id == plain.id and free.prompt == lettered.prompt != plain.prompt and plain.prompt in free.prompt
        assert free.choices == plain.choices == lettered.choices and free.answer == plain.answer
        assert free.offered is None and plain.offered == plain.choices
        assert len(lettered.offered or ()) == len(lettered.choices or ()) != 0
        right = "ABCDE"[free.gold or 0]
        assert free.right(Row(f"The correct answer is {right}")) and not free.right(Row("The correct answer is Z"))
        assert free.said(Row("nothing to read here")) is None and plain.right(Row("", choice=plain.gold))


def test_gsm8k_is_answered_freely(data: Path) -> None:
    clips, house = sorted(load(data, "gsm8k"), key=lambda q: q.prompt, reverse=True)
    assert (clips.choices, clips.offered, clips.answer) == (None, None, "72") and house.answer == "1250000"
    assert clips.right(Row("48 + 24 is 72.\nAnswer: 72.0")) and not clips.right(Row("Answer: 73"))
    assert clips.right(Row("")) is False and clips.said(Row("many")) is None


def test_a_right_answer_that_is_no_number_is_left_out_and_counted(
    random_federation: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    golds = ("#### N/A", "#### 2", "#### \u22123", "#### 1/2", "#### 3 or 4")
    write(data / "gsm8k" / "test.jsonl", [{"question": f"{i}?", "answer": gold} for i, gold in enumerate(golds)])
    made = build(settings(random_federation, data, tmp_path / "out", "gsm8k"))
    assert sorted(question.answer or "" for question in load_task(made)) == ["-3", "0.5", "2"]
    assert federate.run(made) == 0
    left = report.read(tmp_path / "out")
    assert left.found.n == left.data[0].rows == 3 and all(answer.gold for answer in left.answers)
    assert left.data[0].left_out == {"answer is no number: N/A": 1, "answer is no number: 3 or 4": 1}
    assert left.found.unparseable <= 3 and left.found.accuracy is not None


def test_choices_that_a_scoring_cannot_tell_apart_are_left_out_and_counted(data: Path) -> None:
    twice = {**OPENBOOKQA[0], "id": "twice", "choices": {"text": ["a", "b", " a", "c"], "label": list("ABCD")}}
    write(data / "openbookqa" / "test.jsonl", [{**twice, "answerKey": "A"}, {**twice, "answerKey": "B"}, *OPENBOOKQA])
    for scoring, n in (("text", 3), ("text-normalized", 3), ("letters", 4), ("letters-generated", 4)):
        made = build({"task": {"name": "openbookqa", "limit": None, "scoring": scoring}, "data": {"path": data}})
        origin = benchmarks.source(made)
        assert origin and len(load_task(made)) == origin.rows == n
        assert origin.left_out == ({f"choices that {scoring} cannot tell apart": 1} if n == 3 else {})


def test_a_limit_takes_the_same_questions(data: Path) -> None:
    assert load(data, "arc-challenge", limit=3) == load(data, "arc-challenge")[:3]


def test_a_split_without_answers_names_one_that_has_some(data: Path) -> None:
    write(data / "ceval" / "test" / "logic_test.csv", [{**row, "answer": ""} for row in CEVAL])
    with pytest.raises(FedrayError, match=r"test split of ceval comes without answers.*task.split=validation"):
        load(data, "ceval", split="test", batch_size=31)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"task": {"name": "gsm8k", "split": "validation"}}, "gsm8k has no validation split: choose train or test"),
        ({"task": {"name": "gsm8k", "scoring": "letters"}}, "task.scoring=letters does not go with task=gsm8k: choose"),
        ({"task": {"name": "openbookqa", "scoring": "number"}}, "number does not go with task=openbookqa: choose text"),
        ({"task": {"name": "openbookqa", "scoring": "leters"}}, "unknown task.scoring 'leters' .*letters"),
        ({"task": {"name": "openbook"}}, "unknown task 'openbook' .*openbookqa"),
        ({"task": "openbookqa", "protocol": "ensemble"}, "ensemble needs likelihoods as they are"),
        ({"task": {"scoring": "text-normalized"}, "answer_all": True, "vote": True}, "vote=true counts choices"),
        ({"task": "openbookqa", "gate": "oracle"}, "gate=oracle must be told who knows"),
        ({"data": {"path": "nowhere"}}, "data.path=nowhere does not exist"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        check(build(values))


def test_senders_cannot_be_ordered_without_a_validation_split() -> None:
    values = {"task": "gsm8k", "blocks": {"a": {"senders": "prefixes"}}}
    with pytest.raises(FedrayError, match="gsm8k has no validation split to order the senders by: add order=given"):
        check_evaluation(build_evaluation(values))
    check_evaluation(build_evaluation({**values, "order": "given"}))


def settings(federation: dict[str, Any], data: Path, folder: Path, name: str, **values: Any) -> dict[str, Any]:
    task = {"name": name, "limit": None, "max_tokens": 6, **values.pop("task", {})}
    return {
        **federation,
        "task": task,
        "data": {"path": data},
        "output": folder,
        "ray": False,
        "tracking": False,
        **values,
    }


@pytest.mark.parametrize(
    ("name", "scoring", "shown"), [("openbookqa", "text-normalized", True), ("gsm8k", None, False)]
)
def test_a_federation_is_asked_and_the_report_says_how(
    random_federation: dict[str, Any], data: Path, tmp_path: Path, name: str, scoring: str | None, shown: bool
) -> None:
    made = build(settings(random_federation, data, tmp_path / "out", name, task={"scoring": scoring}))
    check(made)
    assert federate.run(made) == 0
    left = report.read(tmp_path / "out")
    assert (left.task, left.scoring, left.found.n) == (name, scoring or "number", 2) and left.found.accuracy is not None
    (source,) = left.data
    assert (source.name, source.split, source.rows, source.repo) == (name, "test", 2, None) and len(source.hash) == 16
    assert all(bool(answer.choices) is shown and answer.gold for answer in left.answers)


def test_an_evaluation_of_several_data_sets(random_federation: dict[str, Any], data: Path, tmp_path: Path) -> None:
    values = settings(random_federation, data, tmp_path / "out", "openbookqa", task={"scoring": "letters"})
    made = build_evaluation(
        {
            **values,
            "latency_requests": 0,
            "blocks": {"both": {"senders": "all", "task": ["openbookqa", "arc-challenge"]}},
        }
    )
    check_evaluation(made)
    assert evaluate.run(made) == 0
    left = report.read(tmp_path / "out")
    assert [(row.task, row.scoring, row.found.n) for row in left.rows if row.who.senders] == [
        ("openbookqa", "letters", 2),
        ("arc-challenge", "letters", 4),
    ]
    assert [(source.name, source.rows) for source in left.data] == [("openbookqa", 2), ("arc-challenge", 4)]
    assert "arc-challenge (letters)" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("split", "name", "other", "asked"),
    [
        ("test", "openbookqa", "ceval", "validation"),  # its tests have no answers
        ("test", "gsm8k", "squad", "validation"),  # it has no tests
        ("test", "ceval", "ceval", "test"),  # the run's own task is asked as it is said
        ("test", "ceval", "arc-challenge", "test"),
        ("test", "tiny", "strategyqa", "test"),
        ("test", "hotpotqa", "tiny", "test"),
        ("validation", "openbookqa", "ceval", "validation"),
        ("train", "openbookqa", "gsm8k", "train"),
    ],
)
def test_a_task_among_others_is_asked_where_its_answers_are(split: Any, name: Any, other: str, asked: str) -> None:
    found = TaskSettings(name=name, split=split, limit=7).of(other)
    assert (found.name, found.split, found.limit) == (other, asked, 7)


def test_an_evaluation_of_numbers_of_ones_own(random_federation: dict[str, Any], data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", [*GSM8K, {"question": "half?", "answer": "#### 1/2"}])
    values = settings(random_federation, data, tmp_path / "out", "tiny", questions=file, latency_requests=0)
    made = build_evaluation({**values, "order": "given", "blocks": {"all": {"senders": "all"}}})
    check_evaluation(made)
    assert evaluate.run(made) == 0
    left = report.read(tmp_path / "out")
    assert left.scoring == "number" and {(row.scoring, row.found.n) for row in left.evaluated} == {("number", 3)}


def test_questions_too_long_for_a_member_are_found_before_it_loads(
    random_federation: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    write(data / "mmlu-redux" / "virology" / "test.parquet", [redux("why? " * 400, 1)])
    made = build(settings(random_federation, data, tmp_path / "out", "mmlu-redux"))
    with pytest.raises(FedrayError, match=r"the prompt virology/1 has .* tokens for qwen3-0.6b"):
        federate.run(made)
    assert not (tmp_path / "out").exists() or not json.loads((tmp_path / "out" / "report.json").read_text())
