"""Every data set, read from files in its real schema, odd rows included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import ARC, CEVAL, GSM8K, MMLU_REDUX, OPENBOOKQA, OPENHERMES, Rows, write

from fedray.data.catalogue import BENCHMARKS, DataSet, benchmark
from fedray.data.catalogue import OPENHERMES as HERMES
from fedray.data.rows import Item, TrainingTalk
from fedray.data.source import DataSource, read
from fedray.types import FedrayError

pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]


def items(name: str, split: str, path: Path) -> tuple[list[Item], DataSource]:
    found, source = read(BENCHMARKS[name], split, path=path)
    return [item for _, item in found.values()], source


@pytest.mark.parametrize("file", ["test.jsonl", "test.json", "test.parquet", "main/test-00000-of-00001.parquet"])
def test_openbookqa(tmp_path: Path, file: str) -> None:
    write(tmp_path / file, OPENBOOKQA)
    found, source = read(BENCHMARKS["openbookqa"], "test", path=tmp_path)
    assert list(found) == ["main/7-980", "main/9-1160"]
    (_, sun), (_, poison) = found.values()
    assert sun.question == "The sun is responsible for" and sun.choices[sun.gold or 0].startswith("plants sprouting")
    assert poison.gold == 0 and len(poison.choices) == 4, "a key with a space in front is the key"
    assert (source.rows, source.left_out, source.repo, source.revision) == (2, {}, None, None)


def test_arc_has_three_to_five_choices_and_labels_of_two_kinds(tmp_path: Path) -> None:
    found, _ = items("arc-challenge", "test", write(tmp_path / "test.parquet", ARC))
    assert [len(item.choices) for item in found] == [4, 4, 3, 5]
    assert [item.choices[item.gold or 0] for item in found] == ["Days become shorter.", "gram", "yes", "a moss"]


def test_mmlu_redux_corrects_labels_and_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    write(tmp_path / "abstract_algebra" / "data-00000-of-00001.arrow", MMLU_REDUX)
    write(tmp_path / "virology" / "test.parquet", MMLU_REDUX[:1])
    (tmp_path / "abstract_algebra" / "state.json").write_text("{}")
    found, source = read(BENCHMARKS["mmlu-redux"], "test", path=tmp_path)
    kept = {item.question: item.choices[item.gold or 0] for _, item in found.values()}
    assert kept == {
        "Find the degree of the extension.": "4",
        "Which is unclear?": "2",
        "Corrected by a letter.": "6",
        "Corrected by an index.": "4",
        "Corrected by its text.": "6",
    }
    assert source.left_out == {"no_correct_answer": 1, "expert": 1, "wrong_groundtruth without a correction": 2}
    assert [group for group, _ in found.values()] == ["STEM"] * 5 + ["other"] and source.subsets == 2


def test_ceval_in_csv_keeps_every_value_as_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "val" / "computer_network_val.csv", CEVAL)
    write(tmp_path / "dev" / "computer_network_dev.csv", CEVAL[:1])
    found, source = read(BENCHMARKS["ceval"], "validation", path=tmp_path)
    assert [group for group, _ in found.values()] == ["STEM", "STEM"] and source.rows == 2
    bits, _ = (item for _, item in found.values())
    assert bits.choices == ("1", "2.50", "NA", "4") and bits.gold == 2


@pytest.mark.parametrize("answer", [{"answer": ""}, {}])
def test_ceval_without_answers(tmp_path: Path, answer: dict[str, str]) -> None:
    rows = [{key: row[key] for key in ("id", "question", *"ABCD")} | answer for row in CEVAL]
    write(tmp_path / "logic" / "test-00000-of-00001.parquet", rows)
    found, _ = items("ceval", "test", tmp_path)
    assert [(item.gold, item.answered) for item in found] == [(None, False)] * 2


def test_gsm8k(tmp_path: Path) -> None:
    found, _ = items("gsm8k", "test", write(tmp_path / "main" / "test.jsonl", GSM8K).parents[1])
    assert [item.target for item in found] == ["72", "1,250,000"] and not any(item.choices for item in found)


@pytest.mark.parametrize("file", ["openhermes2_5.json", "train.jsonl", "train.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_openhermes(tmp_path: Path, file: str, streaming: bool) -> None:
    found, source = read(HERMES, "train", path=write(tmp_path / file, OPENHERMES), streaming=streaming)
    leaves, hello, counted = (talk for _, talk in found.values())
    assert leaves == TrainingTalk(
        ("Every day, a tree drops 7 leaves. How many in a month of 30?",), "210.", "airoboros2.2"
    )
    assert hello == TrainingTalk(("Hello",), "Hi.", "orca"), "no system message"
    assert counted.turns == ("One?", "1", "Two?") and counted.answer == "2", "up to what the assistant says last"
    assert source.left_out == {
        "nothing the assistant says": 1,
        "user and assistant do not take turns": 1,
        "an empty message": 1,
    }
    first, cut = read(HERMES, "train", path=tmp_path, streaming=streaming, first=2)
    assert list(first) == list(found)[:2] and cut.rows == 2 and not cut.left_out


def test_content_has_one_hash_wherever_it_comes_from(tmp_path: Path) -> None:
    one = items("openbookqa", "test", write(tmp_path / "a" / "test.jsonl", OPENBOOKQA))[1]
    two = items("openbookqa", "test", write(tmp_path / "b" / "test.parquet", OPENBOOKQA))[1]
    other = items("openbookqa", "test", write(tmp_path / "c" / "test.jsonl", OPENBOOKQA[:1]))[1]
    assert one.hash == two.hash != other.hash


def test_a_folder_of_data_sets(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "test.jsonl", GSM8K)
    write(tmp_path / "openbookqa" / "test.jsonl", OPENBOOKQA)
    assert items("gsm8k", "test", tmp_path)[1].rows == items("openbookqa", "test", tmp_path)[1].rows == 2
    with pytest.raises(FedrayError, match=r"holds openbookqa, gsm8k and no ceval: put a copy into .*ceval"):
        items("ceval", "test", tmp_path)


def test_siblings_are_something_else(tmp_path: Path) -> None:
    write(tmp_path / "ARC-Easy" / "test.parquet", ARC)
    with pytest.raises(FedrayError, match=r"no file below .* is of a subset of it.*ARC-Challenge/test.parquet"):
        items("arc-challenge", "test", tmp_path)
    write(tmp_path / "ARC-Challenge" / "test.parquet", ARC[:1])
    assert len(items("arc-challenge", "test", tmp_path)[0]) == 1


def broken(rows: Rows, **changes: object) -> Rows:
    return [{**rows[0], **changes}]


@pytest.mark.parametrize(
    ("name", "file", "rows", "says"),
    [
        (
            "openbookqa",
            "test.jsonl",
            [{"question": "x"}],
            "line 1 of .*test.jsonl: choices is missing; .*question_stem",
        ),
        ("openbookqa", "test.jsonl", broken(OPENBOOKQA, answerKey="E"), "the answer 'E' is none of A, B, C, D"),
        ("arc-challenge", "test.jsonl", broken(ARC, choices={"text": ["a"], "label": ["A"]}), "two or more texts"),
        ("mmlu-redux", "test.jsonl", broken(MMLU_REDUX, answer=9), "the answer '9' is none of 0, 1, 2, 3"),
        ("mmlu-redux", "test.jsonl", broken(MMLU_REDUX, choices="0"), "choices is '0'"),
        ("ceval", "law_test.csv", [{"id": 0, "question": "x", "A": "a"}], "B is missing"),
        ("gsm8k", "test.jsonl", [{"question": "x", "answer": "42"}], 'answer has no "#### number" at the end'),
        ("openbookqa", "train.jsonl", OPENBOOKQA, "has no test split in .*, which holds train"),
        ("ceval", "law_dev.csv", CEVAL, "has no test split in .*, which holds dev"),
        ("openbookqa", "test.txt", OPENBOOKQA, "holds no file that ends in .parquet, .jsonl"),
        ("openbookqa", "test.jsonl", [], "openbookqa: .* holds no row that can be used: it is empty"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, name: str, file: str, rows: Rows, says: str) -> None:
    write(tmp_path / file, rows)
    with pytest.raises(FedrayError, match=says) as error:
        read(benchmark(name), "test", path=tmp_path)
    assert "\n" not in str(error.value) and (name in str(error.value))


def test_what_cannot_be_told_apart_or_read(tmp_path: Path) -> None:
    write(tmp_path / "two" / "test.jsonl", OPENBOOKQA)
    write(tmp_path / "two" / "test.parquet", OPENBOOKQA)
    with pytest.raises(FedrayError, match=r"the same as .jsonl and .parquet: leave one"):
        items("openbookqa", "test", tmp_path / "two")
    damaged = tmp_path / "test.parquet"
    damaged.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(FedrayError, match=r"openbookqa: .*test.parquet cannot be read \(.*\): mend it"):
        items("openbookqa", "test", damaged)
    with pytest.raises(FedrayError, match=r"data.path=.*nowhere does not exist"):
        items("openbookqa", "test", tmp_path / "nowhere")
    with pytest.raises(FedrayError, match="gsm8k has no validation split: choose train or test"):
        items("gsm8k", "validation", tmp_path)
    with pytest.raises(FedrayError, match=r"unknown data set 'openbook' \(did you mean openbookqa\?\)"):
        benchmark("openbook")


def test_offline_says_what_to_do() -> None:
    script = (
        "from fedray.data.catalogue import BENCHMARKS\nfrom fedray.data.source import read\n"
        "try:\n    read(BENCHMARKS['openbookqa'], 'test')\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = "allenai/openbookqa main test cannot be read from the hub"
    assert done.stdout.startswith(said) and "connect, or give a local copy: data.path=DIR" in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr


@pytest.mark.parametrize("data", [*BENCHMARKS.values(), HERMES], ids=lambda data: data.name)
def test_the_catalogue_holds_together(data: DataSet) -> None:
    assert data.main in data.splits and data.subsets and not set(data.siblings) & set(data.subsets)
