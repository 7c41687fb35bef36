from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedray.questions.tasks import Question, for_task, load_task, mismatched, read_questions
from fedray.settings.settings import Settings, TaskSettings, ZooSettings
from fedray.types import FedrayError, Row
from fedray.world.world import EXPERTS, UNSEEN_ATTRIBUTE, UNSEEN_VALUES, World

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
    unseen = task("tiny-unasked")
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


# -- files of one's own ---------------------------------------------------------------------------------------------

ARC_FIRST = {
    "id": "x1",
    "question": {"stem": "what is red?", "choices": [{"text": "blood", "label": "1"}, {"text": "grass", "label": "2"}]},
    "answerKey": "1",
}
MMLU = {"question": "what is red?", "subject": "color", "choices": ["sky", "grass", "blood", "milk"], "answer": 2}
CEVAL = {"id": 0, "question": "what is red?", "A": "sky", "B": "grass", "C": "blood", "D": "007", "answer": "C"}
GSM8K = {"question": "how many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
OBQA_MORE = {"fact1": "x", "humanScore": 1.0, "clarity": 1.6, "turkIdAnonymized": "b356d338b7"}
REDUX = {"error_type": "ok", "source": None, "correct_answer": None, "potential_reason": "", "domain": "color"}


def own(folder: Path, *lines: object, name: str = "q.jsonl", how: str = "text") -> list[Question]:
    path = folder / name
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return read_questions(path, how)


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
    ("row", "choices", "answer"),
    [
        ({**ROW, **OBQA_MORE}, 2, "plants sprouting"),
        ({**ROW, "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, 2, "b"),
        ({**ROW, "choices": {"text": ["a", "b"], "label": [1, 2]}, "answerKey": 2}, 2, "b"),
        (ARC_FIRST, 2, "blood"),
        (MMLU, 4, "blood"),
        ({**MMLU, "answer": "D"}, 4, "milk"),
        ({**MMLU, "answer": 0}, 4, "sky"),
        ({**MMLU, "answer": 3.0}, 4, "milk"),
        ({**MMLU, "choices": [1, 1.5, "1e3", "007"], "answer": "D"}, 4, "007"),
        ({**MMLU, **REDUX}, 4, "blood"),
        ({**MMLU, **REDUX, "error_type": "wrong_groundtruth", "correct_answer": "B"}, 4, "grass"),
        ({**CEVAL, "explanation": "blood is"}, 4, "blood"),
        ({**CEVAL, "C": "None", "D": ""}, 3, "None"),
        ({**CEVAL, "E": "rust", "answer": " E "}, 5, "rust"),
        ({**CEVAL, "answer": ""}, 4, None),
        (GSM8K, 0, "7"),
        ({**GSM8K, "answer": "#### \u22123"}, 0, "\u22123"),
        ({"question_stem": "why?", "domain": "x", "id": 7}, 0, None),
        ({"question": "why?", "choices": {"text": [], "label": []}, "answerKey": "", "answer": None}, 0, None),
    ],
)
def test_rows_are_read_as_the_data_sets_write_them(
    tmp_path: Path, row: dict[str, object], choices: int, answer: str | None
) -> None:
    (question,) = own(tmp_path, row)
    assert (len(question.choices or ()), question.answer) == (choices, answer)


@pytest.mark.parametrize(
    "name",
    "Answers answer Answer target label labels gold gold_label correct correct_answer correctAnswer "
    "solution rightAnswer options option_a optionA choice1 endings ending0 distractor1 incorrect_answers "
    "mc1_targets A b Z opa cop sol1 ground_truth expected_output response reference answer_index "
    "is_correct key final_answer 答案 choices answerKey ideal best_option".split(),
)
def test_a_column_that_would_be_ignored_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FedrayError, match=r"q\.jsonl, line 2: ") as error:
        own(tmp_path, {"question": "what?", name: ""}, {"question": "what?", name: "red"})
    wrong, remedy = str(error.value).split("; read are ")
    assert name in wrong and "answerKey" in remedy and "\n" not in remedy


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "answer": "B"}, "'answer' looks like"),
        ({**MMLU, "answerKey": "C"}, "'answerKey' looks like"),
        ({**MMLU, "correct_answer": "B"}, "'correct_answer' looks like"),
        ({**CEVAL, "choices": ["a", "b"]}, "'A' looks like"),
        ({**CEVAL, "E": "", "F": "rust"}, r"cannot be asked and scored \(an empty question or choice\)"),
        ({**GSM8K, "answer_number": 7}, "'answer_number' looks like"),
        ({"question": "a?", "question_stem": "b?"}, 'both "question" and "question_stem"'),
        ({"question": "a?", "evidence": "x"}, """evidence is 'x': write who reads which text, as in {"receiver": """),
        ({"question": "a?", "evidence": ["x"]}, "evidence is a list: write who reads which text"),
        ({"question": "a?", "evidence": {"receiver": ["x"]}}, "evidence of receiver is a list and no text"),
        (
            {"question": "a?", "documents": ["x"]},
            "'documents' is not read: .*evidence {.*evidence.NAME=",
        ),
        ({"question": "a?", "context": "x"}, "'context' is not read: .*evidence.NAME="),
        ({"question": "a?", "evidnce": {"receiver": "x"}}, "'evidnce' is not read .did you mean evidence"),
        ({"question": "a?", "domian": "x"}, "'domian' is not read .did you mean domain.*: rename it or leave it out"),
        ({"question": "a?", "explanation": "x"}, "column 'explanation' is not read: rename it or leave it out"),
        ({**ROW, "explanation": "x"}, "column 'explanation' is not read"),
        ({**MMLU, "fact1": "x"}, "column 'fact1' is not read"),
        ({**CEVAL, "hint": "x"}, "column 'hint' is not read"),
        ({**GSM8K, "Entity": "x"}, "'Entity' is not read .did you mean entity"),
        ({"Question": "a?", "Answer": "b"}, "asks nothing.*Question, Answer"),
        ({"question": ["a?"]}, "is a list and no text"),
        ({"question": True}, "is True and no text"),
        ({**GSM8K, "answer": "7"}, 'no "#### number" at the end'),
        ({**GSM8K, "answer": ["7"]}, "is a list and no text"),
        ({**GSM8K, "answer": "#### N/A"}, r"cannot be asked and scored \(answer is no number: N/A\)"),
        ({**GSM8K, "answer": "#### 18 or 20"}, "answer is no number: 18 or 20"),
        ({**GSM8K, "answer": "#### 18 apples"}, "answer is no number: 18 apples"),
        ({**GSM8K, "answer": "#### "}, 'no "#### number" at the end'),
        ({**ROW, "answerKey": "C"}, "the answer 'C' is none of A, B"),
        (
            {**ROW, "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"},
            "'A' is more than one of A, A",
        ),
        ({**ROW, "choices": {"text": ["a"], "label": ["A"]}}, "two or more"),
        ({**ROW, "choices": {"text": ["a", "b", "c"], "label": ["A", "B"]}}, "as many labels"),
        ({**ROW, "choices": {"text": "ab", "label": "AB"}}, "text is 'ab'"),
        ({**ROW, "choices": {"text": ["a", ["b"]], "label": ["A", "B"]}}, "is a list and no text"),
        ({**ROW, "choices": {"text": ["a", ""], "label": ["A", "B"]}}, "an empty question or choice"),
        ({**MMLU, "choices": ["a"]}, "two or more"),
        ({**MMLU, "choices": "ab"}, "choices is 'ab'"),
        ({**MMLU, "answer": 4}, "the answer '4' is none of 0, 1, 2, 3 and of A, B, C, D"),
        ({**MMLU, "answer": -1}, "the answer '-1' is none of"),
        ({**MMLU, "answer": "2"}, "the answer '2' is none of"),
        ({**MMLU, "answer": "blood"}, "the answer 'blood' is none of"),
        ({**MMLU, "answer": True}, "is True and no text"),
        ({**MMLU, "choices": ["O", "A", "B", "AB"], "answer": "A"}, "the letter of one choice and the text of another"),
        ({**MMLU, **REDUX, "error_type": "expert"}, r"cannot be asked and scored \(expert\)"),
        ({**CEVAL, "answer": "blood"}, "the answer 'blood' is none of A, B, C, D"),
        ({**CEVAL, "answer": 2}, "the answer '2' is none of A, B, C, D"),
        ({"question": " "}, "asks nothing"),
        ([1], "no row with named columns"),
    ],
)
def test_what_is_wrong_with_a_row_is_one_sentence(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        own(tmp_path, {"question": "fine?"}, row)
    assert str(error.value).startswith(f"{tmp_path / 'q.jsonl'}, line 2") and "\n" not in str(error.value)


def test_equal_choices_are_refused_where_only_their_texts_are_scored(tmp_path: Path) -> None:
    row = {**MMLU, "choices": ["red", "green", " red", "white"], "answer": 2}
    with pytest.raises(FedrayError, match=r"q.jsonl, line 1 has two equal choices.*task.scoring=letters"):
        own(tmp_path, row)
    with pytest.raises(FedrayError, match="two equal choices"):
        own(tmp_path, {**row, "choices": ["\u00e9", "green", "e\u0301", "white"]}, how="text-normalized")
    assert own(tmp_path, row, how="letters")[0].gold == own(tmp_path, row, how="letters-generated")[0].gold == 2
    assert own(tmp_path, {**row, "answer": 1})[0].answer == "green", "the wrong ones may be equal"
    assert own(tmp_path, {**row, "choices": ["Aa", "AA", "aa", "b"]})[0].answer == "aa", "texts differ by their case"


@pytest.mark.parametrize("scoring", ["letters", "letters-generated"])
def test_letters_end_at_z(tmp_path: Path, scoring: str) -> None:
    def row(n: int) -> dict[str, object]:
        labels = [str(i) for i in range(n)]
        return {**ROW, "choices": {"text": [f"c{i}" for i in labels], "label": labels}, "answerKey": labels[-1]}

    own(tmp_path, row(26))
    settings = Settings(questions=tmp_path / "q.jsonl", task=TaskSettings(scoring=scoring))  # pyright: ignore[reportArgumentType]
    (question,) = load_task(settings)
    assert "Z. c25" in question.prompt and question.prompt.count("\n") > 26
    assert question.right(Row("The correct answer is Z", choice=25)) is True
    with pytest.raises(FedrayError, match=r"line 1 has 27 choices, and letters end at Z: .*task.scoring=text"):
        own(tmp_path, row(27), how=scoring)
    assert len(own(tmp_path, row(27))[0].choices or ()) == 27


def test_numbers_are_asked_for_and_read_as_numbers(tmp_path: Path) -> None:
    own(tmp_path, {**GSM8K, "answer": "#### \u22123"}, {**GSM8K, "answer": "#### 1/2"}, MMLU, {"question": "why?"})
    settings = Settings(questions=tmp_path / "q.jsonl")
    three, half, red, free = load_task(settings)
    assert (three.scoring, three.answer, half.answer) == ("number", "-3", "0.5") and "Answer: <number>" in three.prompt
    assert three.right(Row("so Answer: -3")) and not three.right(Row("3")) and half.right(Row("Answer: 0.50"))
    assert (red.scoring, red.prompt, free.right(Row("because"))) == ("text", MMLU["question"], None)
    assert for_task(settings).generation.max_tokens == 512, "a number is reasoned for"
    own(tmp_path, MMLU)
    assert for_task(settings).generation.max_tokens == settings.generation.max_tokens
    assert for_task(replace(settings, questions=tmp_path / "none.txt")).generation == settings.generation


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", " \n", "holds no question"),
        ("a.xlsx", "x", "unknown kind: name it .txt, .parquet"),
        ("a.csv", "question\n", "holds no question"),
        ("a.jsonl", '{"question": "x"}\n{"question": ', "line 2 is not JSON"),
        ("a.jsonl", '\n{"question": " "}', 'line 2: this asks nothing.*"question"'),
        ("a.json", '{"question": "x"}', "must be a list"),
        ("a.json", '[{"question": "x"}, 1]', "row 2: this is no row"),
        ("a.json", '[{"question": "x", "answerKey": "A"}]', "row 1: column 'answerKey'"),
        ("a.csv", "question,answer\nwhat?,red\n", "line 2: answer has no"),
        ("a.csv", '"question","A","B"\n"why,\nand how?",x,y\nwhat?,,b\n', "line 4 cannot be asked and scored"),
    ],
)
def test_a_bad_file_is_named_with_line_and_remedy(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FedrayError, match=says) as error:
        read_questions(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


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
