"""Rows as the data sets' authors wrote them, odd ones included, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
LETTERS = "ABCD"


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


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation to train on. turns: the user's and the assistant's in turn, the user's last; answer: what the
    assistant says then."""

    turns: tuple[str, ...]
    answer: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that asks nothing that can be scored or learnt, and why."""

    reason: str


class WrongRow(ValueError):
    """A row that is not in its data set's schema; the text says what is wrong with it."""


def labelled(row: Row) -> Item:
    """OpenBookQA and ARC: three to five choices, labelled by letters or by numbers."""
    stem = "question_stem" if "question_stem" in row else "question"
    choices = _field(row, "choices", Mapping)
    texts, labels = [[_text(value) for value in choices.get(key) or ()] for key in ("text", "label")]
    if len(texts) < 2 or len(texts) != len(labels):
        raise WrongRow("choices are not two or more texts with as many labels")
    return Item(_text(_field(row, stem)), tuple(texts), _gold(_text(row.get("answerKey")), labels))


def mmlu_redux(row: Row) -> Item | LeftOut:
    """MMLU-Redux 2.0. Questions without one right answer are left out, wrong labels are replaced by the correction.

    As the C2C evaluation does (arXiv 2510.03215), but for a wrong label without a usable correction: it is left out.
    """
    error = _text(row.get("error_type")) or "ok"
    question, texts = _text(_field(row, "question")), tuple(map(_text, _field(row, "choices", list)))
    if error in ("no_correct_answer", "expert"):
        return LeftOut(error)
    if error == "wrong_groundtruth":
        gold = _corrected(_text(row.get("correct_answer")), texts)
        return LeftOut("wrong_groundtruth without a correction") if gold is None else Item(question, texts, gold)
    return Item(question, texts, _gold(_text(_field(row, "answer", int)), [str(i) for i in range(len(texts))]))


def ceval(row: Row) -> Item:
    """C-Eval: the choices are columns. The test split may come without answers."""
    texts = tuple(_text(_field(row, letter)) for letter in LETTERS)
    return Item(_text(_field(row, "question")), texts, _gold(_text(row.get("answer")), LETTERS))


def gsm8k(row: Row) -> Item:
    """GSM8K: the right answer stands behind four hashes."""
    _, marked, target = _text(_field(row, "answer")).rpartition("####")
    if not marked or not target.strip():
        raise WrongRow('answer has no "#### number" at the end')
    return Item(_text(_field(row, "question")), target=target.strip())


def openhermes(row: Row) -> Talk | LeftOut:
    """OpenHermes-2.5: everything but system messages, up to what the assistant says last."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    said: list[tuple[str, str]] = []
    for message in _field(row, "conversations", list):
        role = roles.get(_text(message.get("from") or message.get("role"))) if isinstance(message, Mapping) else None
        if role is None:
            raise WrongRow("a message of conversations is not from system, human or gpt")
        said.append((role, _text(message.get("value") or message.get("content"))))
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
    return Talk(tuple(turns), answer, _text(row.get("source") or row.get("category")))


def _field(row: Row, name: str, kind: type = object) -> Any:
    value = row.get(name)
    if value is None or not isinstance(value, kind):
        raise WrongRow(f"{name} is {'missing' if value is None else repr(value)}")
    return value


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _gold(key: str, labels: Iterable[str]) -> int | None:
    """The place of the right answer's label; None where no label is given."""
    known = list(labels)
    if not key:
        return None
    if key not in known:
        raise WrongRow(f"the answer {key!r} is none of {', '.join(known)}")
    return known.index(key)


def _corrected(said: str, choices: tuple[str, ...]) -> int | None:
    """The one choice that an annotator names as right: by index, by letter or by its text."""
    for names in ("0123", LETTERS):
        if said in list(names[: len(choices)]):
            return names.index(said)
    return choices.index(said) if choices.count(said) == 1 else None
