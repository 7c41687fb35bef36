"""plan=true: what a run would take, before anything is loaded; and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedray.federation import estimate
from fedray.federation.federation import Federation
from fedray.jobs.federate import run
from fedray.llm import shapes, source
from fedray.llm.memory import MIB
from fedray.reporting import report
from fedray.reporting.report import Report
from fedray.settings.settings import build
from fedray.types import FedrayError, Need

PROMPT = "which planet is the largest?"
MADE: dict[int, Any] = {}  # vocabulary size -> tokenizer
TRIED: set[str] = set()  # configurations that ran
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 400,
}


@pytest.fixture(autouse=True)
def made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of real size takes a quarter of a second to make, and trying out an architecture half a second; both
    are the same in every plan of an LLM."""
    make, try_out = shapes.build_tokenizer, source.try_out

    def once(config: Any) -> Any:
        if config.vocab_size not in MADE:
            MADE[config.vocab_size] = make(config)
        return MADE[config.vocab_size]

    def tried_once(title: str, model: Any) -> None:
        if (config := model.config.to_json_string(use_diff=False)) not in TRIED:
            try_out(title, model)
            TRIED.add(config)

    monkeypatch.setattr(shapes, "build_tokenizer", once)
    monkeypatch.setattr(source, "try_out", tried_once)


def foretell(output: Path, **values: Any) -> tuple[Report, dict[str, Need]]:
    given = {"zoo": "shapes", "plan": True, "prompt": PROMPT, "tracking": False, "output": output, **values}
    assert run(build(given)) == 0
    left = report.read(output)
    assert (left.job, left.status) == ("federate", "planned")
    return left, {need.member: need for need in left.needs}


def test_a_plan_of_real_sizes_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, needs = foretell(tmp_path, senders=["qwen2.5-0.5b", "llama-1b"])
    assert list(needs) == ["qwen3-0.6b", "qwen2.5-0.5b", "llama-1b"] and left.who.members == ()
    receiver, sender = needs["qwen3-0.6b"], needs["qwen2.5-0.5b"]
    size = 2 if receiver.dtype == "bfloat16" else 4
    assert receiver.weights == 596_049_920 * size and receiver.role == "receiver"
    assert receiver.prompt_tokens == len(PROMPT) + 19, "a token per byte, and the template's"
    assert sender.wire_per_token == 2 * 24 * 2 * 64 * size and receiver.wire_per_token == 0
    assert receiver.fusers > 2 * 100_000_000 * size and sender.fusers == 0
    assert all(need.download == 0 for need in needs.values())
    shown = capsys.readouterr().out
    assert "596 M" in shown and f"{sender.wire_per_token:,} bytes per token of qwen2.5-0.5b's prompt" in shown
    assert shown.splitlines()[-1] == f"report: {tmp_path / 'report.json'}"


def test_what_is_asked_shows_in_what_it_takes(tmp_path: Path) -> None:
    def receiver(number: int, **values: Any) -> Need:
        return foretell(tmp_path / str(number), senders=["qwen2.5-0.5b"], **values)[1]["qwen3-0.6b"]

    plain = receiver(0)
    assert receiver(1, members={"qwen3-0.6b": {"dtype": "float32"}}).weights == 4 * plain.parameters
    assert receiver(2, generation={"max_tokens": 2000}).cache > 5 * plain.cache
    many = tmp_path / "many.txt"
    many.write_text("\n".join([PROMPT] * 40))
    one = {"prompt": None, "questions": many, "task": {"batches_in_flight": 1}}
    assert receiver(3, **one).cache == 32 * plain.cache, "task.batch_size at a time"
    two = receiver(7, prompt=None, questions=many).cache - 32 * plain.cache
    assert 0 < two < 32 * plain.cache, "and what the receiver has read of the next batch"
    assert receiver(8, prompt=None, questions=many, ray=False).cache == 32 * plain.cache
    assert receiver(4, protocol="t2t").fusers == 0
    half = foretell(tmp_path / "half", senders=["qwen2.5-0.5b"], wire={"keep_layers": 0.5})[1]["qwen2.5-0.5b"]
    whole = foretell(tmp_path / "whole", senders=["qwen2.5-0.5b"])[1]["qwen2.5-0.5b"]
    assert 2 * half.wire_per_token == whole.wire_per_token
    assert receiver(5, fusion="mix").fusers != plain.fusers != receiver(6, fuser="c2c").fusers


def test_scored_choices_count_where_they_are_scored_and_only_there(tmp_path: Path) -> None:
    """Of an ensemble at every member; answers that are written, and what senders of others send, cost nothing more."""
    asked = tmp_path / "asked.jsonl"
    choices = {"text": ["red", "blue", "a colour that has a name of many words"], "label": ["A", "B", "C"]}
    row = {"question_stem": PROMPT, "choices": choices, "answerKey": "A"}
    asked.write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i in range(20)))

    def work(number: int, scoring: str, **how: Any) -> list[tuple[int, int]]:
        given = {
            "senders": ["llama-1b"],
            "prompt": None,
            "questions": asked,
            "task": {"scoring": scoring, "max_tokens": 32},
            **how,
        }
        needs = foretell(tmp_path / str(number), **given, ray=False)[1]
        return [(need.cache, need.work) for need in needs.values()]

    scored, written = work(0, "letters", protocol="ensemble"), work(1, "letters-generated", protocol="t2t")
    told = work(2, "letters", protocol="t2t")
    assert all(a[0] > b[0] and a[1] > b[1] for a, b in zip(scored, written, strict=True))
    assert told[0] == scored[0] and told[1] == written[1], "a sender of text writes"
    assert scored[0][0] < 2.5 * written[0][0], "no copy of the whole batch for every choice"


def test_the_scale_model_has_a_plan_too(tmp_path: Path) -> None:
    needs = foretell(tmp_path, zoo="tiny", senders=["llama-1b"])[1]
    assert needs["llama-1b"].weights == 647_592 * 4 and 0 < needs["qwen3-0.6b"].fusers < 10 * MIB


def test_a_copy_of_the_receiver_beside_another_takes_no_fuser(tmp_path: Path) -> None:
    both = {"receiver": "llama-1b", "senders": ["llama-1b#2", "qwen3-0.6b"], "ray": False}
    half = {"members": {name: {"dtype": "bfloat16"} for name in ("llama-1b", "qwen3-0.6b")}}
    pair = foretell(tmp_path / "a", **{**both, "senders": ["qwen3-0.6b"]}, **half)[1]
    read = foretell(tmp_path / "b", **both, **half)[1]
    assert list(read) == ["llama-1b", "llama-1b#2", "qwen3-0.6b"] and read["llama-1b#2"].weights == 0
    assert read["llama-1b"].fusers == pair["llama-1b"].fusers > 0


def test_a_plan_of_fedattn_says_what_is_read_and_exchanged(tmp_path: Path) -> None:
    given = {"protocol": "fedattn", "receiver": "llama-1b", "prompt": None, "ray": False}
    task = {"name": "tiny-evidence-pooled", "limit": 3}
    read = foretell(tmp_path / "a", **given, task=task)[1]
    publisher, other = read["llama-1b"], read["llama-1b#3"]
    assert list(read) == ["llama-1b", "llama-1b#2", "llama-1b#3"]
    assert publisher.prompt_tokens > 200, "a byte is a token: the documents, and not the question alone"
    size = 2 if other.dtype == "bfloat16" else 4
    assert other.wire_per_token == 16 * 2 * 8 * 64 * size and publisher.wire_per_token == 0
    quarter = {"name": "fedattn", "sync_every": 4, "tokens": 0.5, "exchange": 0.5}
    sent = foretell(tmp_path / "c", **{**given, "protocol": quarter}, task=task)[1]["llama-1b#2"].wire_per_token
    assert sent == pytest.approx(other.wire_per_token / 16, rel=0.02)


def test_copies_in_one_process_share_their_weights(tmp_path: Path) -> None:
    given = {"protocol": "fedattn", "receiver": "llama-1b", "prompt": "a is b. c is d. what is a?"}
    alone = foretell(tmp_path / "a", **given, ray=False)[1]
    weights = alone["llama-1b"].weights
    assert [need.weights for need in alone.values()] == [weights, 0, 0] and alone["llama-1b#2"].loading == 0
    others = {"llama-1b": {"dtype": "bfloat16"}, "llama-1b#3": {"dtype": "float32"}}
    mixed = foretell(tmp_path / "b", **given, ray=False, members=others)[1]
    parameters = alone["llama-1b"].parameters
    assert [need.weights for need in mixed.values()] == [2 * parameters, 0, 4 * parameters]
    apart = foretell(tmp_path / "c", **given, members={"llama-1b": {"dtype": "bfloat16"}})[1]
    assert [need.weights for need in apart.values()] == [2 * parameters] * 3, "a process of its own each"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"sync_every": 99}, "protocol.sync_every=99 must be from 1 to 28"),
        ({"layers": (99,)}, "protocol.layers names layer 99"),
        ({"participants": 9}, "protocol.participants=9 are more than the segments"),
    ],
)
def test_a_plan_refuses_what_fedattn_cannot_do(how: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FedrayError, match=said):
        foretell(tmp_path, protocol={"name": "fedattn", **how}, prompt=None, task="tiny-evidence-pooled", ray=False)


def test_what_does_not_fit_is_refused_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3 << 30}))
    with pytest.raises(
        FedrayError, match=r"take .* GiB of the machine's memory, where 3\.0 GiB are free .*qwen3-0\.6b"
    ):
        foretell(tmp_path, senders=["qwen2.5-1.5b", "llama-1b"], ray=False)
    assert report.read(tmp_path).needs, "the figures are in the report all the same"
    with pytest.raises(FedrayError, match="leave out llama-3b"):
        Federation(zoo="shapes", senders=["llama-3b"], ray=False)


def test_members_on_a_gpu_take_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def need(device: str, model: int) -> Need:
        return Need("a", "sender", device, "bfloat16", "", 1, 1, model, 0, 0, 0, 400 * MIB, 0, 0, 0)

    needed = [need("cuda", 3 << 30), need("cuda", 2 << 30), need("cpu", 1 << 30)]
    assert 5 << 30 < estimate.on_gpus(needed) < 7 << 30
    assert 1 << 30 < estimate.on_machine(needed, together=False) < 4 << 30
    estimate.check_room(needed, estimate.Room(8 << 30, 8 << 30), together=False)
    estimate.check_room(needed, estimate.Room(8 << 30, None), together=False)
    with pytest.raises(FedrayError, match=r"GiB of the GPUs' memory, where 4\.0 GiB are free"):
        estimate.check_room(needed, estimate.Room(8 << 30, 4 << 30), together=False)


def test_a_run_leaves_what_it_took_and_what_was_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    given = {
        "zoo": "shapes",
        "receiver": str(tmp_path / "one"),
        "senders": [str(tmp_path / "two")],
        "prompt": PROMPT,
        "ray": False,
        "tracking": False,
        "generation": {"max_tokens": 4},
        "members": {"one": {"dtype": "float32"}, "two": {"dtype": "bfloat16"}},
        "output": tmp_path / "out",
    }
    assert run(build(given)) == 0
    left = report.read(tmp_path / "out")
    assert [member.dtype for member in left.who.members] == ["float32", "bfloat16"]
    assert all((member.memory_bytes or 0) > 50 * MIB for member in left.who.members)
    ((name, status),) = [(part.name, part.status) for part in left.learned]
    assert (name, status) == ("two--one", "random")
    assert "random weights, never trained, so that no answer means anything: two--one" in capsys.readouterr().out
