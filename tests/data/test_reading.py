"""Data sets whose questions come with paragraphs, read from files in their real schema, odd rows included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import HOTPOTQA, MUSIQUE, SQUAD, STRATEGYQA, Rows, hotpot, musique, squad, strategy, write

from fedray.data.catalogue import BENCHMARKS
from fedray.data.rows import Item
from fedray.data.source import DataSource, read
from fedray.types import FedrayError


def items(name: str, path: Path) -> tuple[dict[str, Item], DataSource]:
    found, source = read(BENCHMARKS[name], BENCHMARKS[name].main, path=path)
    return {key: item for key, (_, item) in found.items()}, source


@pytest.mark.parametrize("file", ["hotpot_dev_distractor_v1.json", "validation.jsonl", "distractor/validation.parquet"])
def test_hotpotqa_keeps_bridge_questions(tmp_path: Path, file: str) -> None:
    rows = [row for row in HOTPOTQA if "id" in row] if file.endswith("parquet") else HOTPOTQA
    write(tmp_path / file, rows)
    found, source = items("hotpotqa", tmp_path)
    first = found["distractor/5a80"]
    assert [(p.text.split(":")[0], p.supports) for p in first.paragraphs] == [
        ("A Kiss for Corliss", False),
        ("Kiss and Tell (1945 film)", True),
        ("Meet Corliss Archer", False),
        ("Shirley Temple", True),
    ]
    assert first.paragraphs[3].text == "Shirley Temple: An actress. She was Chief of Protocol."
    assert first.target == "Chief of Protocol" and not found["distractor/5a82"].answered
    assert source.left_out == {"type comparison": 1, "fewer than two supporting paragraphs": 1}
    if not file.endswith("parquet"):
        assert (
            found["distractor/5a83"].paragraphs == first.paragraphs
            and found["distractor/5a83"].target == "Küchenchefin"
        )


@pytest.mark.parametrize("file", ["musique_ans_v1.0_dev.jsonl", "validation.parquet"])
def test_musique_keeps_answerable_questions(tmp_path: Path, file: str) -> None:
    found, source = items("musique", write(tmp_path / file, MUSIQUE).parent)
    first, other, silent = found.values()
    assert sum(p.supports for p in first.paragraphs) == 2 and len(first.paragraphs) == 12
    assert (other.target, other.aliases, silent.target) == ("Miquette Giraudy", ("Bambaloni Yoni",), None)
    assert source.left_out == {"unanswerable": 1}


@pytest.mark.parametrize("file", ["plain_text/validation-00000-of-00001.parquet", "validation.json"])
def test_squad_has_several_right_answers(tmp_path: Path, file: str) -> None:
    found, source = items(
        "squad", write(tmp_path / file, SQUAD) if "/" not in file else write(tmp_path / file, SQUAD).parents[1]
    )
    bowl, unicode, silent = found.values()
    assert (bowl.target, bowl.aliases, bowl.entity) == ("Santa Clara, California", ("Santa Clara",), "Super Bowl 50")
    assert unicode.target == "Zürich–Nord" and not silent.answered
    (paragraph,) = bowl.paragraphs
    assert paragraph.supports and "\n" not in paragraph.text and paragraph.text.endswith("California.")
    assert source.left_out == {"an empty context": 1}


@pytest.mark.parametrize("file", ["strategyqa/test.parquet", "test.jsonl"])
def test_strategyqa_is_answered_by_yes_or_no(tmp_path: Path, file: str) -> None:
    write(tmp_path / file, STRATEGYQA)
    found, source = items("strategyqa", tmp_path)
    assert [item.gold for item in found.values()] == [1, 0, None] and list(found) == [
        f"default/b8{number}" for number in range(3)
    ]
    assert [len(item.paragraphs) for item in found.values()] == [2, 1, 1] and source.left_out == {"no facts": 1}


@pytest.mark.parametrize(
    ("facts", "n"),
    [
        ("Perth lies in the south. January is summer there.", 2),  # as on ChilleD/StrategyQA
        ('Mr. smith saw it. "It is hot," he said.', 2),
        ('["One fact.", "Another one."]', 2),  # in a cell of CSV
        ("One fact without an end", 1),
    ],
)
def test_facts_in_one_text_are_parted(tmp_path: Path, facts: str, n: int) -> None:
    found, _ = items("strategyqa", write(tmp_path / "test.csv", [strategy(0, "True", facts)]))
    (item,) = found.values()
    assert (len(item.paragraphs), item.gold) == (n, 0)


def test_what_senders_hold_is_part_of_the_hash(tmp_path: Path) -> None:
    one = items("musique", write(tmp_path / "a" / "dev.jsonl", [musique(0)]))[1]
    two = items("musique", write(tmp_path / "b" / "dev.jsonl", [musique(0, paragraphs=musique(0)["paragraphs"][:4])]))[
        1
    ]
    assert one.hash != two.hash


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("hotpotqa", hotpot(0, None), "type is missing; see that it has the columns question, answer, type"),
        ("hotpotqa", hotpot(0, context=None), "context is missing"),
        ("hotpotqa", hotpot(0, context={"title": ["a"], "sentences": []}), "context has columns of different lengths"),
        ("hotpotqa", hotpot(0, supporting_facts=["a", "b"]), "supporting_facts is no table of title and sent_id"),
        ("hotpotqa", hotpot(0, context={"title": ["a"], "sentences": ["no list"]}), "sentences is no list"),
        ("musique", musique(0, paragraphs=[{"title": "a"}]), "is_supporting of a paragraph is neither true nor false"),
        ("musique", musique(0, answer_aliases="x"), "answer_aliases is no list"),
        ("squad", squad(0, answers="Santa Clara"), "answers is no mapping with a list of texts"),
        ("squad", squad(0, "x", question=None), "question is missing"),
        ("strategyqa", strategy(0, "maybe", ["x"]), "the answer 'maybe' is neither true nor false"),
        ("strategyqa", strategy(0, True, 7), "facts is no list"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, name: str, row: dict[str, Any], says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(FedrayError, match=says) as error:
        items(name, path)
    assert "\n" not in str(error.value) and f"{name}: line 1 of {path}" in str(error.value)


@pytest.mark.parametrize(("name", "rows"), [("hotpotqa", HOTPOTQA), ("squad", SQUAD)])
def test_a_split_that_is_not_public_is_refused(tmp_path: Path, name: str, rows: Rows) -> None:
    with pytest.raises(FedrayError, match=f"{name} has no test split: choose train or validation"):
        read(BENCHMARKS[name], "test", path=write(tmp_path / "test.jsonl", rows))
