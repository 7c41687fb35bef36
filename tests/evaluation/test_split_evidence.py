"""Paragraphs of data sets, dealt to the senders, and short answers scored by exact match and token F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import HOTPOTQA, MUSIQUE, SQUAD, STRATEGYQA, hotpot, write

from fedray.data.rows import Paragraph
from fedray.evaluation.check import check_evaluation
from fedray.evaluation.settings import build_evaluation
from fedray.federation.federation import Federation
from fedray.jobs import evaluate, federate
from fedray.questions.benchmarks import DISTRACTORS, dealt
from fedray.questions.replies import short
from fedray.questions.short_answers import normalized, token_f1
from fedray.questions.tasks import Question, load_task, texts_read
from fedray.reporting import report
from fedray.settings.check import check
from fedray.settings.settings import Settings, build
from fedray.types import FedrayError, Row

pytest.importorskip("datasets")
RECEIVER, FIRST, SECOND, THIRD = "qwen3-0.6b", "qwen2.5-0.5b", "llama-1b", "qwen2.5-1.5b"
QUIET = {"ray": {"enabled": False}, "tracking": {"enabled": False}, "gate": "open"}
FILES = {"hotpotqa": HOTPOTQA, "musique": MUSIQUE, "squad": SQUAD, "strategyqa": STRATEGYQA}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a copy of every data set, split as published."""
    for name, rows in FILES.items():
        split = "test" if name == "strategyqa" else "validation"
        write(tmp_path / "data" / name / f"{split}.jsonl", rows)
    return tmp_path / "data"


def settings(data: Path, name: str, *senders: str, **more: Any) -> Settings:
    split = "test" if name == "strategyqa" else "validation"
    task = {"name": name, "split": split, "limit": None, **more.pop("task", {})}
    made = build({"senders": list(senders), **QUIET, "task": task, "data": {"path": data}, **more})
    check(made)
    return made


def first(data: Path, name: str, *senders: str, **more: Any) -> Question:
    return min(load_task(settings(data, name, *senders, **more)), key=lambda question: question.id)


# -- dealing ----------------------------------------------------------------------------------------------------------


def test_two_senders_hold_one_supporting_paragraph_each(data: Path) -> None:
    held = first(data, "hotpotqa", FIRST, SECOND).evidence
    assert [[line.partition(":")[0] for line in held[name].splitlines()] for name in (FIRST, SECOND)] == [
        ["A Kiss for Corliss", "Kiss and Tell (1945 film)"],
        ["Meet Corliss Archer", "Shirley Temple"],
    ]


def test_one_sender_holds_all_of_them(data: Path) -> None:
    held = first(data, "hotpotqa", FIRST).evidence
    assert list(held) == [FIRST] and len(held[FIRST].splitlines()) == 4


def test_without_senders_nobody_holds_any(data: Path) -> None:
    assert first(data, "hotpotqa", protocol="standalone").evidence == {}


def test_further_senders_hold_what_distracts(data: Path) -> None:
    held = first(data, "musique", FIRST, SECOND, THIRD).evidence
    rests = {name: [x for x in text.splitlines() if "Green" in x or "spouse" in x] for name, text in held.items()}
    assert [len(rests[name]) for name in (FIRST, SECOND, THIRD)] == [1, 1, 0]
    assert [len(held[name].splitlines()) for name in (FIRST, SECOND, THIRD)] == [4, 4, 2]


def test_squad_is_held_by_the_first_sender(data: Path) -> None:
    assert list(first(data, "squad", SECOND, FIRST).evidence) == [SECOND]


def test_facts_are_dealt_one_by_one(data: Path) -> None:
    question = first(data, "strategyqa", FIRST, SECOND)
    assert question.evidence == {FIRST: "Perth lies in the south.", SECOND: "January is summer there."}
    assert (question.choices, question.answer, question.scoring) == (("yes", "no"), "no", "letters-generated")
    assert question.right(Row("No, it is not.")) and not question.right(Row("Yes."))


def test_so_many_distractors_and_no_more() -> None:
    noise = [Paragraph(f"n{i}", False) for i in range(18)]
    mixed = [*noise[:9], Paragraph("one"), *noise[9:], Paragraph("two")]
    held = dealt(mixed, ("a", "b"))
    assert {name: len(text.splitlines()) for name, text in held.items()} == {"a": 5, "b": 5}
    assert held["a"].endswith("\none") and held["b"].endswith("\ntwo"), "as they stood"
    assert DISTRACTORS == 8 and dealt(mixed, ()) == {} and dealt((), ("a",)) == {}
    three = dealt([Paragraph(str(i)) for i in range(3)], ("a", "b"))
    assert three == {"a": "0\n2", "b": "1"}
    assert dealt([Paragraph("0")], ("a", "b")) == {"a": "0"}


# -- scoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "target", "same", "f1"),
    [
        ("The Denver Broncos.", "denver broncos", True, 1.0),
        ("Denver", "Denver Broncos", False, 2 / 3),
        ("a  cat, an owl", "cat owl", True, 1.0),
        ("Theatre", "atre", False, 0.0),
        ("U.S.", "us", True, 1.0),
        ("zürich–nord", "Zürich–Nord", True, 1.0),
        ("new new york", "new york", False, 0.8),
        ("", "x", False, 0.0),
        ("the", "a", True, 1.0),
        ("北京", "北京", True, 1.0),
    ],
)
def test_short_answers_are_compared_as_squad_does(answer: str, target: str, same: bool, f1: float) -> None:
    assert (normalized(answer) == normalized(target)) is same and token_f1(answer, target) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Answer: Santa Clara", "Santa Clara"),
        ('"Answer: **Santa Clara**"', "Santa Clara"),
        ("It was in the south.\nThe final answer is Santa Clara.", "Santa Clara."),
        ("Answer: the answer is Santa Clara", "Santa Clara"),
        ("Answer:\n\nSanta Clara\nin California", "Santa Clara"),
        ("Santa Clara\nQuestion: who won?\nAnswer: Broncos", "Santa Clara"),
        ("<think>Answer: Denver</think>Santa Clara", "Santa Clara"),
        ("So it is \\boxed{Santa Clara}", "Santa Clara"),
        ("Answer: Denver\nAnswer: Santa Clara", "Santa Clara"),
        ("Mañana", "Mañana"),
        (" \n ", None),
        ("<think>Santa Clara", None),
    ],
)
def test_a_short_answer_is_read_off_a_reply(reply: str, answer: str | None) -> None:
    assert short(reply) == answer


def test_the_closest_right_answer_counts(data: Path) -> None:
    question = first(data, "squad", FIRST)
    assert (question.scoring, question.answer) == ("exact", "Santa Clara, California")
    assert question.right(Row("Answer: the Santa Clara.")) and not question.right(Row("California"))
    assert question.f1(Row("Santa Clara")) == 1.0 and question.f1(Row("in Santa Clara")) == pytest.approx(0.8)
    assert question.f1(Row("", failed=True)) == 0.0 and question.right(Row("", failed=True)) is False
    assert question.unread(Row("  ")) and not question.unread(Row("California"))
    assert first(data, "strategyqa", FIRST).f1(Row("yes")) is None


# -- runs -------------------------------------------------------------------------------------------------------------


def short_rows(data: Path) -> Path:
    """Bridge questions over facts of the tiny world, which its LLMs can read."""
    animals = [("dika", "red", "tari"), ("tari", "blue", "dika"), ("moru", "green", "dika"), ("sela", "white", "tari")]
    rows = [
        hotpot(
            number,
            answer=color,
            question=f"what is the color of the bird {name}?",
            supporting_facts={"title": ["one", "two"], "sent_id": [0, 0]},
            context={
                "title": ["one", "noise", "two"],
                "sentences": [[f"the bird is {name}."], [f"{other} is tall."], [f"the color of {name} is {color}."]],
            },
        )
        for number, (name, color, other) in enumerate(animals)
    ]
    return write(data / "hotpotqa" / "validation.jsonl", rows)


def test_a_federation_reads_each_paragraph_in_its_place_alone(data: Path, tmp_path: Path) -> None:
    """The task answers as a user's own file does that says who reads what, and otherwise than one that does not."""
    short_rows(data)
    task = settings(data, "hotpotqa", FIRST, SECOND, output=tmp_path / "task", task={"max_tokens": 8})
    questions = load_task(task)
    for name, says in ((FIRST, "the bird is"), (SECOND, "the color of")):
        texts = list(texts_read(questions, task, name))
        assert all(says in text.splitlines()[1] or says in text.splitlines()[2] for text in texts)
    assert not any("notes" in text for text in texts_read(questions, task, RECEIVER))
    write(tmp_path / "own.jsonl", [{"question": q.prompt, "evidence": dict(q.evidence)} for q in questions])
    write(tmp_path / "bare.jsonl", [{"question": q.prompt} for q in questions])
    found = {}
    for name in ("task", "own", "bare"):
        own = {"questions": tmp_path / f"{name}.jsonl", "task": replace(task.task, name="tiny")}
        run = replace(task, output=tmp_path / name, **({} if name == "task" else own))
        assert federate.run(run) == 0
        found[name] = report.read(tmp_path / name)
    texts = {name: [(a.question, short(a.federated or "")) for a in left.answers] for name, left in found.items()}
    alone = {name: [short(a.alone or "") for a in left.answers] for name, left in found.items()}
    assert texts["task"] == texts["own"] != texts["bare"] and alone["task"] == alone["bare"]
    left = found["task"]
    assert (left.scoring, left.found.n) == ("exact", 4) and left.found.pairing_gain is not None
    assert left.found.f1 is not None and left.found.f1_alone is not None and found["own"].found.f1 is None
    assert 0 <= (left.found.accuracy or 0) <= left.found.f1 <= 1


def test_a_summary_shows_exact_match_and_f1(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short_rows(data)
    assert federate.run(settings(data, "hotpotqa", FIRST, output=tmp_path / "out", task={"max_tokens": 4})) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Accuracy by exact" in shown and "token F1: alone " in shown


def test_rows_of_an_evaluation_have_both(data: Path, tmp_path: Path) -> None:
    short_rows(data)
    values = {
        "senders": [FIRST, SECOND],
        **QUIET,
        "task": {"name": "hotpotqa", "split": "validation", "max_tokens": 4},
        "data": {"path": data},
        "output": tmp_path / "out",
        "latency_requests": 0,
        "seeds": [0, 1],
        "blocks": {"both": {"protocol": ["c2c", "t2t"]}, "other": {"task": ["strategyqa"], "protocol": ["t2t"]}},
    }
    values["task"] |= {"split": "train"}
    for name in ("hotpotqa", "strategyqa"):
        (path,) = (data / name).iterdir()
        path.rename(path.with_name("train.jsonl"))
    made = build_evaluation(values)
    check_evaluation(made)
    assert evaluate.run(made) == 0
    rows = report.read(tmp_path / "out").evaluated
    table = (tmp_path / "out" / "table.md").read_text()
    for row in rows:
        exact = row.task == "hotpotqa"
        assert (row.found.f1 is not None, row.found.f1_alone is not None) == (exact, exact)
        assert row.found.n == (8 if exact else 4)
        if row.is_alone:
            assert row.found.f1 == row.found.f1_alone
    assert table.count(", F1 ") == 3 and "hotpotqa (exact)" in table
    again = build_evaluation(values)
    assert evaluate.run(again) == 0 and report.read(tmp_path / "out").evaluated == rows, "F1 is in the ledger"


@pytest.mark.parametrize(
    ("name", "senders", "more", "says"),
    [
        ("hotpotqa", (FIRST,), {"fusion": "mix"}, "evidence does not go with fusion=mix"),
        ("squad", (FIRST,), {"answer_all": True}, "answer_all=true goes with protocol=c2c, and without"),
        (
            "hotpotqa",
            (FIRST,),
            {"task": {"scoring": "letters"}},
            "scoring=letters does not go with task=hotpotqa: choose exact",
        ),
        ("strategyqa", (FIRST,), {"task": {"scoring": "exact"}}, "exact does not go with task=strategyqa"),
        ("hotpotqa", (FIRST,), {"task": {"split": "test"}}, "hotpotqa has no test split: choose train or validation"),
        ("squad", (FIRST,), {"task": {"shots": 2, "split": "validation"}}, "gives members texts of their own"),
    ],
)
def test_what_does_not_go_together(
    data: Path, name: str, senders: Sequence[str], more: dict[str, Any], says: str
) -> None:
    write(data / "squad" / "train.jsonl", SQUAD)
    with pytest.raises(FedrayError, match=says):
        federate.run(settings(data, name, *senders, **more), _nothing_loads)


def test_documents_that_are_too_long_are_refused_first(data: Path) -> None:
    write(data / "squad" / "validation.jsonl", [{**SQUAD[0], "context": "red " * 4000}])
    with pytest.raises(FedrayError, match=rf"the prompt plain_text/56be0 has \d+ tokens for {FIRST}, whose context"):
        federate.run(settings(data, "squad", FIRST), _nothing_loads)
    values = {**QUIET, "senders": [FIRST, SECOND], "data": {"path": data}, "latency_requests": 0}
    values |= {"task": {"name": "squad", "split": "validation"}, "blocks": {"one": {"senders": FIRST}}}
    with pytest.raises(FedrayError, match="whose context"):
        evaluate.run(build_evaluation(values), _nothing_loads)


def test_shots_without_senders_show_answers_as_they_are_asked_for(data: Path) -> None:
    write(data / "squad" / "train.jsonl", SQUAD[:1])
    question = first(data, "squad", protocol="standalone", task={"shots": 1})
    assert question.prompt.count('Reply with the answer in as few words as possible and nothing else: "Answer:') == 2
    assert '".\nAnswer: Santa Clara, California\n\n' in question.prompt
    assert question.right(Row("Answer: Santa Clara\n\nWhere is it?\n\nAnswer: Denver"))


def test_senders_are_not_ordered_by_the_questions_that_are_evaluated(data: Path) -> None:
    values = {**QUIET, "senders": [FIRST, SECOND], "task": {"name": "musique", "split": "validation"}}
    values |= {"data": {"path": data}, "blocks": {"a": {"senders": "prefixes"}}}
    with pytest.raises(FedrayError, match="musique has no other validation split to order the senders by: add order"):
        check_evaluation(build_evaluation(values))
    check_evaluation(build_evaluation({**values, "order": "given"}))


def test_copies_that_share_a_prompt_share_the_paragraphs(data: Path) -> None:
    made = settings(data, "hotpotqa", protocol="fedattn", gate="none", senders=None)
    (question, *_) = load_task(made)
    assert list(question.evidence) == [made.receiver]
    values = {**QUIET, "senders": [FIRST], "data": {"path": data}, "latency_requests": 0, "gate": "none"}
    values |= {"task": {"name": "hotpotqa", "split": "validation"}, "blocks": {"a": {"protocol": ["fedattn"]}}}
    with pytest.raises(FedrayError, match="protocol=fedattn cuts up what its receiver reads, and task=hotpotqa deals"):
        evaluate.run(build_evaluation(values), _nothing_loads)


def _nothing_loads(_: Settings) -> Federation:
    raise AssertionError("nothing is loaded")
