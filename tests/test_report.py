from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fedray.methods.method import Gate, Method
from fedray.methods.specfed import SpecFed
from fedray.reporting import report
from fedray.reporting.report import (
    Answered,
    Cost,
    Found,
    Learned,
    MemberReport,
    Report,
    Spread,
    Tracked,
    Who,
)
from fedray.types import FedrayError, Missing, Need

FULL = Report(
    job="federate",
    zoo="tiny",
    seed=3,
    status="complete",
    who=Who(
        "qwen3-0.6b",
        ("llama-1b",),
        missing=(Missing("qwen2.5-1.5b", "late: no answer within 2 s"),),
        members=(MemberReport("qwen3-0.6b", "receiver", "qwen3", 1000, "cpu", "node", 42, "bfloat16", "c0ffee", 9),),
    ),
    how=Method(SpecFed(gamma="auto", top_k=320, weights=(0.5, 1.5)), gate=Gate("random", "lazy", 0.25)),
    task="tiny",
    found=Found(
        n=2,
        accuracy=0.5,
        stderr=0.35,
        accuracy_alone=0.0,
        p_value=1.0,
        rescued=1,
        weights={"bird": {"llama-1b": 0.8}},
    ),
    cost=Cost(1000, 12.5, seconds={"prefill[llama-1b]": Spread(0.1, 0.1, 0.2)}),
    answers=(
        Answered("the color?", ("red", "blue"), "red", "blue", "red"),
        Answered("und größer?", None, None, "ja", None),
    ),
    learned=(
        Learned(
            "a--b",
            "fuser",
            "complete",
            "0123",
            "/x",
            "none",
            9,
            4,
            100,
            1.5,
            {"loss": 0.5},
            {"bird": 1.0},
            {"bird": 0.5},
        ),
    ),
    needs=(Need("qwen3-0.6b", "receiver", "cpu", "float32", "", 1000, 9, 4000, 8, 7, 6, 5, 4, 0, None),),
    tracking=Tracked("sqlite:////x/mlflow.db", "abc"),
)


@pytest.mark.parametrize("written", [FULL, Report("x", "tiny", 0, "interrupted")], ids=["full", "bare"])
def test_what_is_written_is_read(tmp_path: Path, written: Report) -> None:
    path = report.write(written, tmp_path / "new" / "folder")
    assert path.name == "report.json"
    assert report.read(path) == report.read(path.parent) == written
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_the_keys_are_the_documented_ones(tmp_path: Path) -> None:
    keys = json.loads(report.write(FULL, tmp_path).read_text())
    assert set(keys) == {f.name for f in fields(Report)} and keys["schema"] == 2
    assert set(keys["who"]) == {"receiver", "senders", "type", "missing", "members", "order"}
    assert set(keys["how"]) == {f.name for f in fields(Method)}
    assert keys["how"]["protocol"] == {
        "name": "specfed",
        "draft": None,
        "gamma": "auto",
        "top_k": 320,
        "reconstruct": "spread",
        "weights": [0.5, 1.5],
        "weigh": "fixed",
        "vocab": "map",
        "patience_s": None,
        "measure": False,
    }
    assert keys["how"]["gate"] == {"kind": "random", "route": "lazy", "threshold": 0.25}
    assert keys["found"]["weights"] == {"bird": {"llama-1b": 0.8}}
    assert keys["cost"]["seconds"] == {"prefill[llama-1b]": {"mean": 0.1, "p50": 0.1, "p95": 0.2}}
    assert keys["who"]["missing"] == [{"member": "qwen2.5-1.5b", "reason": "late: no answer within 2 s"}]
    assert set(keys["answers"][0]) == {"question", "choices", "gold", "alone", "federated", "by_member", "read"}
    member = {"name", "role", "family", "parameters", "device", "node", "pid", "dtype", "revision", "memory_bytes"}
    member.add("prompting")
    assert set(keys["who"]["members"][0]) == member


def test_a_number_that_is_none_becomes_null(tmp_path: Path) -> None:
    path = report.write(replace(FULL, found=replace(FULL.found, accuracy=float("nan"))), tmp_path)
    assert report.read(path).found.accuracy is None


def test_a_report_replaces_the_last_one_or_leaves_it(tmp_path: Path) -> None:
    report.write(FULL, tmp_path)
    report.write(replace(FULL, seed=4), tmp_path)
    assert report.read(tmp_path).seed == 4
    with pytest.raises(TypeError):
        report.write(replace(FULL, task=object()), tmp_path)  # pyright: ignore[reportArgumentType]
    assert report.read(tmp_path).seed == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a report"),
        ("[]", "has report schema None"),
        ('{"schema": 3}', "has report schema 3, this version reads 1 and 2"),
        ('{"schema": 1}', "does not hold report schema 1 .*receiver"),
        ('{"schema": 1, "job": 3}', "does not hold report schema 1 .*job must be text"),
        ('{"schema": 1, "job": "x", "rows": [{"way": "c2c"}]}', "does not hold report schema 1"),
        ('{"schema": 1, "usage": 3, "rows": {}}', "does not hold report schema 1"),
        ('{"schema": 2}', "does not hold report schema 2 .*zoo, seed, status are missing"),
        ('{"schema": 2, "job": 3}', "does not hold report schema 2 .*job must be text"),
        ('{"schema": 2, "how": {"protocol": "t2"}}', "does not hold report schema 2 .*unknown how.protocol 't2'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(FedrayError, match=says) as error:
        report.read(path)
    assert str(path) in str(error.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FedrayError, match="output=DIR"):
        report.write(FULL, tmp_path / "file")
    with pytest.raises(FedrayError, match="cannot be read"):
        report.read(tmp_path / "nowhere")
