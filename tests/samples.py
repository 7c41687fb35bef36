"""Rows in the data sets' real schemas, odd ones among them, and the files they come in."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Sequence[dict[str, Any]]


def choices(labels: str, *texts: str) -> dict[str, list[str]]:
    return {"text": list(texts), "label": list(labels)}


OPENBOOKQA: Rows = (
    {
        "id": "7-980",
        "question_stem": "The sun is responsible for",
        "choices": choices(
            "ABCD",
            "puppies learning new tricks",
            "children growing up and getting old",
            "flowers wilting in a vase",
            "plants sprouting, blooming and wilting",
        ),
        "answerKey": "D",
    },
    {
        "id": "9-1160",
        "question_stem": "Poison causes harm to which of the following?",
        "choices": choices("ABCD", "a Tree", "a robot", "a house", "a car"),
        "answerKey": " A",
    },
)
ARC: Rows = (
    {
        "id": "Mercury_7175875",
        "question": "An astronomer observes that a planet rotates faster after a meteorite impact. Which is the most "
        "likely effect of this increase in rotation?",
        "choices": choices(
            "ABCD", "Density decreases.", "Years become longer.", "Days become shorter.", "Gravity rises."
        ),
        "answerKey": "C",
    },
    {
        "id": "NYSEDREGENTS_2013_8_1",
        "question": "Which unit measures mass?",
        "choices": choices("1234", "meter", "gram", "second", "liter"),
        "answerKey": "2",
    },
    {
        "id": "MEAP_2005_8_36",
        "question": "Is ice lighter than water?",
        "choices": choices("ABC", "yes", "no", "only in the sea"),
        "answerKey": "A",
    },
    {
        "id": "AKDE_2008_4_26",
        "question": "Which of these is alive?",
        "choices": choices("ABCDE", "a rock", "a river", "a cloud", "a lamp", "a moss"),
        "answerKey": "E",
    },
)


def redux(question: str, answer: int, error_type: str = "ok", correct_answer: str | None = None) -> dict[str, Any]:
    return {
        "question": question,
        "choices": ["0", "4", "2", "6"],
        "answer": answer,
        "error_type": error_type,
        "source": None,
        "correct_answer": correct_answer,
        "potential_reason": None,
    }


MMLU_REDUX: Rows = (
    redux("Find the degree of the extension.", 1),
    redux("Which is unclear?", 2, "bad_question_clarity"),
    redux("None of these is right.", 0, "no_correct_answer", "7"),
    redux("Only experts know.", 0, "expert"),
    redux("Corrected by a letter.", 0, "wrong_groundtruth", "D"),
    redux("Corrected by an index.", 0, "wrong_groundtruth", "1"),
    redux("Corrected by its text.", 0, "wrong_groundtruth", "6"),
    redux("Corrected by nobody.", 0, "wrong_groundtruth"),
    redux("Corrected in words.", 0, "wrong_groundtruth", "either of the first two"),
)
CEVAL: Rows = (
    {
        "id": 0,
        "question": "使用位填充方法,问传送时要添加几个0____",
        "A": "1",
        "B": "2.50",
        "C": "NA",
        "D": "4",
        "answer": "C",
        "explanation": "",
    },
    {
        "id": 1,
        "question": "下列说法正确的是____",
        "A": "甲",
        "B": "乙",
        "C": "丙",
        "D": "丁",
        "answer": "A",
        "explanation": "因为",
    },
)
GSM8K: Rows = (
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?",
        "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72",
    },
    {"question": "How much is a house of 1,250 thousand dollars?", "answer": "It is $1,250,000.\n#### 1,250,000"},
)


def hotpot(
    number: int, kind: str | None = "bridge", answer: str | None = "Chief of Protocol", **more: Any
) -> dict[str, Any]:
    return {
        "id": f"5a8{number}",
        "question": "What position was held by the woman who was Corliss Archer in Kiss and Tell?",
        "answer": answer,
        "type": kind,
        "level": "hard",
        "supporting_facts": {"title": ["Kiss and Tell (1945 film)", "Shirley Temple"], "sent_id": [0, 1]},
        "context": {
            "title": ["A Kiss for Corliss", "Kiss and Tell (1945 film)", "Meet Corliss Archer", "Shirley Temple"],
            "sentences": [
                ["A 1949 comedy.", " It is a sequel."],
                ["A film with Shirley Temple", " as Corliss Archer."],
                ["A programme of the radio."],
                ["An actress.", " She was Chief of Protocol."],
            ],
        },
        **more,
    }


_PAIRS = hotpot(3)
HOTPOTQA: Rows = (
    hotpot(0),
    hotpot(1, "comparison", "yes"),
    hotpot(2, answer=None),
    {  # as first published
        **{key: value for key, value in _PAIRS.items() if key != "id"},
        "_id": "5a83",
        "answer": "Küchenchefin",
        "supporting_facts": [["Shirley Temple", 1], ["Kiss and Tell (1945 film)", 0], ["Shirley Temple", 0]],
        "context": [list(pair) for pair in zip(*_PAIRS["context"].values(), strict=True)],
    },
    hotpot(4, supporting_facts={"title": ["Shirley Temple", "Nowhere"], "sent_id": [0, 902]}),
)


def musique(number: int, answerable: bool = True, aliases: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    said = ("Green is by Steve Hillage.", "Grant made it.", "His spouse is Miquette Giraudy.", *["Noise."] * 9)
    return {
        "id": f"2hop__{number}",
        "paragraphs": [
            {"idx": i, "title": f"Title {i}", "paragraph_text": text, "is_supporting": i in (0, 2)}
            for i, text in enumerate(said)
        ],
        "question": "Who is the spouse of the Green performer?",
        "question_decomposition": [{"id": 460946, "question": "Green >> performer", "paragraph_support_idx": 0}],
        "answer": "Miquette Giraudy",
        "answer_aliases": list(aliases),
        "answerable": answerable,
        **more,
    }


MUSIQUE: Rows = (
    musique(0),
    musique(1, aliases=("Bambaloni Yoni", "Miquette Giraudy")),
    musique(2, answerable=False),
    musique(3, answer=""),
)


def squad(number: int, *answers: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"56be{number}",
        "title": "Super_Bowl_50",
        "context": "Super Bowl 50 was won by the Denver Broncos.\nIt was played in Santa Clara, California.",
        "question": "Where did Super Bowl 50 take place?",
        "answers": {"text": list(answers), "answer_start": [0] * len(answers)},
        **more,
    }


SQUAD: Rows = (
    squad(0, "Santa Clara, California", "Santa Clara", "Santa Clara"),
    squad(1, "Zürich–Nord"),
    squad(2),  # of 2.0
    squad(3, "x", context=" "),
)


def strategy(number: int, answer: Any, facts: Any, **more: Any) -> dict[str, Any]:
    asked = "Is it cold in January in Perth?"
    return {
        "qid": f"b8{number}",
        "term": "Perth",
        "description": "City",
        "question": asked,
        "answer": answer,
        "facts": facts,
        **more,
    }


STRATEGYQA: Rows = (
    strategy(0, False, ["Perth lies in the south.", "January is summer there."]),
    strategy(1, True, ["One fact."]),
    strategy(2, None, ["Nobody says."]),
    strategy(3, True, []),
)


def message(who: str, text: str | None) -> dict[str, Any]:
    return {"from": who, "value": text, "weight": None}


def hermes(*messages: dict[str, Any], source: str | None = "airoboros2.2") -> dict[str, Any]:
    return {"conversations": list(messages), "source": source, "category": "orca", "system_prompt": None, "idx": None}


OPENHERMES: Rows = (
    hermes(message("human", "Every day, a tree drops 7 leaves. How many in a month of 30?"), message("gpt", "210.")),
    hermes(message("system", "You are terse."), message("human", "Hello"), message("gpt", "Hi."), source=None),
    hermes(
        message("human", "One?"),
        message("gpt", "1"),
        message("human", "Two?"),
        message("gpt", "2"),
        message("human", "Three?"),
    ),
    hermes(message("human", "Nobody answers.")),
    hermes(message("human", "Twice"), message("human", "asked"), message("gpt", "So what?")),
    hermes(message("human", "Say nothing."), message("gpt", "")),
)


def write(path: Path, rows: Rows) -> Path:
    """A file of rows, in the format its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(list(rows))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text(f"[{', '.join(text.splitlines())}]" if path.suffix == ".json" else text, encoding="utf-8")
    return path
