"""Questions of one's own that are answered in a few words: whether one of them stands in the reply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedray.questions.tasks import for_task, load_task, read_questions
from fedray.settings.check import check
from fedray.settings.settings import build
from fedray.types import FedrayError, Row

ROWS = [
    {"question": "What is the capital of Norway?", "answers": ["Oslo", "Christiania"], "entity": "Norway"},
    {"question": "Which year?", "answers": "1814"},
]


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_right_answer_may_stand_anywhere_in_the_reply(tmp_path: Path) -> None:
    settings = build({"questions": str(write(tmp_path, ROWS)), "protocol": "standalone"})
    capital, year = load_task(settings)
    assert (capital.prompt, capital.read_by, capital.entity) == (ROWS[0]["question"], "contains", "Norway")
    assert for_task(settings).generation.max_tokens == 32
    for text in ("Oslo", "It is oslo.", "The capital is called Christiania, a city"):
        assert capital.right(Row(text)), text
    for text in ("", "Oslofjord", "Os lo", "Bergen"):
        assert capital.right(Row(text)) is False, text
    assert year.right(Row("in 1814")) and not year.right(Row("18145"))
    assert capital.f1(Row("Oslo")) == 1.0 and 0 < (capital.f1(Row("It is Oslo")) or 0) < 1
    assert capital.right(Row("", failed=True)) is False


def test_as_squad_compares_them_where_asked(tmp_path: Path) -> None:
    path = str(write(tmp_path, ROWS))
    settings = build({"questions": path, "protocol": "standalone", "task": {"scoring": "exact"}})
    check(settings)
    capital, _ = load_task(settings)
    assert capital.right(Row("Answer: Oslo")) and capital.right(Row("Bergen is Oslo")) is False
    assert capital.prompt.startswith("What is the capital of Norway?\n\nReply with")


@pytest.mark.parametrize("answers", [["Oslo", ""], [3], {"text": "Oslo"}])
def test_what_is_no_list_of_texts_is_refused(tmp_path: Path, answers: object) -> None:
    with pytest.raises(FedrayError, match=r"mine.jsonl, line 1"):
        read_questions(write(tmp_path, [{"question": "why?", "answers": answers}, *ROWS]))
