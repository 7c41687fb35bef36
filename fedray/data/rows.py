"""Read rows as the data sets' authors wrote them, odd ones included: a reader for each schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from fedray.data.numbers import plain_number

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph that comes with a question. supports: whether its answer rests on it; else it distracts."""

    text: str
    supports: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """A question to evaluate on: choices and the right one's index, or, where it is answered freely, the right answer.

    Where the data set keeps the right answer to itself, gold and target are None. solution: how the target is reached;
    aliases: what is right besides the target; paragraphs: that senders hold, as published; entity: what it is about.
    """

    question: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    target: str | None = None
    solution: str = field(default="", repr=False, compare=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)
    paragraphs: tuple[Paragraph, ...] = field(default=(), repr=False)
    entity: str = field(default="", repr=False)

    @property
    def beside(self) -> tuple[object, ...]:
        """What of the content stands beside the question and its answer."""
        return (self.aliases, self.paragraphs) if self.paragraphs else ()

    @property
    def answered(self) -> bool:
        return self.gold is not None or self.target is not None

    @property
    def whole(self) -> bool:
        """Whether neither the question nor a choice is empty."""
        return bool(self.question) and all(self.choices)


@dataclass(frozen=True, slots=True)
class TrainingTalk:
    """A conversation to train on. turns: the user's and the assistant's in turn, the user's last; answer: the
    assistant's next turn; documents: (role, text) that only the sender or only the receiver reads."""

    turns: tuple[str, ...]
    answer: str
    group: str = ""
    documents: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def beside(self) -> tuple[object, ...]:
        """What of the content stands beside the turns."""
        return self.documents


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that cannot be scored or trained on, and why."""

    reason: str


EMPTY = LeftOut("an empty question or choice")


class WrongRow(ValueError):
    """A row that is not in its data set's schema; the text says what is wrong with it."""


def labelled(row: Row) -> Item:
    """Read OpenBookQA and ARC: choices labelled by letters or by numbers.

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
    """Read MMLU, and MMLU-Redux 2.0: the answer is an index, or a letter. Questions without one right answer are left
    out, wrong labels are replaced by the correction.

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
    """Read C-Eval: the choices are columns, named A, B, ... The test split may come without answers."""
    _field(row, "B")
    letters = letters_of(row)
    question, choices = asked(row), tuple(text(row.get(letter), letter) for letter in letters)
    return Item(question, choices, _gold(text(row.get("answer"), "answer"), letters))


def numbered(row: Row) -> Item | LeftOut:
    """Read GSM8K: the right answer stands behind four hashes, the solution, with calculations <<in marks>>, before."""
    solution, marked, target = text(_field(row, "answer"), "answer").rpartition("####")
    if not marked or not target.strip():
        raise WrongRow('answer has no "#### number" at the end')
    if plain_number(target) is None:
        return LeftOut(f"answer is no number: {' '.join(target.split())[:80]}")
    return Item(asked(row), target=target.strip(), solution=re.sub(r"<<[^<>]*>>", "", solution).strip())


def worded(row: Row) -> Item | LeftOut:
    """Read a question that is answered in a few words: `answers` are all that is right. Raises WrongRow."""
    found = nested(_field(row, "answers"))
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(of, str) and of.strip() for of in listed):
        raise WrongRow('answers is no list of texts such as ["Oslo"]')
    first, *_ = right = tuple(dict.fromkeys(of.strip() for of in listed))
    return Item(asked(row), target=first, aliases=right)


def openhermes(row: Row) -> TrainingTalk | LeftOut:
    """Read OpenHermes-2.5: everything but system messages, up to the assistant's last turn."""
    return talk(row, "conversations")


def talk(row: Row, column: str) -> TrainingTalk | LeftOut:
    """Read a conversation out of a column: everything but system messages, up to the assistant's last turn."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    messages: list[tuple[str, str]] = []
    for message in _field(row, column, list):
        known = isinstance(message, Mapping)
        role = roles.get(text(message.get("from") or message.get("role"), "from")) if known else None
        if role is None:
            known = "system, human or gpt" if column == "conversations" else "system, user or assistant"
            raise WrongRow(f"a message of {column} is not from {known}")
        messages.append((role, text(message.get("value") or message.get("content"), "value")))
    messages = [(role, text) for role, text in messages if role != "system"]
    while messages and messages[-1][0] == "user":
        messages.pop()
    if not messages:
        return LeftOut("nothing the assistant says")
    if [role for role, _ in messages] != ["user", "assistant"] * (len(messages) // 2):
        return LeftOut("user and assistant do not take turns")
    if not all(text for _, text in messages):
        return LeftOut("an empty message")
    *turns, answer = (text for _, text in messages)
    return TrainingTalk(tuple(turns), answer, text(row.get("source") or row.get("category"), "source"))


def documents(row: Row, name: str) -> dict[str, str]:
    """Read a column of documents: member, or its role -> text; empty ones are none. Raises WrongRow."""
    if is_empty(row.get(name)):
        return {}
    held = nested(row[name])
    if not isinstance(held, Mapping):
        raise WrongRow(f'{name} is {_shown(held)}: write who reads which text, as in {{"receiver": "..."}}')
    found = {str(member): text(value, f"{name} of {member}") for member, value in held.items()}
    return {member: document for member, document in found.items() if document}


def nested(value: Any) -> Any:
    """Read a list or mapping that stands as JSON in a cell, as CSV has to; anything else is returned as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value, parse_float=str)
        except (ValueError, RecursionError):
            return value
    return value


def is_empty(value: Any) -> bool:
    """Check whether a cell is empty, as in CSV, JSON and pandas."""
    if isinstance(value, Mapping | list):
        return all(inner in (None, "", []) for inner in (value.values() if isinstance(value, Mapping) else value))
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def are_mappings(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def letters_of(row: Row) -> str:
    """List the letters up to the last whose column holds a choice."""
    held = [place for place, letter in enumerate(LETTERS) if not is_empty(row.get(letter))]
    return LETTERS[: max(held, default=-1) + 1]


def asked(row: Row) -> str:
    """Read the question's text."""
    name = "question_stem" if "question_stem" in row else "question"
    return text(_field(row, name), name)


def _field(row: Row, name: str, kind: type = object) -> Any:
    value = row.get(name)
    if value is None or not isinstance(value, kind):
        raise WrongRow(f"{name} is {_shown(value)}")
    return value


def text(value: Any, name: str) -> str:
    """Read a cell as it is written. Raises WrongRow naming its column where it is neither text nor a number."""
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
    """Find the index of the right answer's label; None where no label is given."""
    known = list(labels)
    if not key:
        return None
    if known.count(key) != 1:
        raise WrongRow(
            f"the answer {key[:80]!r} is {'none' if key not in known else 'more than one'} of {', '.join(known)}"
        )
    return known.index(key)


def _place(answer: Any, choices: Sequence[str]) -> int | None:
    """Find the index that an answer is, as a number (from 0) or as a letter; None where there is no answer."""
    name, letters = text(answer, "answer"), LETTERS[: len(choices)]
    if not name:
        return None
    if isinstance(answer, str) and len(name) == 1 and name in letters:
        place = letters.index(name)
        if name in choices and choices.index(name) != place:
            raise WrongRow(f"the answer {name!r} is the letter of one choice and the text of another: write its place")
        return place
    if re.fullmatch(r"\d+\.0+", name):  # as pandas writes whole numbers beside empty cells
        answer = int(name.partition(".")[0])
    if isinstance(answer, int) and answer in range(len(choices)):
        return answer
    numbers = ", ".join(map(str, range(len(choices))))
    raise WrongRow(f"the answer {name[:80]!r} is none of {numbers} and of {', '.join(letters)}")


def _corrected(name: str, choices: tuple[str, ...]) -> int | None:
    """Find the one choice that an annotator names as right: by index, by letter or by its text."""
    for names in ("0123", "ABCD"):
        if name in list(names[: len(choices)]):
            return names.index(name)
    return choices.index(name) if choices.count(name) == 1 else None
