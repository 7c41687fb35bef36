"""Rows as the data sets' authors wrote them, odd ones included, and what they say: a reader for each schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from fedray.data.numbers import plain_number

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Item:
    """A question to evaluate on: choices and the right one's index, or, where it is answered freely, the right answer.

    Where the data set keeps the right answer to itself, gold and target are None.
    """

    question: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    target: str | None = None

    @property
    def answered(self) -> bool:
        return self.gold is not None or self.target is not None

    @property
    def whole(self) -> bool:
        """Whether nothing of it is empty."""
        return bool(self.question) and all(self.choices)


@dataclass(frozen=True, slots=True)
class TrainingTalk:
    """A conversation to train on. turns: the user's and the assistant's in turn, the user's last; answer: what the
    assistant says then."""

    turns: tuple[str, ...]
    answer: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that asks nothing that can be scored or learnt, and why."""

    reason: str


EMPTY = LeftOut("an empty question or choice")


class WrongRow(ValueError):
    """A row that is not in its data set's schema; the text says what is wrong with it."""


def labelled(row: Row) -> Item:
    """OpenBookQA and ARC: choices labelled by letters or by numbers.

    On the hub: question_stem (ARC: question), choices {text, label}, answerKey; as first published: question {stem,
    choices [{text, label}]}, answerKey.
    """
    inner = row.get("question")
    first = isinstance(inner, Mapping)
    stem, choices = (inner.get("stem"), inner.get("choices")) if first else (asked(row), row.get("choices"))
    if are_mappings(choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    if not isinstance(choices, Mapping):
        raise WrongRow(f"choices is {_shown(choices)}")
    texts, labels = [[text(value, key) for value in _field(choices, key, list)] for key in ("text", "label")]
    if len(texts) < 2 or len(texts) != len(labels):
        raise WrongRow("choices are not two or more texts with as many labels")
    return Item(text(stem, "stem"), tuple(texts), _gold(text(row.get("answerKey"), "answerKey"), labels))


def listed(row: Row) -> Item | LeftOut:
    """MMLU, and MMLU-Redux 2.0: the answer is a place, or a letter. Questions without one right answer are left out,
    wrong labels are replaced by the correction.

    As the C2C evaluation does (arXiv 2510.03215), but for a wrong label without a usable correction: it is left out.
    """
    error = text(row.get("error_type"), "error_type") or "ok"
    question, texts = asked(row), tuple(text(choice, "a choice") for choice in _field(row, "choices", list))
    if len(texts) < 2:
        raise WrongRow("choices are not two or more texts")
    if error in ("no_correct_answer", "expert"):
        return LeftOut(error)
    if error == "wrong_groundtruth":
        gold = _corrected(text(row.get("correct_answer"), "correct_answer"), texts)
        return LeftOut("wrong_groundtruth without a correction") if gold is None else Item(question, texts, gold)
    return Item(question, texts, _place(row.get("answer"), texts))


def lettered(row: Row) -> Item:
    """C-Eval: the choices are columns, named A, B, ... The test split may come without answers."""
    _field(row, "B")
    letters = letters_of(row)
    return Item(
        asked(row),
        tuple(text(row.get(letter), letter) for letter in letters),
        _gold(text(row.get("answer"), "answer"), letters),
    )


def numbered(row: Row) -> Item | LeftOut:
    """GSM8K: the right answer stands behind four hashes."""
    _, marked, target = text(_field(row, "answer"), "answer").rpartition("####")
    if not marked or not target.strip():
        raise WrongRow('answer has no "#### number" at the end')
    if plain_number(target) is None:
        return LeftOut(f"answer is no number: {' '.join(target.split())[:80]}")
    return Item(asked(row), target=target.strip())


def openhermes(row: Row) -> TrainingTalk | LeftOut:
    """OpenHermes-2.5: everything but system messages, up to what the assistant says last."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    said: list[tuple[str, str]] = []
    for message in _field(row, "conversations", list):
        role = (
            roles.get(text(message.get("from") or message.get("role"), "from"))
            if isinstance(message, Mapping)
            else None
        )
        if role is None:
            raise WrongRow("a message of conversations is not from system, human or gpt")
        said.append((role, text(message.get("value") or message.get("content"), "value")))
    said = [(role, text) for role, text in said if role != "system"]
    while said and said[-1][0] == "user":
        said.pop()
    if not said:
        return LeftOut("nothing the assistant says")
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        return LeftOut("user and assistant do not take turns")
    if not all(text for _, text in said):
        return LeftOut("an empty message")
    *turns, answer = (text for _, text in said)
    return TrainingTalk(tuple(turns), answer, text(row.get("source") or row.get("category"), "source"))


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing, as empty cells of CSV, JSON and pandas do."""
    if isinstance(value, Mapping | list):
        return all(inner in (None, "", []) for inner in (value.values() if isinstance(value, Mapping) else value))
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def are_mappings(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def letters_of(row: Row) -> str:
    """The letters up to the last whose column holds a choice."""
    held = [place for place, letter in enumerate(LETTERS) if not is_empty(row.get(letter))]
    return LETTERS[: max(held, default=-1) + 1]


def asked(row: Row) -> str:
    """The question's text."""
    name = "question_stem" if "question_stem" in row else "question"
    return text(_field(row, name), name)


def _field(row: Row, name: str, kind: type = object) -> Any:
    value = row.get(name)
    if value is None or not isinstance(value, kind):
        raise WrongRow(f"{name} is {_shown(value)}")
    return value


def text(value: Any, name: str) -> str:
    """A cell as it is written. Raises WrongRow, by the name of its column, where it is neither text nor a number."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | bytes | list | Mapping):
        raise WrongRow(f"{name} is {_shown(value)} and no text")
    return str(value).strip()


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else repr(value)[:80]


def _gold(key: str, labels: Sequence[str]) -> int | None:
    """The place of the right answer's label; None where no label is given."""
    known = list(labels)
    if not key:
        return None
    if known.count(key) != 1:
        raise WrongRow(
            f"the answer {key[:80]!r} is {'none' if key not in known else 'more than one'} of {', '.join(known)}"
        )
    return known.index(key)


def _place(answer: Any, choices: Sequence[str]) -> int | None:
    """The place that an answer names, as a number (from 0) or as a letter; None where there is no answer."""
    said, letters = text(answer, "answer"), LETTERS[: len(choices)]
    if not said:
        return None
    if isinstance(answer, str) and len(said) == 1 and said in letters:
        place = letters.index(said)
        if said in choices and choices.index(said) != place:
            raise WrongRow(f"the answer {said!r} is the letter of one choice and the text of another: write its place")
        return place
    if re.fullmatch(r"\d+\.0+", said):  # as pandas writes whole numbers beside empty cells
        answer = int(said.partition(".")[0])
    if isinstance(answer, int) and answer in range(len(choices)):
        return answer
    raise WrongRow(
        f"the answer {said[:80]!r} is none of {', '.join(map(str, range(len(choices))))} and of {', '.join(letters)}"
    )


def _corrected(said: str, choices: tuple[str, ...]) -> int | None:
    """The one choice that an annotator names as right: by index, by letter or by its text."""
    for names in ("0123", "ABCD"):
        if said in list(names[: len(choices)]):
            return names.index(said)
    return choices.index(said) if choices.count(said) == 1 else None
