from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedray.evaluation.tasks import Question, load_task, mismatched, read_questions
from fedray.settings import Settings, TaskSettings, ZooSettings
from fedray.types import FedrayError
from fedray.zoo.world import EXPERTS, UNSEEN_ATTRIBUTE, UNSEEN_VALUES, World

ROW = {
    "id": "7-980",
    "question_stem": "The sun is responsible for",
    "choices": {"text": ["puppies learning", "plants sprouting"], "label": ["A", "B"]},
    "answerKey": "B",
}


def task(name: str = "tiny", limit: int | None = None, **changes: object) -> list[Question]:
    settings = Settings(task=replace(TaskSettings(limit=limit), name=name))
    return load_task(replace(settings, **changes))  # pyright: ignore[reportArgumentType]


def test_tiny_asks_all_held_out_facts_that_fusing_may_have_seen() -> None:
    questions = task()
    facts = {f"{f.domain}-{f.name}-{f.attribute}": f for f in World(0).split("test")}
    assert len(questions) >= 1200 and len({q.id for q in questions}) == len(questions)
    for question in questions:
        fact = facts[question.id]
        assert question.answer == fact.value and len(set(question.choices or ())) == 4
        assert (question.group, question.entity, question.attribute) == (fact.domain, fact.name, fact.attribute)
        assert fact.attribute != UNSEEN_ATTRIBUTE and (fact.attribute, fact.value) not in UNSEEN_VALUES
    unseen = task("tiny-unseen")
    assert len(questions) + len(unseen) == len(facts) and not {q.id for q in questions} & {q.id for q in unseen}


def test_a_limit_takes_the_same_mixed_questions_whatever_the_seed() -> None:
    some = task(limit=100)
    assert some == task(limit=200)[:100] == task(limit=100, seed=7)
    assert {q.group for q in some} == {"bird", "star", "gem", "tree"} and len({q.gold for q in some}) == 4


def test_a_zoo_says_which_world_it_knows(tmp_path: Path) -> None:
    (tmp_path / "world.json").write_text('{"seed": 5}')
    questions = task(zoo=ZooSettings(path=tmp_path))
    assert {q.entity for q in questions} <= {f.name for f in World(5).split("test")}
    (tmp_path / "world.json").write_text("{}")
    with pytest.raises(FedrayError, match="rebuild the zoo"):
        task(zoo=ZooSettings(path=tmp_path))


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(FedrayError, match="unknown task 'tyni'"):
        task("tyni")


def test_mismatched_asks_the_same_about_another_entity_with_another_answer() -> None:
    questions = task(limit=200)
    other = {q.prompt: q for q in questions}
    read = [other[prompt] for prompt in mismatched(questions, 0)]
    for question, found in zip(questions, read, strict=True):
        assert found.attribute == question.attribute and found.group == question.group
        assert found.entity != question.entity and found.answer != question.answer
    assert mismatched(questions, 0) != mismatched(questions, 1)
    assert mismatched(questions, 0) == mismatched(questions, 0)


def test_mismatched_takes_what_there_is() -> None:
    def ask(entity: str, attribute: str, gold: int, group: str = "bird") -> Question:
        return Question(entity, f"{attribute} of {entity}?", ("red", "blue"), gold, group, entity, attribute)

    red, other_group, same_answer = ask("a", "color", 0), ask("b", "color", 1, "gem"), ask("c", "color", 0)
    assert mismatched([red, same_answer, other_group], 0)[0] == other_group.prompt
    assert mismatched([red, ask("a", "size", 1), same_answer], 0)[0] == same_answer.prompt
    assert mismatched([red, ask("d", "size", 0)], 0)[0] == "size of d?"
    with pytest.raises(FedrayError, match="ask more questions"):
        mismatched([red], 0)


def test_questions_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffwhat is it?\n\n  and why? \r\n", encoding="utf-8")
    assert load_task(Settings(questions=path, task=TaskSettings(limit=1))) == [
        Question("mine.txt:1", "what is it?"),
        Question("mine.txt:3", "and why?"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_questions_in_the_schema_of_openbookqa(tmp_path: Path, suffix: str) -> None:
    rows = [ROW, {"question": "free\u2028form?"}, {**ROW, "answerKey": None, "domain": "physics"}]
    path = tmp_path / f"mine{suffix}"
    text = json.dumps(rows) if suffix == ".json" else "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text(text, encoding="utf-8")
    chosen, free, ungraded = read_questions(path)
    assert (chosen.prompt, chosen.answer, chosen.id) == (ROW["question_stem"], "plants sprouting", "7-980")
    assert (free.prompt, free.choices, free.gold) == ("free\u2028form?", None, None)
    assert ungraded.choices == chosen.choices and ungraded.gold is None and ungraded.group == "physics"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", " \n", "holds no question"),
        ("a.csv", "x", "unknown kind"),
        ("a.jsonl", '{"question": "x"}\n{"question": ', "line 2 is not JSON"),
        ("a.jsonl", '\n{"question": " "}', 'line 2 asks nothing.*"question"'),
        ("a.jsonl", "[1]", "line 1 asks nothing"),
        ("a.json", '{"question": "x"}', "must be a list"),
        ("a.json", '[{"question": "x", "choices": ["a"]}]', 'row 1 has "choices" of the wrong form'),
        ("a.json", '[{"question": "x", "choices": {"text": ["a"], "label": ["A"]}}]', "two or more"),
        ("a.json", '[{"question": "x", "answerKey": "A"}]', 'no "choices"'),
        ("a.json", json.dumps([{**ROW, "answerKey": "C"}]), "answerKey 'C': choose one of its labels, A, B"),
    ],
)
def test_a_bad_file_is_named_with_line_and_remedy(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FedrayError, match=says) as error:
        read_questions(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(FedrayError, match="cannot be read"):
        read_questions(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedrayError, match="cannot be read"):
        read_questions(tmp_path / "b.txt")


def test_joint_questions_need_two_domains() -> None:
    world, known = World(0), {}
    for fact in world.facts:
        known[fact.domain, fact.name, fact.attribute] = fact.value
    questions = task("tiny-joint-halves", limit=None)
    assert sum(q.answer == "yes" for q in questions) == len(questions) / 2
    for question in questions:
        one, two = (part.split() for part in question.prompt.removeprefix("do the ").split(" and the "))
        values = {known[domain, name, question.attribute] for domain, name in (one, two[:2])}
        assert (len(values) == 1) == (question.answer == "yes")
        assert len(question.experts) == 2 and set(question.asked) == set(question.experts)
        for name, half in question.asked.items():
            ((own, _),) = [(d, e) for d, e in (one, two[:2]) if EXPERTS[d] == (name,)]
            assert own in half
    assert all(not q.asked for q in task("tiny-joint"))


def test_evidence_answers_and_memory_does_not() -> None:
    questions = task("tiny-evidence", limit=None)
    for question in questions:
        (holder,) = question.experts
        assert set(question.evidence) == {name for names in EXPERTS.values() for name in names}
        fact = f"the {question.attribute} of the {question.group} {question.entity} is {question.answer}."
        assert [name for name, text in question.evidence.items() if fact in text] == [holder]
        assert not any(question.entity in text.split() for n, text in question.evidence.items() if n != holder)
    real = {(f.name, f.attribute): f.value for f in World(0).facts}
    same = sum(real[q.entity, q.attribute] == q.answer for q in questions)
    assert same < len(questions) / 4, "values are drawn anew"
    pooled = task("tiny-evidence-pooled", limit=None)
    for question, alone in zip(questions, pooled, strict=True):
        assert set(alone.evidence) == {"qwen3-0.6b"}
        assert set(alone.evidence["qwen3-0.6b"].splitlines()) == set(question.evidence.values())
