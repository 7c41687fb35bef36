"""Questions to ask a federation: the tiny world's held-out facts, or a file of one's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard, get_args

from fedray.data.catalogue import BENCHMARKS
from fedray.evaluation import benchmarks, scoring
from fedray.evaluation.metrics import is_right
from fedray.llm.catalogue import EMBEDDED, NAMES
from fedray.settings import Settings, Task
from fedray.types import FedrayError, Plan, Row
from fedray.zoo.questions import evidence, joint, told
from fedray.zoo.world import UNSEEN_PHRASINGS, World, seed_of, seen_in_fusing

TASKS = get_args(Task)
JOINT = 1000  # questions about two facts; there are many more
_SEED = 0  # of the order: a limit takes questions about the same facts, however they are phrased


@dataclass(frozen=True, slots=True)
class Question:
    """One question. gold: index into choices; target: the right answer of a question that is answered freely; scoring:
    how an answer is read (scoring.py); group: what figures are split by (a domain, or ""); experts: the members
    that know what it asks, where that is known (all of them are needed); asked, evidence: member -> what it reads
    instead of the prompt, and the document that it alone holds."""

    id: str
    prompt: str
    choices: tuple[str, ...] | None = None  # None: answered freely
    gold: int | None = None
    group: str = ""
    entity: str = ""
    attribute: str = ""
    experts: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict, hash=False)
    evidence: Mapping[str, str] = field(default_factory=dict, hash=False)
    target: str | None = None
    scoring: str = "text"

    @property
    def answer(self) -> str | None:
        """The right answer's text, where it is known."""
        return self.choices[self.gold] if self.choices and self.gold is not None else self.target

    @property
    def offered(self) -> tuple[str, ...] | None:
        """The texts that members choose from; None: they answer freely."""
        return scoring.offered(self.scoring, self.choices)

    def said(self, row: Row) -> str | None:
        """What an answer comes to, in the words of the choices or the form of the target; None: it names none."""
        if row.failed:
            return None
        if self.choices is None:
            return scoring.number(row.text) if self.scoring == "number" else row.text
        choice = scoring.picked(self.scoring, self.choices, row)
        return None if choice is None else self.choices[choice]

    def right(self, row: Row) -> bool | None:
        """Whether an answer is right; None where nobody knows."""
        if self.choices is None or self.gold is None:
            return None if self.target is None else self.said(row) == self.target
        return is_right(scoring.picked(self.scoring, self.choices, row), self.gold)


def load_task(settings: Settings, seed: int = 0) -> list[Question]:
    """The questions of a run: all of `questions=FILE` in its order, or the task's, shuffled and limited.

    seed: of the task's phrasings and choices; they are the same whatever the run's own seed.
    Raises FedrayError where a file does not say what it should: file, line, remedy.
    """
    how = settings.task.scored_by
    if settings.questions is not None:
        return [_scored(question, how) for question in read_questions(settings.questions)]
    if settings.task.name not in TASKS:
        raise FedrayError(f"unknown task {settings.task.name!r}: choose one of {', '.join(TASKS)}")
    if settings.task.name in BENCHMARKS:
        found = benchmarks.items(settings).items()
        questions = [
            Question(name, i.question, i.choices or None, i.gold, group, target=i.target) for name, (group, i) in found
        ]
    else:
        world = World(seed_of(settings.zoo.path or EMBEDDED))
        questions = [_question(row, str(row["id"])) for row in _rows(settings, world, seed)]
    random.Random(_SEED).shuffle(questions)
    return [_scored(question, how) for question in questions[: settings.task.limit]]


def _scored(question: Question, how: str) -> Question:
    """The question put as a scoring wants it; one that is answered freely, and of no number, stays as it is."""
    if question.choices is None and question.target is None:
        return question
    prompt = scoring.asked(how, question.prompt, question.choices or ())
    target = None if question.target is None else scoring.number(question.target)
    return replace(question, prompt=prompt, target=target, scoring=how)


def _rows(settings: Settings, world: World, seed: int) -> list[dict[str, Any]]:
    """Rows in the schema of OpenBookQA, about the entities of the task's split."""
    name, split = settings.task.name, world.split(settings.task.split)
    facts = [fact for fact in split if seen_in_fusing(fact) is (name != "tiny-unseen")]
    if name.startswith("tiny-joint"):
        rows = joint(world, facts, JOINT, seed)
        return rows if name == "tiny-joint-halves" else [{**row, "asked": {}} for row in rows]
    if name == "tiny-tell":
        others = settings.senders or tuple(name for name in NAMES if name != settings.receiver)
        return told(world, facts, others, seed)
    if name.startswith("tiny-evidence"):
        rows = evidence(world, facts, 1, seed)
        if name == "tiny-evidence":
            return rows
        if name == "tiny-evidence-question":  # what is left without the documents
            return [{**row, "evidence": {}} for row in rows]
        pooled = ("\n".join(row["evidence"].values()) for row in rows)  # everything in one prompt: nothing is private
        return [{**row, "evidence": {settings.receiver: text}} for row, text in zip(rows, pooled, strict=True)]
    return world.multiple_choice(facts, seed, UNSEEN_PHRASINGS if name == "tiny-phrasings" else None)


def request_fields(questions: Sequence[Question], plan: Plan, instead: Mapping[Question, str] | None) -> dict[str, Any]:
    """What a Request says of these questions besides their prompts. instead: what senders read (control=mismatched)."""
    asked = {name for q in questions for name in q.asked}
    holders = {name for q in questions for name in q.evidence}
    fields = {
        "choices": None if questions[0].offered is None else tuple(q.offered or () for q in questions),
        "asked": dict.fromkeys(plan.senders, tuple(instead[q] for q in questions))
        if instead
        else {name: tuple(q.asked.get(name, q.prompt) for q in questions) for name in asked},
        "evidence": {name: tuple(q.evidence.get(name, "") for q in questions) for name in holders},
        "weights": {name: tuple(float(name in q.experts) for q in questions) for name in (plan.receiver, *plan.senders)}
        if plan.gate == "oracle"
        else {},
    }
    return {name: value for name, value in fields.items() if value}


def document_of(question: Question, settings: Settings, member: str) -> str:
    """The document that a member holds of a question: the question's own, else what the settings give it."""
    return question.evidence.get(member, "") or settings.documents().get(member, "")


def mismatched(questions: list[Question], seed: int) -> list[str]:
    """For control=mismatched: per question the prompt of another one, for the senders to read instead.

    The other question is about the same attribute of another entity and has another answer, in the same group if
    there is one: a sender knows it as well, and what it knows does not help. Raises FedrayError if there is no other.
    """
    rng = random.Random(f"mismatched-{seed}")
    return [_other(question, questions, rng).prompt for question in questions]


def _other(question: Question, questions: list[Question], rng: random.Random) -> Question:
    wishes: tuple[Callable[[Question], bool], ...] = (
        lambda q: q.group == question.group,
        lambda q: q.answer is None or q.answer != question.answer,
        lambda q: q.attribute == question.attribute,
    )
    others = [q for q in questions if q.prompt != question.prompt and (not q.entity or q.entity != question.entity)]
    if not others:
        raise FedrayError(
            f"control=mismatched finds no question about another entity than {question.prompt!r} asks about: "
            "ask more questions (task.limit, or lines in the questions file)"
        )
    for dropped in range(len(wishes) + 1):
        found = [q for q in others if all(wish(q) for wish in wishes[dropped:])]
        if found:
            return rng.choice(found)
    raise AssertionError("without a wish every other question fits")


def read_questions(path: Path) -> list[Question]:
    """Questions of a .txt file (one per line), or of .jsonl or .json rows in the schema of OpenBookQA.

    A row has `question_stem` (or `question`), and for multiple choice `choices` {text: [...], label: [...]} and
    `answerKey`, one of the labels. Raises FedrayError with file, line and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FedrayError(
            f"{path} cannot be read as UTF-8 text ({error}); name another file: questions=FILE"
        ) from error
    readers = {".txt": _from_text, ".jsonl": _from_lines, ".json": _from_array}
    if path.suffix not in readers:
        raise FedrayError(f"{path} is of an unknown kind: name it .txt, .jsonl or .json, as its content is")
    questions = list(readers[path.suffix](text, path))
    if not questions:
        raise FedrayError(f"{path} holds no question: write one per line")
    return questions


def _from_text(text: str, path: Path) -> Iterator[Question]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Question(f"{path.name}:{number}", line.strip())


def _from_lines(text: str, path: Path) -> Iterator[Question]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _checked(_json(line, where), where, f"{path.name}:{number}")


def _from_array(text: str, path: Path) -> Iterator[Question]:
    rows = _json(text, str(path))
    if not isinstance(rows, list):
        raise FedrayError(f"{path} must be a list of rows: put [ ] around them, or name the file .jsonl")
    for number, row in enumerate(rows, 1):
        yield _checked(row, f"{path}, row {number}", f"{path.name}:{number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FedrayError(f'{where} is not JSON ({error}); write rows such as {{"question": "..."}}') from error


def _checked(row: Any, where: str, name: str) -> Question:
    """A question from a row that may hold anything."""
    stem = (row.get("question_stem") or row.get("question")) if isinstance(row, dict) else None
    if not isinstance(stem, str) or not stem.strip():
        raise FedrayError(f'{where} asks nothing: give it a text "question" or "question_stem"')
    choices, key = row.get("choices"), row.get("answerKey")
    if choices is None:
        if key is not None:
            raise FedrayError(f'{where} has an "answerKey" and no "choices": add them, or leave it out')
        return _question({"question_stem": stem, **_about(row)}, name)
    texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (None, None)
    if not _texts(texts) or not _texts(labels) or len(texts) != len(labels) or len(texts) < 2:
        raise FedrayError(
            f'{where} has "choices" of the wrong form: write {{"text": ["...", "..."], "label": ["A", "B"]}}, '
            "two or more, as many labels as texts"
        )
    if key is not None and key not in labels:
        raise FedrayError(f"{where} has answerKey {key!r}: choose one of its labels, {', '.join(labels)}")
    return _question({"question_stem": stem, "choices": choices, "answerKey": key, **_about(row)}, name)


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _about(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row[key]) for key in ("id", "domain", "entity", "attribute") if key in row}


def _question(row: Mapping[str, Any], name: str) -> Question:
    """A question from a row in the schema of OpenBookQA."""
    choices, key = row.get("choices"), row.get("answerKey")
    return Question(
        id=str(row.get("id", name)),
        prompt=row["question_stem"].strip(),
        choices=tuple(choices["text"]) if choices else None,
        gold=choices["label"].index(key) if choices and key is not None else None,
        group=row.get("domain", ""),
        entity=row.get("entity", ""),
        attribute=row.get("attribute", ""),
        experts=tuple(row.get("experts", ())),
        asked=row.get("asked", {}),
        evidence=row.get("evidence", {}),
    )
