"""Read rows of data sets whose questions come with paragraphs, as their authors wrote them, odd ones included.

The question is the receiver's; its paragraphs are dealt to the senders (fedray/questions/benchmarks.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedray.data.rows import Item, LeftOut, Paragraph, Row, WrongRow, are_mappings, asked, is_empty, nested, text

_TRUTH = {"true": 0, "yes": 0, "false": 1, "no": 1}  # as it is written -> its place among the choices
_ALONE = LeftOut("fewer than two supporting paragraphs")


def hotpotqa(row: Row) -> Item | LeftOut:
    """Read HotpotQA with distractors: bridge questions, whose answer takes two paragraphs; comparisons are left out.

    On the hub: context {title, sentences}, supporting_facts {title, sent_id}; as first published: lists of pairs.
    """
    kind = text(row.get("type"), "type")
    if not kind:
        raise WrongRow("type is missing")
    if kind != "bridge":
        return LeftOut(f"type {kind[:40]}")
    supporting = {text(title, "title") for title, _ in _table(row, "supporting_facts", ("title", "sent_id"))}
    found: list[Paragraph] = []
    for title, sentences in _table(row, "context", ("title", "sentences")):
        name, said = text(title, "title"), [text(sentence, "a sentence") for sentence in _list(sentences, "sentences")]
        found += _paragraph(name, " ".join(said), name in supporting)
    return _ALONE if _supports(found) < 2 else _answered(row, found)


def musique(row: Row) -> Item | LeftOut:
    """Read MuSiQue: two to four paragraphs lead to the answer; questions that have none are left out."""
    if text(_plain(row.get("answerable")), "answerable").lower() in ("false", "no", "0"):
        return LeftOut("unanswerable")
    found: list[Paragraph] = []
    for title, said, supports in _table(row, "paragraphs", ("title", "paragraph_text", "is_supporting")):
        if not isinstance(supports, bool):
            raise WrongRow("is_supporting of a paragraph is neither true nor false")
        found += _paragraph(text(title, "title"), text(said, "paragraph_text"), supports)
    return _ALONE if _supports(found) < 2 else _answered(row, found, _list(row.get("answer_aliases"), "answer_aliases"))


def squad(row: Row) -> Item | LeftOut:
    """Read SQuAD 1.1: one paragraph holds the answer, which several people have marked; of 2.0 the same questions."""
    answers = nested(row.get("answers"))
    if not isinstance(answers, Mapping):
        raise WrongRow("answers is no mapping with a list of texts")
    title = text(row.get("title"), "title").replace("_", " ")
    found = _paragraph("", text(row.get("context"), "context"), True)
    if not found:
        return LeftOut("an empty context")
    first, *others = _list(answers.get("text"), "answers.text") or [""]
    return _answered({**row, "answer": first}, found, others, title)


def strategyqa(row: Row) -> Item | LeftOut:
    """Read StrategyQA: a question to answer by yes or no, and facts, which are listed or stand in one text."""
    facts = nested(row.get("facts"))
    listed = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", facts) if isinstance(facts, str) else _list(facts, "facts")
    found = [p for fact in listed for p in _paragraph("", text(fact, "a fact"), True)]
    if not found:
        return LeftOut("no facts")
    said = text(_plain(row.get("answer")), "answer")
    if said and said.lower() not in _TRUTH:
        raise WrongRow(f"the answer {said[:80]!r} is neither true nor false")
    gold, about = _TRUTH.get(said.lower()), text(row.get("term"), "term")
    return Item(asked(row), ("yes", "no"), gold, paragraphs=tuple(found), entity=about)


def _answered(row: Row, found: Sequence[Paragraph], others: Sequence[Any] = (), entity: str = "") -> Item:
    """Make an item whose right answer is a text, or one of several."""
    first, *more = (text(_plain(answer), "answer") for answer in (row.get("answer"), *others))
    aliases = tuple(dict.fromkeys(answer for answer in more if answer and answer != first))
    return Item(asked(row), target=first or None, aliases=aliases, paragraphs=tuple(found), entity=entity)


def _paragraph(title: str, said: str, supports: bool) -> list[Paragraph]:
    """Make a paragraph of one line, under its title; none of nothing."""
    plain = " ".join(said.split())
    return [Paragraph(f"{title}: {plain}" if title else plain, supports)] if plain else []


def _supports(found: Sequence[Paragraph]) -> int:
    return sum(paragraph.supports for paragraph in found)


def _plain(value: Any) -> Any:
    """Write a truth value as text."""
    return str(value).lower() if isinstance(value, bool) else value


def _list(value: Any, name: str) -> list[Any]:
    value = nested(value)
    if is_empty(value):
        return []
    if not isinstance(value, list):
        raise WrongRow(f"{name} is no list")
    return value


def _table(row: Row, name: str, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Read a column that holds a table, which is written by its columns, by its rows, or as a list of lists."""
    held = nested(row.get(name))
    if isinstance(held, Mapping):
        lists = [_list(held.get(column), f"{name}.{column}") for column in columns]
        if len({len(cells) for cells in lists}) > 1:
            raise WrongRow(f"{name} has columns of different lengths")
        return list(zip(*lists, strict=True))
    if are_mappings(held):
        return [tuple(entry.get(column) for column in columns) for entry in held]
    if isinstance(held, list) and all(isinstance(entry, list) and len(entry) == len(columns) for entry in held):
        return [tuple(entry) for entry in held]
    raise WrongRow(f"{name} is missing" if held is None else f"{name} is no table of {' and '.join(columns)}")
