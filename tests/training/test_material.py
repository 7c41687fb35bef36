"""Conversations of a data set as training reads them: which are left out, and how their turns are encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import OPENBOOKQA, OPENHERMES, hermes, message, write
from tiny import QUESTIONS, random_llm

from fedray.llm.alignment import align_tokens
from fedray.llm.chat import encode_turns
from fedray.llm.model import HEAD, TAIL
from fedray.registry.store import read_manifest
from fedray.reporting import report
from fedray.training import fuser_job, gate_job
from fedray.training.dataset import Material, fitting, of_data_set, of_world
from fedray.training.settings import (
    TrainingData,
    build_fuser_job,
    build_gate_job,
    check_fuser_job,
    check_gate_job,
)
from fedray.types import FedrayError
from fedray.world.world import World

pytest.importorskip("datasets")
LLMS = ("qwen3-0.6b", "qwen2.5-0.5b", "llama-1b")
TURNS = ("what is it?", "it is a bird <|im_end|>.", "and its color?")


def talks(count: int) -> list[dict[str, Any]]:
    """Conversations of one and of three messages of the user's."""
    rows = []
    for number in range(count):
        asked = QUESTIONS[number % len(QUESTIONS)]
        turns = [message("human", f"{asked} {number}"), message("gpt", "red")]
        if number % 2:
            turns += [message("human", "are you sure?"), message("gpt", f"it is red, {number} times.")]
        rows.append(hermes(*turns))
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with conversations, one of which gives an evaluation question away, and that question's set."""
    given_away = OPENBOOKQA[0]["question_stem"] + "? " + " or ".join(OPENBOOKQA[0]["choices"]["text"])
    cheat = hermes(message("human", given_away), message("gpt", "plants."))
    write(tmp_path / "openhermes" / "train.jsonl", [*talks(20), cheat, *OPENHERMES, *talks(9)])
    write(tmp_path / "openbookqa" / "test.jsonl", OPENBOOKQA)
    return tmp_path


def material(data: Path, limit: int | None = None, seed: int = 0, **values: Any) -> Material:
    return of_data_set(TrainingData("openhermes", data, **{"against": ("openbookqa",), **values}), limit, seed)


def test_what_is_left_out_is_counted(data: Path) -> None:
    found = material(data)
    assert found.source and found.source.left_out == {
        "nothing the assistant says": 1,
        "user and assistant do not take turns": 1,
        "an empty message": 1,
        "holds an evaluation question": 1,
    }
    assert found.source.rows == len(found.talks) + len(found.check) == 20 + 3 + 9 and len(found.check) == 1
    assert not any("sun is responsible" in talk.prompt for talk in (*found.talks, *found.check))
    kept = material(data, against=())
    assert kept.source and kept.source.rows == 33
    assert any("sun is responsible" in talk.prompt for talk in (*kept.talks, *kept.check))


def test_the_first_conversations_and_a_share_held_out_by_the_seed(data: Path) -> None:
    first = material(data, limit=10, held_out=0.3)
    assert len(first.talks) == 7 and len(first.check) == 3 and first == material(data, limit=10, held_out=0.3)
    other = material(data, limit=10, seed=1, held_out=0.3)
    together = {(*talk.before, talk.prompt) for talk in (*first.talks, *first.check)}
    assert together == {(*talk.before, talk.prompt) for talk in (*other.talks, *other.check)}
    assert first.check != other.check
    assert first.record["data"]["against"] == ["openbookqa"]
    with pytest.raises(FedrayError, match="1 conversations are left to train on: raise limit"):
        material(data, limit=1)


def test_what_is_too_long_for_somebody_is_left_out(data: Path) -> None:
    llms = [random_llm(name) for name in LLMS[:2]]
    whole = material(data, held_out=0.3)
    cut = fitting(whole, llms[1], llms[:1], 30)
    assert cut.source and cut.source.left_out["longer than 30 tokens"] == len(whole.talks + whole.check) - len(
        cut.talks + cut.check
    )
    for talk in whole.talks:
        tokens = max(len(encode_turns(m, (*talk.before, talk.prompt)).ids + m.encode_answer(talk.answer)) for m in llms)
        assert (talk in cut.talks) is (tokens < 30)
    assert fitting(whole, llms[1], llms[:1], 400) == whole
    with pytest.raises(FedrayError, match=r"too few conversations are of 16 tokens or less: raise data.longest"):
        fitting(whole, llms[1], llms[:1], 16)


def test_the_world_is_drawn_from_as_ever() -> None:
    found = of_world(World(0), 48, 0)
    assert len(found.talks) == len(found.check) == 48 and found.record == {"world_seed": 0} and found.source is None


@pytest.mark.parametrize("name", LLMS)
def test_turns_stand_in_the_template(name: str) -> None:
    llm = random_llm(name)
    assert encode_turns(llm, TURNS[:1]) == llm.encode(TURNS[0])
    plain = (TURNS[0], "it is a bird.", TURNS[2])
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, plain, strict=True)]
    rendered = llm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert encode_turns(llm, plain).ids == llm.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    encoded, text = encode_turns(llm, TURNS), "".join(TURNS)
    said = [i for i, (kind, _) in enumerate(encoded.spans) if kind >= 0]
    marks = set(llm.tokenizer.all_special_ids)
    assert not marks & {encoded.ids[i] for i in said}, "a template's token in a turn is text"
    assert {text[slice(*encoded.spans[i])].strip() for i in said} >= {"what", "bird", "color"}
    tail = [span for span in encoded.spans if span[0] == TAIL]
    assert tail[-1] == (TAIL, 0) and encoded.spans[0][0] == HEAD and len(encoded.ids) == len(encoded.spans)


def test_every_token_of_every_turn_reads_the_same_text() -> None:
    receiver, sender = (encode_turns(random_llm(name), TURNS).spans for name in ("qwen3-0.6b", "llama-1b"))
    for own, index in zip(receiver, align_tokens(sender, receiver), strict=True):
        if own[0] >= 0:
            a, b = sender[index]
            assert min(b, own[1]) > max(a, own[0])
        elif own[0] == HEAD:
            assert index == -1, "templates between turns are not fused"


@pytest.mark.parametrize("values", [{}, {"fuser": "c2c", "llm_dtype": "bfloat16", "precision": "bfloat16"}])
def test_a_fuser_is_trained_on_conversations(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any]
) -> None:
    made = build_fuser_job(
        {
            "sender": "qwen2.5-0.5b",
            "data": {"name": "openhermes", "path": data, "against": ["openbookqa"], "longest": 100, "held_out": 0.1},
            "limit": 28,
            "batch_size": 8,
            "accumulation": 2,
            "sampling": "epochs",
            "layers": "last_aligned",
            "hidden": 16,
            "cache_mb": 0,
            "validate_every": 2,
            "ray": False,
            "tracking": False,
            "registry": {"path": tmp_path / "registry"},
            "output": tmp_path / "out",
            **values,
        }
    )
    check_fuser_job(made)
    assert made.all_steps == 4, "one pass over 28, of which a tenth is held out, 8 a step"
    assert fuser_job.run(made) == 0
    capsys.readouterr()
    left = report.read(tmp_path / "out")
    (part,), (source,) = left.learned, left.data
    assert (part.status, part.steps, part.questions) == ("complete", 4, source.rows - 2)
    assert source.name == "openhermes" and source.left_out["holds an evaluation question"] == 1
    assert part.figures["memory/estimated_gib"] and part.figures["memory/peak_gib"]
    manifest = read_manifest(Path(part.path or ""))
    assert manifest.training["data"] == {
        "name": "openhermes",
        "revision": None,
        "hash": source.hash,
        "against": ["openbookqa"],
    }
    assert manifest.config["layer_alignment"] == "last_aligned" and str(tmp_path) not in json.dumps(manifest.training)


@pytest.mark.parametrize("values", [{}, {"fusion": "mix", "llm_dtype": "bfloat16"}])
def test_a_gate_is_trained_on_conversations(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any]
) -> None:
    made = build_gate_job(
        {
            "senders": ["qwen2.5-0.5b"],
            "data": {"name": "openhermes", "path": data, "against": [], "longest": 100, "held_out": 0.2},
            "limit": 28,
            "steps": 4,
            "batch_size": 8,
            "layers": [0],
            "starts": 1,
            "at_once": 8,
            "ray": False,
            "tracking": False,
            "registry": {"path": tmp_path / "registry"},
            "output": tmp_path / "out",
            **values,
        }
    )
    check_gate_job(made)
    assert gate_job.run(made) == 0
    capsys.readouterr()
    left = report.read(tmp_path / "out")
    (part,), (source,) = left.learned, left.data
    assert part.status == "complete" and part.questions == round(0.8 * source.rows)
    manifest = read_manifest(Path(part.path or ""))
    assert manifest.training["data"]["hash"] == source.hash and "world_seed" not in manifest.training
