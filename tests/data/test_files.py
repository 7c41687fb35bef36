"""Files of rows: every suffix, plain and packed; every mistake one sentence with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import CEVAL, OPENBOOKQA, write

from fedray.data.catalogue import BENCHMARKS
from fedray.data.files import FORMATS, SUFFIXES, rows
from fedray.data.source import read
from fedray.questions.tasks import read_questions
from fedray.types import FedrayError


def packed(path: Path) -> Path:
    """The same file, gzipped."""
    to = path.with_name(f"{path.name}.gz")
    to.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return to


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow"])
@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_questions_and_tasks_read_the_same_rows_of_every_suffix(tmp_path: Path, suffix: str, gz: bool) -> None:
    path = write(tmp_path / f"logic_test{suffix}", CEVAL)
    path = packed(path) if gz else path
    path = path.rename(path.with_name(path.name.upper()))
    own = read_questions(path)
    asked, _ = read(BENCHMARKS["ceval"], "test", path=path)
    assert [(q.prompt, q.choices, q.gold) for q in own] == [(i.question, i.choices, i.gold) for _, i in asked.values()]
    assert own[0].choices == ("1", "2.50", "NA", "4") and own[0].answer == "NA"


@pytest.mark.parametrize("layout", ["list", "data", "lines", "indented"])
def test_json_holds_rows_in_several_layouts(tmp_path: Path, layout: str) -> None:
    path, found = tmp_path / "test.json", list(OPENBOOKQA)
    path.write_text(
        {
            "list": json.dumps(found),
            "data": json.dumps({"version": "1.0", "data": found}),
            "lines": "\n\n".join(map(json.dumps, found)),
            "indented": json.dumps({"data": found}, indent=2),
        }[layout]
    )
    assert [row for _, row in rows(path)] == found
    assert len(read(BENCHMARKS["openbookqa"], "test", path=path)[0]) == len(read_questions(path)) == 2


def test_bytes_order_marks_line_ends_blank_lines_and_quotes(tmp_path: Path) -> None:
    texts = {
        "a.txt": "\ufeffwhat?\r\n\r\n  why?\r\n",
        "a.jsonl": '\ufeff{"question": "what?"}\r\n\r\n{"question": "why?"}\r\n',
        "a.json": '\ufeff[{"question": "what?"},\r\n{"question": "why?"}]',
        "a.csv": '\ufeffquestion, id\r\nwhat?,"a, b"\r\n\r\n why? ,\r\n',
        "a.tsv": "\ufeffquestion\tid\r\nwhat?\ta, b\r\n\t\r\nwhy?\t\r\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        assert [q.prompt for q in read_questions(tmp_path / name)] == ["what?", "why?"], name


def test_values_come_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,A,B,C,D,answer\nwhich?,NA,007,None,1e3,B\n")
    (tmp_path / "a.jsonl").write_text(
        '{"question": "which?", "choices": [1.50, 7, "2020-01-01", "null"], "answer": 0}\n'
    )
    pq.write_table(
        pa.Table.from_pylist([{"question": "which?", "A": "NA", "B": "007", "answer": "B"}]), tmp_path / "a.parquet"
    )
    assert read_questions(tmp_path / "a.csv")[0].choices == ("NA", "007", "None", "1e3")
    assert read_questions(tmp_path / "a.jsonl")[0].choices == ("1.50", "7", "2020-01-01", "null")
    assert read_questions(tmp_path / "a.parquet")[0].answer == "007"


def test_pandas_empty_cells_are_empty(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"question": ["which?", "why?"], "choices": [["a", "b"], None], "answer": [1, None], "options": [None, None]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.parquet", "a.jsonl"):
        which, why = read_questions(tmp_path / name)
        assert which.answer == "b" and why.choices is None and why.answer is None


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.json", DEEP, "q.json is nested too deeply"),
        ("q.json", '{"data": ' + DEEP + "}", "q.json is nested too deeply"),
        ("q.json", '[{"question": "what?", "id": ' + DEEP + "}]", "q.json is nested too deeply"),
        ("q.jsonl", '{"question": "what?"}\n{"question": ' + DEEP + "}", "q.jsonl, line 2 is nested too deeply"),
        ("q.jsonl", '{"a":' * 100_000 + "1" + "}" * 100_000, "q.jsonl, line 1 is nested too deeply"),
        ("q.json", '{"question": "what?"}', "must be a list of rows"),
        ("q.json", '"what?"', "must be a list of rows"),
        ("q.json", "[1,", "q.json is not JSON"),
        ("q.jsonl", '\n{"question": "what?"', "q.jsonl, line 2 is not JSON"),
        ("q.jsonl", '{"question": ' + "9" * 5000 + "}", "q.jsonl, line 1 is not JSON"),
        ("q.csv", "question,answer\nwhat?\n", "q.csv, line 2 has 1 cells, and the header 2"),
        ("q.csv", "question\nwhat, and why?\n", "q.csv, line 2 has 2 cells, and the header 1"),
        ("q.csv", 'question\n"what?\nwhy?\n', "q.csv, line 2 cannot be read"),
        ("q.csv", "question,id,question\na,b,c\n", "q.csv, line 1 names the column 'question' twice"),
        ("q.tsv", 'question\tid\n"a"b\tc\n', "q.tsv, line 2 cannot be read"),
        ("q.parquet", "PAR1 and nothing else", "q.parquet cannot be read"),
        ("q.parquet", "", "q.parquet cannot be read"),
        ("q.arrow", "nothing", "q.arrow cannot be read"),
        ("q.jsonl.gz", '{"question": "what?"}', "q.jsonl.gz cannot be read"),
        ("q.parquet.gz", "PAR1", "q.parquet.gz cannot be read"),
        ("q.zip", "", "q.zip is of an unknown kind: name it .txt, .parquet"),
        ("q", "what?", "q is of an unknown kind"),
        ("gz", "what?", "gz is of an unknown kind"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FedrayError, match=says) as error:
        list(rows(tmp_path / name))
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("depth", [200, 400, 700, 900, 980, 990])
def test_no_depth_is_a_recursion_error(tmp_path: Path, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for row in ({"question": 0}, {"question": "what?", "choices": 0}, {"question": "what?", "id": 0}, {"domain": 0}):
        (tmp_path / "q.jsonl").write_text(json.dumps(row).replace("0", nested))
        with pytest.raises(FedrayError, match=r"q\.jsonl, line 1") as error:
            read_questions(tmp_path / "q.jsonl")
        assert len(str(error.value)) < 550


def test_a_damaged_archive_a_folder_and_nothing(tmp_path: Path) -> None:
    whole = packed(write(tmp_path / "a.jsonl", OPENBOOKQA))
    whole.write_bytes(whole.read_bytes()[:-12])
    (tmp_path / "folder.csv").mkdir()
    for name in ("a.jsonl.gz", "folder.csv", "none.txt"):
        with pytest.raises(FedrayError, match=f"{name} cannot be read") as error:
            list(rows(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_what_is_no_utf_8_is_refused_with_its_line(tmp_path: Path, suffix: str, gz: bool) -> None:
    lines = {".txt": ("what?", "@"), ".csv": ("question", "@"), ".tsv": ("question", "@")}
    first, second = lines.get(suffix, ('{"question": "what?"}', '{"question": "@"}'))
    path = tmp_path / f"q{suffix}"
    path.write_bytes(f"{first}\n{second}\n".encode().replace(b"@", b"na\xefve?"))
    path = packed(path) if gz else path
    with pytest.raises(FedrayError, match=rf"{path.name}, line 2 has byte 0xef, which is not UTF-8: convert it"):
        read_questions(path)
    path = tmp_path / f"r{suffix}"
    path.write_text("what?", encoding="utf-16")
    with pytest.raises(FedrayError, match=rf"{path.name}, line 1 has byte 0xff, which is not UTF-8"):
        read_questions(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "row",
    [
        r'{"question": "what is this? \ud83d"}',
        r'{"question": "which?", "choices": {"text": ["red\udc80", "b"], "label": ["A", "B"]}}',
        r'{"question": "which?", "choices": ["a", "\uDE00b"], "answer": 0}',
        r'{"question": "what?", "id": "\ud800"}',
        r'{"question": "what?", "\udfff": 1}',
    ],
)
def test_half_a_character_is_refused_with_its_line(tmp_path: Path, suffix: str, row: str) -> None:
    (tmp_path / f"q{suffix}").write_text('{"question": "fine \\ud83d\\ude00?"}\n' + row + "\n")
    with pytest.raises(
        FedrayError, match=rf"q{suffix}, line 2 has .*(\\u[0-9a-f]{{4}} without the other half|byte 0x80)"
    ):
        read_questions(tmp_path / f"q{suffix}")
    (tmp_path / "r.json").write_text(f"[{row}]")
    with pytest.raises(FedrayError, match=r"r.json, row 1 has "):
        read_questions(tmp_path / "r.json")


def test_parquet_that_is_no_utf_8_is_refused_with_its_row(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ab\xffb")
    texts = pa.StringArray.from_buffers(2, offsets, data)
    pq.write_table(pa.table({"question": texts}), tmp_path / "q.parquet")
    with pytest.raises(FedrayError, match=r"q.parquet, row 2 has text that is not UTF-8"):
        read_questions(tmp_path / "q.parquet")


def test_the_same_twice_is_refused(tmp_path: Path) -> None:
    for name in ("test.jsonl", "packed/test.jsonl"):
        write(tmp_path / name, OPENBOOKQA)
    packed(tmp_path / "packed" / "test.jsonl")
    with pytest.raises(FedrayError, match=r"the same as .jsonl and .jsonl.gz: leave one"):
        read(BENCHMARKS["openbookqa"], "test", path=tmp_path)


def test_data_sets_know_every_suffix_that_has_columns() -> None:
    assert set(SUFFIXES) - set(FORMATS) == {".txt"}
