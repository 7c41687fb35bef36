"""Reports of schema 1, where everything lay flat, are read as those of schema 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedray.methods.fedattn import FedAttn
from fedray.methods.method import (
    NO_GATE,
    T2T,
    CacheToCache,
    FuserChoice,
    Fusion,
    Gate,
    Method,
    SelfRefine,
    Standalone,
    TextToText,
    Wire,
)
from fedray.methods.specfed import SpecFed
from fedray.protocols import METHOD
from fedray.reporting import report, schema_1
from fedray.reporting.report import (
    Answered,
    Compared,
    Contribution,
    Cost,
    Data,
    Evaluated,
    Found,
    Leaked,
    Learned,
    Measured,
    MemberReport,
    Report,
    SenderOrder,
    Spread,
    Tracked,
    Who,
)
from fedray.types import Missing, Need

MEMBER = {
    "name": "qwen3-0.6b",
    "role": "receiver",
    "family": "qwen3",
    "parameters": 671232,
    "device": "cpu",
    "node": "vm",
    "pid": 42,
    "dtype": "float32",
    "revision": "",
    "memory_bytes": 9,
}
LOST = {"member": "llama-1b", "reason": "died"}
FEDERATED: dict[str, Any] = {
    "schema": 1,
    "job": "federate",
    "zoo": "tiny",
    "receiver": "qwen3-0.6b",
    "senders": ["qwen2.5-0.5b", "llama-1b"],
    "seed": 3,
    "status": "complete",
    "protocol": "c2c",
    "type": "heterogeneous cache",
    "fuser": "c2c",
    "fusion": "mix",
    "fusion_order": "sequential",
    "compile": "default",
    "gate": "open",
    "rephrase": "shared",
    "wire": "int4",
    "keep": 0.5,
    "keep_layers": 0.75,
    "control": "noise",
    "task": "tiny",
    "scoring": "letters",
    "data": [
        {
            "name": "tiny",
            "split": "test",
            "repo": None,
            "revision": None,
            "subsets": 1,
            "rows": 4,
            "left_out": {"blank": 1},
            "hash": "0123",
        }
    ],
    "n": 4,
    "accuracy": 0.75,
    "stderr": 0.25,
    "accuracy_alone": 0.5,
    "p_value": 1.0,
    "rescued": 2,
    "harmed": 1,
    "unrephrased": 1,
    "unparseable": 2,
    "unparseable_alone": 3,
    "by_member": {"llama-1b": 0.5},
    "usage": {
        "payload_bytes": 1000,
        "bytes_per_token": 12.5,
        "seconds": {"prefill[llama-1b]": {"p50": 0.1, "p95": 0.2}, "total": {"p50": 0.3, "p95": 0.4}},
        "at_a_time": 2,
    },
    "speculation": {},
    "missing": [LOST],
    "members": [MEMBER],
    "answers": [
        {
            "question": "the color?",
            "choices": ["red", "blue"],
            "gold": "red",
            "alone": "blue",
            "federated": "red",
            "by_member": {},
            "read": {},
        }
    ],
    "trust": {"all": {"llama-1b": 0.4}, "bird": {"llama-1b": 0.8}},
    "learned": [
        {
            "name": "a--b",
            "role": "fuser",
            "status": "complete",
            "hash": "0123",
            "path": "/x",
            "steps": 9,
            "resumed_at": 4,
            "questions": 100,
            "seconds": 1.5,
            "figures": {"loss": 0.5},
            "validation": {"bird": 1.0},
            "validation_alone": {"bird": 0.5},
            "control": "identical",
        }
    ],
    "needs": [
        {
            "member": "qwen3-0.6b",
            "role": "receiver",
            "device": "cpu",
            "dtype": "float32",
            "revision": "",
            "parameters": 1000,
            "prompt_tokens": 9,
            "weights": 4000,
            "cache": 8,
            "fusers": 7,
            "work": 6,
            "process": 5,
            "loading": 4,
            "wire_per_token": 0,
            "download": None,
        }
    ],
    "rows": [],
    "comparisons": [],
    "contributions": [],
    "order": None,
    "tracking": {"uri": "sqlite:////x/mlflow.db", "run_id": "abc"},
}
ROW: dict[str, Any] = {
    "task": "tiny",
    "receiver": "qwen3-0.6b",
    "senders": [],
    "way": "standalone",
    "protocol": "standalone",
    "type": None,
    "fuser": "none",
    "fusion": "none",
    "gate": "none",
    "rephrase": "none",
    "control": "none",
    "t2t_gate": "none",
    "full": False,
    "answer_all": False,
    "seeds": [0, 1],
    "n": 8,
    "accuracy": 0.5,
    "stderr": 0.125,
    "accuracy_alone": 0.5,
    "p_alone": 1.0,
    "gain_points": 0.0,
    "gain_percent": 0.0,
    "rescued": 0,
    "harmed": 0,
    "unparseable": 0.375,
    "failed": 1,
    "unrephrased": 2,
    "latency_requests": 5,
    "latency_mean": 0.25,
    "latency_p50": 0.2,
    "latency_p95": 0.4,
    "latency": {"total": {"mean": 0.25, "p50": 0.2, "p95": 0.4}},
    "payload_bytes": 0,
    "bytes_per_token": 0.0,
    "bytes_per_token_analytic": None,
    "weights": {},
    "by_member": {},
    "missing": [],
    "wall_s": 1.5,
    "scoring": "told",
    "wire": "none",
    "keep": 1.0,
    "score": "last",
    "keep_layers": 1.0,
    "layer_score": "spread",
    "gamma": "none",
    "top_k": "none",
    "reconstruct": "none",
    "temperature": 0.0,
    "measured": False,
    "tokens_per_s": 20.0,
    "speculation": {},
    "leakage": [],
    "fedattn": None,
}
SHARED = {
    "participants": 5,
    "sync_every": 4,
    "offset": -1,
    "placement": "deep",
    "layers": [1, 2],
    "segments": "even",
    "question_apart": False,
    "tokens": 0.5,
    "publisher_tokens": 0.75,
    "exchange": 0.25,
    "score": "rare",
}
SPECULATED = {"protocol": "specfed", "type": "heterogeneous token", "senders": ["llama-1b"], "top_k": "0.01"}
OF_ROWS: list[tuple[dict[str, Any], Method, float | None]] = [
    ({}, Method(Standalone(), gate=NO_GATE), None),
    ({"protocol": "self_refine", "way": "self_refine"}, Method(SelfRefine(), gate=NO_GATE), None),
    (
        {"protocol": "t2t", "t2t_gate": "same", "gate": "learned", "full": True, "rephrase": "distinct"},
        Method(TextToText(), t2t=T2T(gate="same", full=True), rephrase="distinct"),
        None,
    ),
    (
        {"protocol": "c2c", "fuser": "c2c", "fusion": "mix", "gate": "oracle", "control": "constant"}
        | {"answer_all": True, "wire": "int8", "keep": 0.3, "score": "norm"}
        | {"keep_layers": 0.5, "layer_score": "deep"},
        Method(
            CacheToCache(),
            FuserChoice("c2c"),
            Fusion("mix"),
            gate=Gate("oracle"),
            control="constant",
            answer_all=True,
            wire=Wire("int8", 0.3, "norm", 0.5, "deep"),
        ),
        None,
    ),
    (
        {"protocol": "fedattn", "wire": "int8", "fedattn": SHARED},
        Method(
            FedAttn(5, 4, -1, "deep", (1, 2), "even", False, 0.5, 0.75, 0.25, "rare"), gate=NO_GATE, wire=Wire("int8")
        ),
        None,
    ),
    (
        {**SPECULATED, "gamma": "auto", "reconstruct": "renorm", "measured": True, "temperature": 0.8},
        Method(SpecFed(gamma="auto", reconstruct="renorm", measure=True), gate=NO_GATE),
        0.8,
    ),
    ({**SPECULATED, "gamma": "2", "top_k": "1", "reconstruct": "spread"}, Method(SpecFed(gamma=2, top_k=1)), None),
    ({**SPECULATED, "gamma": "2", "top_k": "1.0", "reconstruct": "spread"}, Method(SpecFed(gamma=2, top_k=1.0)), None),
    (
        {**SPECULATED, "gamma": "4", "top_k": "1e-05", "reconstruct": "spread"},
        Method(SpecFed(gamma=4, top_k=1e-05)),
        None,
    ),
    (
        {**SPECULATED, "gamma": "none", "top_k": "1.0", "reconstruct": "spread"},
        Method(SpecFed("none", top_k=1.0)).canonical(),
        None,
    ),
]


def read(keys: dict[str, Any], folder: Path) -> Report:
    (folder / report.NAME).write_text(json.dumps(keys))
    return report.read(folder)


def of_row(changes: dict[str, Any], folder: Path) -> Evaluated:
    (row,) = read({**FEDERATED, "job": "evaluate", "rows": [{**ROW, **changes}]}, folder).evaluated
    return row


def test_who_how_what_and_at_which_cost(tmp_path: Path) -> None:
    assert read(FEDERATED, tmp_path) == Report(
        job="federate",
        zoo="tiny",
        seed=3,
        status="complete",
        who=Who(
            "qwen3-0.6b",
            ("qwen2.5-0.5b", "llama-1b"),
            "heterogeneous cache",
            (Missing("llama-1b", "died"),),
            (MemberReport("qwen3-0.6b", "receiver", "qwen3", 671232, "cpu", "vm", 42, "float32", "", 9),),
        ),
        how=Method(
            CacheToCache(),
            fuser=FuserChoice("c2c"),
            fusion=Fusion("mix"),
            fusion_order="sequential",
            compile="default",
            gate=Gate("open"),
            control="noise",
            rephrase="shared",
            wire=Wire("int4", 0.5, keep_layers=0.75),
        ),
        task="tiny",
        scoring="letters",
        data=(Data("tiny", "test", None, None, 1, 4, {"blank": 1}, "0123"),),
        found=Found(
            n=4,
            accuracy=0.75,
            stderr=0.25,
            accuracy_alone=0.5,
            p_value=1.0,
            rescued=2,
            harmed=1,
            unrephrased=1,
            unparseable=2,
            unparseable_alone=3,
            by_member={"llama-1b": 0.5},
            weights={"all": {"llama-1b": 0.4}, "bird": {"llama-1b": 0.8}},
        ),
        cost=Cost(
            1000,
            12.5,
            seconds={"prefill[llama-1b]": Spread(0.1, 0.1, 0.2), "total": Spread(0.3, 0.3, 0.4)},
            at_a_time=2,
        ),
        answers=(Answered("the color?", ("red", "blue"), "red", "blue", "red"),),
        learned=(
            Learned(
                name="a--b",
                role="fuser",
                status="complete",
                hash="0123",
                path="/x",
                control="identical",
                steps=9,
                resumed_at=4,
                questions=100,
                seconds=1.5,
                figures={"loss": 0.5},
                validation={"bird": 1.0},
                validation_alone={"bird": 0.5},
            ),
        ),
        needs=(Need("qwen3-0.6b", "receiver", "cpu", "float32", "", 1000, 9, 4000, 8, 7, 6, 5, 4, 0, None),),
        tracking=Tracked("sqlite:////x/mlflow.db", "abc"),
    )


def test_it_is_written_as_schema_2(tmp_path: Path) -> None:
    found = read(FEDERATED, tmp_path)
    assert found.schema == 2
    assert json.loads(report.write(found, tmp_path).read_text())["schema"] == 2 and report.read(tmp_path) == found


@pytest.mark.parametrize(("changes", "how", "temperature"), OF_ROWS, ids=lambda value: str(value)[:50])
def test_how_a_row_was_answered(
    tmp_path: Path, changes: dict[str, Any], how: Method, temperature: float | None
) -> None:
    row = of_row(changes, tmp_path)
    assert row.how.canonical() == how.canonical() and row.temperature == temperature
    assert repr(row.how.canonical()) == repr(how.canonical()), "a top_k of 1 is not one of 1.0"
    assert row.is_alone == (how.protocol.name == "standalone")


def test_what_a_row_found_and_cost(tmp_path: Path) -> None:
    figures = {"rounds": 4, "acceptance": None, "delta": 0.25}
    changes = {
        "protocol": "c2c",
        "way": "c2c (mix)",
        "senders": ["llama-1b"],
        "type": "heterogeneous cache",
        "rescued": 3,
        "harmed": 1,
        "accuracy_alone": 0.25,
        "p_alone": 0.625,
        "gain_points": 25.0,
        "gain_percent": 100.0,
        "payload_bytes": 100,
        "bytes_per_token": 2.5,
        "bytes_per_token_analytic": 4.0,
        "weights": {"llama-1b": 0.75},
        "by_member": {"llama-1b": 0.5},
        "missing": [LOST],
        "speculation": figures,
        "leakage": [{"phrasing": "all", "seen_by": "llama-1b", "n": 4, "figures": {"jaccard": 0.5, "x": None}}],
    }
    row = of_row(changes, tmp_path)
    assert (row.task, row.scoring, row.seeds, row.way) == ("tiny", "told", (0, 1), "c2c (mix)")
    assert row.who == Who("qwen3-0.6b", ("llama-1b",), "heterogeneous cache", (Missing("llama-1b", "died"),))
    assert row.found == Found(
        n=8,
        accuracy=0.5,
        stderr=0.125,
        accuracy_alone=0.25,
        p_value=0.625,
        rescued=3,
        harmed=1,
        failed=1,
        unrephrased=2,
        unparseable=3,  # of 8; schema 1 had the share
        by_member={"llama-1b": 0.5},
        weights={"all": {"llama-1b": 0.75}},
        speculation=figures,
    )
    total = Spread(0.25, 0.2, 0.4)
    assert row.cost == Cost(100, 2.5, 4.0, {"total": total}, requests=5, tokens_per_s=20.0, wall_s=1.5)
    assert row.seconds == total and (row.gain_points, row.gain_percent) == (25.0, 100.0)
    assert row.leakage == (Leaked("all", "llama-1b", 4, {"jaccard": 0.5, "x": None}),)


def test_what_stands_beside_the_rows(tmp_path: Path) -> None:
    compared = {"task": "tiny", "rows": [0, 1], "a": "t2t", "b": "c2c", "n": 8, "accuracy_a": 0.25, "accuracy_b": 0.5}
    compared |= {"points": 25.0, "rescued": 3, "harmed": 1, "p": 0.625, "low": None, "high": 40.0}
    given = {"task": "tiny", "receiver": "qwen3-0.6b", "way": "c2c", "of": 2, "sender": "llama-1b"}
    given |= {"points": 12.5, "p": 1.0, "bytes_per_token": 2.5}
    order = {"by": "validation", "senders": ["llama-1b"], "gains": {"llama-1b": 12.5}, "n": 40}
    beside = {"comparisons": [compared], "contributions": [given], "order": order}
    found = read({**FEDERATED, "job": "evaluate", "rows": [ROW], **beside}, tmp_path)
    assert found.comparisons == (Compared("tiny", (0, 1), "t2t", "c2c", 8, 0.25, 0.5, 25.0, 3, 1, 0.625, None, 40.0),)
    assert found.contributions == (Contribution("tiny", "qwen3-0.6b", "c2c", 2, "llama-1b", 12.5, 1.0, 2.5),)
    assert found.who.order == SenderOrder("validation", ("llama-1b",), {"llama-1b": 12.5}, 40)


def test_rows_of_a_benchmark_are_as_they_were(tmp_path: Path) -> None:
    row = {"name": "fuse", "value": 2.0, "unit": "ms", "baseline": 4.0, "ratio": 0.5, "limit": 1.0, "sense": "at most"}
    found = read({**FEDERATED, "job": "benchmark", "rows": [{**row, "against": "eager"}]}, tmp_path)
    assert found.rows == (Measured("fuse", 2.0, "ms", 4.0, 0.5, 1.0, "at most", "eager"),)


def test_what_a_job_left_out_is_at_its_default(tmp_path: Path) -> None:
    bare = {"schema": 1, "zoo": "tiny", "receiver": "", "senders": [], "seed": 0, "status": "complete"}
    found = read({**bare, "job": "train_gate"}, tmp_path)
    assert found == Report("train_gate", "tiny", 0, "complete", how=Method())
    for job in ("registry", "benchmark", "build_zoo"):
        assert read({**bare, "job": job}, tmp_path).how is None, "nobody was asked"


def test_a_row_of_specfed_without_drafts_is_the_method_it_would_be_today() -> None:
    row = {"protocol": "specfed", "gamma": "none", "top_k": "1.0", "reconstruct": "spread", "measured": False}
    how = METHOD.read(schema_1._method({**row, "gate": "none"}))
    today = METHOD.read({"protocol": {"name": "specfed", "draft": "none", "top_k": 1.0}})
    assert how == how.canonical() == today.canonical()
