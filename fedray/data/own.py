"""Read a row of a user's own file, a question or a conversation, by the schema that its columns are in.

Nothing is ignored: a column that nobody reads is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from fedray.data import rows
from fedray.data.rows import Item, LeftOut, Row, TrainingTalk, WrongRow, is_empty
from fedray.errors import nearest

SCHEMAS = (
    "question (or question_stem) alone or with choices {text: [...], label: [...]} and answerKey, with choices [...] "
    "and answer (its place from 0, or its letter), with A, B, ... and answer, with answers [...], or an answer that "
    'ends in "#### number"; beside them id, domain, entity, attribute, evidence {member: text}'
)

TALKS = (
    "messages [{role: user|assistant|system, content: ...}, ...] or conversations [{from: human|gpt|system, value: "
    "...}, ...], and beside them documents {sender: ..., receiver: ...}, domain (or source, category) and id"
)
ROLES = ("sender", "receiver")
_GROUPS = ("domain", "source", "category")  # the first that is there
_MESSAGES = ("messages", "conversations")
_MESSAGE = ("role", "content", "from", "value")
_QUESTION = ("question", "question_stem")
_ABOUT = ("id", "domain", "entity", "attribute")
_DOCUMENTS = "evidence"  # member, or its role -> what it alone reads
_HELD = frozenset("evidences document documents context contexts passage passages article".split())
_ANSWERS = frozenset(
    "answer answers ans target targets label labels gold golds golden correct incorrect right wrong solution solutions "
    "truth groundtruth expected ideal output outputs completion completions response responses reply reference "
    "references result results option options choice choices ending endings distractor distractors alternative "
    "alternatives candidate candidates key keys sol opa opb opc opd ope cop".split()
)
_NOTES = frozenset("type types source sources language lang count format difficulty explanation url".split())
# What the data sets publish beside a question, which none of their readers needs.
_OPENBOOKQA = frozenset(("fact1", "humanScore", "clarity", "turkIdAnonymized"))
_MMLU = frozenset(("subject", "source", "potential_reason", "error_type"))
_CEVAL = frozenset(("explanation",))


def question(row: object) -> Item | LeftOut:
    """Read a question in whichever schema it is. Raises WrongRow, also where a column would be ignored."""
    if not isinstance(row, Mapping):
        raise WrongRow("this is no row with named columns")
    held = {str(name): value for name, value in row.items() if not is_empty(value)}
    if not held.keys() & set(_QUESTION):
        there = ", ".join(list(held)[:8]) or "all empty"
        raise WrongRow(f'this asks nothing: no text is under "question" or "question_stem" (the columns are {there!r})')
    read, used, published = _reader(held)
    known = {*used, *_QUESTION, *_ABOUT, _DOCUMENTS}
    for name in (name for name in held if name not in known | published):
        if _is_answer(name):
            raise WrongRow(
                f"column {name!r} looks like an answer or a choice and is not read: rename it or leave it out"
            )
        if name.lower() in _HELD:
            raise WrongRow(
                f'column {name!r} is not read: who reads a document is said in evidence {{"receiver": "..."}}, or with '
                "evidence.NAME= for all questions"
            )
        raise unread(name, known)
    if held.get("question", stem := held.get("question_stem")) != (stem or held["question"]):
        raise WrongRow('both "question" and "question_stem" are there: leave one out')
    return read(held)


def about(row: Row) -> dict[str, str]:
    """Read what else of a row is kept. Raises WrongRow."""
    return {name: rows.text(row[name], name) for name in _ABOUT if not is_empty(row.get(name))}


def documents(row: Row) -> dict[str, str]:
    """Read the documents of a row: member, or its role -> text. Raises WrongRow."""
    return rows.documents(row, _DOCUMENTS)


def talk(row: Row) -> TrainingTalk | LeftOut:
    """Read a conversation to train on, with the documents of sender and receiver. Raises WrongRow."""
    held = {str(name): value for name, value in row.items() if not is_empty(value)}
    known = {*_MESSAGES, "documents", *_GROUPS, "id"}
    for name in held:
        if name not in known:
            raise unread(name, known)
    columns = [name for name in _MESSAGES if name in held]
    if len(columns) != 1:
        raise WrongRow(f"{' and '.join(columns) or 'neither messages nor conversations'} are there: give one of them")
    (column,) = columns
    held[column] = rows.nested(held[column])
    for message in held[column] if rows.are_mappings(held[column]) else ():
        for key, value in message.items():
            if key not in _MESSAGE and not is_empty(value):
                raise unread(f"{column}.{key}", (f"{column}.{name}" for name in _MESSAGE))
    documents = rows.documents(held, "documents")
    for name in documents:
        if name not in ROLES:
            close = nearest(name, ROLES, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise WrongRow(f"documents has one for {name!r}{hint}: they are read by sender or receiver")
    found = rows.talk(held, column)
    if isinstance(found, LeftOut):
        return found
    group = next((rows.text(held[name], name) for name in _GROUPS if name in held), "")
    return replace(found, group=group, documents=tuple(sorted(documents.items())))


def unread(name: str, known: Iterable[str]) -> WrongRow:
    """Make the error for a column that nobody reads, with the nearest that somebody does."""
    close = nearest(name, sorted(known), 1)
    return WrongRow(
        f"column {name!r} is not read{f' (did you mean {close[0]}?)' if close else ''}: rename it or leave it out"
    )


def _reader(row: Row) -> tuple[Callable[[Row], Item | LeftOut], set[str], frozenset[str]]:
    """Find the reader of a row, the columns that it reads besides the question, and those that stand beside them."""
    choices = row.get("choices")
    if isinstance(row.get("question"), Mapping):
        return rows.labelled, {"answerKey"}, _OPENBOOKQA
    if isinstance(choices, Mapping) or rows.are_mappings(choices):
        return rows.labelled, {"choices", "answerKey"}, _OPENBOOKQA
    if choices is not None:
        return rows.listed, {"choices", "answer", *(("correct_answer",) if "error_type" in row else ())}, _MMLU
    if "B" in row:
        return rows.lettered, {"answer", *rows.letters_of(row)}, _CEVAL
    if "answers" in row:
        return rows.worded, {"answers"}, frozenset()
    if "answer" in row:
        return rows.numbered, {"answer"}, frozenset()
    return (lambda row: Item(rows.asked(row))), set(), frozenset()


def _is_answer(name: str) -> bool:
    """Check whether a column's name is that of an answer or a choice."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if re.fullmatch("[A-Za-z]", name.strip()) or re.search("答案|选项|正确", name):
        return True
    return bool(_ANSWERS & set(words)) and words[-1] not in _NOTES and words[0] not in ("num", "n", "number")
