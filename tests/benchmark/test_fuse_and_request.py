"""suite=fuse and suite=request on LLMs of a few thousand parameters: every row, and what they compare is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import COMMON

from fedray.benchmark import cost, fuse, request, second_turn, throughput, train
from fedray.benchmark.bench import Bench
from fedray.benchmark.pair import BenchmarkPair, prompt
from fedray.benchmark.settings import BenchmarkSettings
from fedray.llm.loading import default_dtype
from fedray.registry import untrained
from fedray.settings.check import cpp_compiler
from fedray.settings.settings import TrackingSettings
from fedray.types import FedrayError

SIZES = {"receiver": (64, 2, 4), "sender": (48, 3, 3), "second": (48, 3, 3)}
TOKENS = 24


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchmarkSettings:
    monkeypatch.setattr(untrained, "WIDTH", 32)
    names: dict[str, Any] = {}
    for name, (hidden, heads, layers) in SIZES.items():
        config = {
            **COMMON,
            "model_type": "qwen3",
            "hidden_size": hidden,
            "num_key_value_heads": heads,
            "num_hidden_layers": layers,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        names[name] = str(tmp_path / name)
    quiet = TrackingSettings(enabled=False)
    output = tmp_path / "out"
    return BenchmarkSettings(repeats=1, tokens=TOKENS, longest=128, tracking=quiet, output=output, **names)


@pytest.mark.filterwarnings("error::FutureWarning")  # of transformers to come
def test_the_published_sequence_says_what_fedray_says(settings: BenchmarkSettings) -> None:
    """The same next token, of the same fused cache: what is compared differs in seconds alone."""
    pair = BenchmarkPair(settings)
    for tokens in (3, TOKENS, 50):
        logits = pair.published.first_token(prompt(tokens))
        assert pair.ask(tokens).rows[0].tokens == (int(logits.argmax()),)
    alone = pair.members[pair.receiver].alone("s", _alone(TOKENS)).rows[0].tokens
    for projector in pair.fuser().projectors:  # what would be measured if the gates were closed
        for side in ("key", "value"):
            getattr(projector, f"{side}_gate_logit").data.fill_(-1.0)
    pair.fuser().eval()
    assert pair.ask(TOKENS).rows[0].tokens == alone


def _alone(tokens: int) -> Any:
    from fedray.benchmark.pair import request as ask

    return ask(prompt(tokens), 1)


def test_a_pair_goes_from_one_precision_to_the_other(settings: BenchmarkSettings) -> None:
    pair = BenchmarkPair(settings)
    pair.to("bfloat16")
    assert pair.fuser().projectors[0].key_in.weight.dtype == torch.bfloat16  # pyright: ignore
    assert not pair.ask(TOKENS).missing
    pair.to("float32")
    assert not pair.ask(TOKENS).missing


def test_fusing_has_its_rows(settings: BenchmarkSettings) -> None:
    bench = Bench(replace(settings, rows=fuse.ROWS))
    fuse.measure(bench)
    rows = {row.name: row for row in bench.rows}
    dtypes = {"float32", default_dtype("shapes", "cpu")}
    assert rows.keys() == {f"{name}.{dtype}" for name in fuse.ROWS for dtype in dtypes}
    differ = {row for name, row in rows.items() if name.startswith("fuse.groups_differ")}
    assert all(row.holds for row in differ) and len(differ) == len(dtypes)
    assert all(row.value > 0 and row.ratio for row in rows.values() if row not in differ)


def test_all_of_fusing_has_its_rows(settings: BenchmarkSettings) -> None:
    bench = Bench(replace(settings, rows=(fuse.WHOLE, fuse.FLOOR, fuse.MS)))
    fuse.measure(bench)
    dtypes = {"float32", default_dtype("shapes", "cpu")}
    assert {row.name for row in bench.rows} == {
        f"{row}.{dtype}" for row in (fuse.WHOLE, fuse.FLOOR) for dtype in dtypes
    }
    assert all(row.value > 0 and row.ratio for row in bench.rows)


def test_a_published_training_step_has_its_rows(settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is measured on a GPU alone."""
    for name, value in (("reset_peak_memory_stats", None), ("max_memory_allocated", 1 << 20)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    bench = Bench(settings)
    train._published(bench, replace(train.PUBLISHED, hidden=32, batch_size=2), longest=96)
    rows = {row.name: row for row in bench.rows}
    assert rows.keys() == {train.STEP, f"{train.STEP}.tokens_per_s", train.PEAK}
    assert rows[train.PEAK].baseline and rows[train.STEP].value > 0


@pytest.mark.slow
@pytest.mark.skipif(cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_fuser_has_its_row(settings: BenchmarkSettings) -> None:
    bench = Bench(replace(settings, rows=(f"{fuse.COMPILED}.default.float32",)))
    fuse.measure(bench)
    (row,) = bench.rows
    assert row.name == f"{fuse.COMPILED}.default.float32" and row.value > 0 and row.ratio


def test_the_first_token_has_its_rows(settings: BenchmarkSettings) -> None:
    bench = Bench(settings)
    request._first_token(bench, BenchmarkPair(settings), "bfloat16")
    rows = {row.name: row for row in bench.rows}
    first = {request.FIRST, f"{request.FIRST}.bfloat16", f"{request.FIRST}.auto"}
    split = {f"request.published.{phase}.{d}" for phase in request.PHASES for d in ("float32", "bfloat16")}
    assert rows.keys() == first | split
    assert {rows[name].limit for name in first} == {1.5, 2.5}


def test_text_is_a_hint_that_the_receiver_reads(settings: BenchmarkSettings) -> None:
    pair = BenchmarkPair(settings)
    answer = pair.tell(TOKENS, 5)
    assert answer.usage.prompt_tokens == TOKENS + 5 and answer.usage.answer_tokens == 1


def test_a_request_has_its_rows_in_this_process(settings: BenchmarkSettings) -> None:
    bench = Bench(settings)
    pair = BenchmarkPair(settings)
    request._floor(bench, pair)
    cost.decode(bench, pair)
    cost.phases(bench, pair)
    names = {row.name for row in bench.rows}
    assert {request.FLOOR, "request.decode_s_per_token", "request.phase.floor", "request.phase.prefill.sender"} <= names


def test_a_second_turn_reads_what_is_new(settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, pair = Bench(replace(settings, repeats=3)), BenchmarkPair(settings)
    second_turn.over_whole(bench, pair)
    (row,) = bench.rows
    assert row.name == second_turn.ROW and row.value > 0 and row.ratio and row.against == "all 56 tokens read anew"
    assert [member.stats()["sessions"] for member in pair.members.values()] == [0, 0]
    monkeypatch.setattr(pair, "read_on", lambda ids, talk: BenchmarkPair.read_on(pair, ids, None))
    with pytest.raises(FedrayError, match=r"a second turn of 32 tokens read .*: 56"):
        second_turn.over_whole(bench, pair)


def test_bytes_grow_with_tokens_and_senders(settings: BenchmarkSettings) -> None:
    bench = Bench(settings)
    cost.growth(bench, BenchmarkPair(settings, copies=max(cost.SENDERS)))
    size = {row.name: row.value for row in bench.rows if row.unit == "byte"}
    one = size["request.bytes_at_1_senders"]
    assert size["request.bytes_at_4_senders"] == pytest.approx(4 * one, rel=0.01)
    assert size["request.bytes_at_128_tokens"] == pytest.approx(2 * size["request.bytes_at_64_tokens"], rel=0.05)
    assert (settings.output / "figures" / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_request_has_its_rows_on_ray(settings: BenchmarkSettings) -> None:
    bench = Bench(settings)
    request._over_local(bench, BenchmarkPair(settings), "float32")
    request._two_senders(bench, "float32")
    assert [row.name for row in bench.rows] == [request.OVER_LOCAL, request.TWO]
    assert all(row.value > 0 and row.ratio and row.limit for row in bench.rows)


def test_batches_answer_as_single_questions_do(settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "QUESTIONS", 12)
    monkeypatch.setattr(throughput, "BATCH", 6)
    bench = Bench(replace(settings, rows=(throughput.BATCHED,)))
    throughput.rows(bench)
    (row,) = bench.rows
    assert row.name == throughput.BATCHED and row.limit == 5.0 and row.value > 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_batches_that_overlap_answer_as_others_do(settings: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MORE", 12)
    monkeypatch.setattr(throughput, "BATCH", 3)
    bench = Bench(replace(settings, rows=(throughput.PIPELINED,)))
    throughput.rows(bench)
    (row,) = bench.rows
    assert row.name == throughput.PIPELINED and row.baseline and row.limit is None
