"""Read a row of a user's own file by the schema that its columns are in, with nothing ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fedray.data import rows
from fedray.data.rows import Item, LeftOut, Row, WrongRow, is_empty

SCHEMAS = (
    "question (or question_stem) alone, or with choices {text: [...], label: [...]} and answerKey, with choices [...] "
    "and answer (its place from 0, or its letter), with A, B, ... and answer, or with an answer that ends in "
    '"#### number"'
)

_DOCUMENTS = frozenset("evidence evidences document documents context contexts passage passages article".split())
_ANSWERS = frozenset(
    "answer answers ans target targets label labels gold golds golden correct incorrect right wrong solution solutions "
    "truth groundtruth expected ideal output outputs completion completions response responses reply reference "
    "references result results option options choice choices ending endings distractor distractors alternative "
    "alternatives candidate candidates key keys sol opa opb opc opd ope cop".split()
)
_ABOUT = frozenset("type types source sources language lang count format difficulty explanation url".split())


def question(row: object) -> Item | LeftOut:
    """Read a question in whichever schema it is. Raises WrongRow, also where an answer or a choice would be ignored."""
    if not isinstance(row, Mapping):
        raise WrongRow("this is no row with named columns")
    held = {str(name): value for name, value in row.items() if not is_empty(value)}
    if not held.keys() & {"question", "question_stem"}:
        there = ", ".join(list(held)[:8]) or "all empty"
        raise WrongRow(f'this asks nothing: no text is under "question" or "question_stem" (the columns are {there!r})')
    read, used = _reader(held)
    for name in (name for name in held if name not in used | {"question", "question_stem"}):
        if name.lower() in _DOCUMENTS:
            raise WrongRow(
                f"column {name!r} is not supported yet: what a member reads besides is set with evidence.NAME=, for all"
            )
        if _is_answer(name):
            raise WrongRow(
                f"column {name!r} looks like an answer or a choice and is not read: rename it or leave it out"
            )
    if held.get("question", stem := held.get("question_stem")) != (stem or held["question"]):
        raise WrongRow('both "question" and "question_stem" are there: leave one out')
    return read(held)


def about(row: Row) -> dict[str, str]:
    """Read what else of a row is kept. Raises WrongRow."""
    there = (name for name in ("id", "domain", "entity", "attribute") if not is_empty(row.get(name)))
    return {name: rows.text(row[name], name) for name in there}


def _reader(row: Row) -> tuple[Callable[[Row], Item | LeftOut], set[str]]:
    """Find the reader of a row, and the columns that it reads besides the question."""
    choices = row.get("choices")
    if isinstance(row.get("question"), Mapping):
        return rows.labelled, {"answerKey"}
    if isinstance(choices, Mapping) or rows.are_mappings(choices):
        return rows.labelled, {"choices", "answerKey"}
    if choices is not None:
        return rows.listed, {"choices", "answer", *(("correct_answer",) if "error_type" in row else ())}
    if "B" in row:
        return rows.lettered, {"answer", *rows.letters_of(row)}
    return (rows.numbered, {"answer"}) if "answer" in row else (lambda row: Item(rows.asked(row)), set())


def _is_answer(name: str) -> bool:
    """Check whether a column's name is that of an answer or a choice."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if re.fullmatch("[A-Za-z]", name.strip()) or re.search("答案|选项|正确", name):
        return True
    return bool(_ANSWERS & set(words)) and words[-1] not in _ABOUT and words[0] not in ("num", "n", "number")
