"""Folders that people bring: what says nothing about the LLM is left out, all else that is odd is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Call
from mirror import point_here, serving
from odd_folders import NO_FOLDER, ODD, ODD_SHARDS, THE_SAME, Edit, both, config, holds, tensors, without
from published import save

from fedray.evaluation.settings import EvaluateSettings
from fedray.jobs import evaluate, federate
from fedray.llm.loading import load
from fedray.llm.model import LLM
from fedray.llm.source import Source, pin
from fedray.reporting import report as reports
from fedray.settings.check import check_llm_folders
from fedray.settings.settings import Settings
from fedray.types import FedrayError

QUESTION = "what is the color of the bird?"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain: a Llama in one file; shards: the same in several."""
    folder = tmp_path_factory.mktemp("sound")
    save(folder / "plain", "llama", "llama")
    save(folder / "shards", "llama", "llama", shards=True)
    return folder


@pytest.fixture(scope="session")
def plain(sound: Path) -> list[float]:
    return logits(load(str(sound / "plain"), zoo="hub", dtype="float32"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Edit, str], Path]:
    """Copy a sound folder to ./llm, which is edited then."""
    monkeypatch.chdir(tmp_path)

    def copy(edit: Edit, of: str = "plain") -> Path:
        shutil.copytree(sound / of, tmp_path / "llm")
        edit(tmp_path / "llm")
        return tmp_path / "llm"

    return copy


def logits(llm: LLM) -> list[float]:
    with torch.no_grad():
        out = llm.model(input_ids=torch.tensor([llm.encode(QUESTION).ids]), return_dict=True)
    return out.logits[0, -1].tolist()


# -- what says nothing about the LLM -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", THE_SAME)
def test_what_says_nothing_about_the_llm_is_left_out(what: str, folder: Any, plain: list[float]) -> None:
    source = str(folder(THE_SAME[what]))
    pin(Source(source, "hub"))
    assert logits(load(source, zoo="hub", dtype="float32")) == plain


# -- what is odd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*ODD, *(f"shards, {what}" for what in ODD_SHARDS)])
def test_what_is_odd_is_one_sentence_before_anything_starts(what: str, folder: Any) -> None:
    of, name = ("shards", what.removeprefix("shards, ")) if what.startswith("shards, ") else ("plain", what)
    edit, says = ODD_SHARDS[name] if of == "shards" else ODD[name]
    with pytest.raises(FedrayError, match=says) as raised:
        pin(Source(str(folder(edit, of)), "hub"))
    said = str(raised.value)
    assert "\n" not in said and len(said) < 700
    assert said.startswith("./llm") or "./llm's" in said, "the folder is called as a person would"


@pytest.mark.parametrize("what", NO_FOLDER)
def test_folders_without_a_config_are_called_what_they_are(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llm").mkdir()
    edit, says = NO_FOLDER[what]
    edit(tmp_path / "llm")
    with pytest.raises(FedrayError, match=f"^./llm is no LLM's folder, {says}"):
        check_llm_folders([str(tmp_path / "llm")])


def test_files_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FedrayError, match=r"^./config.json is no LLM's folder, it is a file: give the folder"):
        check_llm_folders([str(tmp_path / "config.json")])
    with pytest.raises(FedrayError, match=r"nowhere is no LLM's folder, it has no config.json: check the path"):
        check_llm_folders(["/nowhere"])


def test_a_shape_needs_no_weights(folder: Any) -> None:
    pin(Source(str(folder(without("model.safetensors", "tokenizer*"))), "shapes"))


def test_a_shape_that_does_not_run_is_one_sentence(folder: Any) -> None:
    with pytest.raises(FedrayError, match=r"^./llm: no LLM comes of config.json .*swish9"):
        pin(Source(str(folder(config(hidden_act="swish9"))), "shapes"))


def test_an_answer_ends_where_the_folder_says(folder: Any) -> None:
    source = str(folder(both(config(eos_token_id=5), holds("generation_config.json", '{"eos_token_id": [7, 9]}'))))
    llm = load(source, zoo="hub")
    assert {7, 9} <= llm.stop_ids and 5 not in llm.stop_ids


# -- as a person runs it -----------------------------------------------------------------------------------------------

QUIET = ("zoo=hub", "ray=none", "tracking=none", "generation.max_tokens=4")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a hub without a repository is asked."""
    with serving({}) as mirror:
        point_here(monkeypatch, mirror.url, tmp_path / "cache")
        yield mirror.asked


def fedrated(settings: Settings) -> int | None:
    return federate.run(settings)


@pytest.mark.parametrize(
    ("protocol", "how"), [("standalone", "prompt"), ("self_refine", "task"), ("standalone", "plan")]
)
def test_members_nobody_asks_are_not_fetched(
    protocol: str, how: str, folder: Any, call: Call, asked: list[str]
) -> None:
    folder(lambda f: None)
    more = {"prompt": [f"prompt={QUESTION}"], "task": ["task.limit=2"], "plan": ["plan=true", f"prompt={QUESTION}"]}
    code, said = call(*QUIET, "receiver=./llm", f"protocol={protocol}", "output=out", *more[how], job=fedrated)
    assert code == 0, said
    assert asked == [] and reports.read(Path("out")).who.senders == ()


def test_an_evaluation_fetches_those_its_cases_ask(folder: Any, call: Call, asked: list[str]) -> None:
    folder(lambda f: None)
    Path("q.jsonl").write_text(
        json.dumps({"question": QUESTION, "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "A"})
    )

    def job(settings: EvaluateSettings) -> int:
        return evaluate.run(settings)

    code, said = call.evaluate(
        *QUIET,
        "receiver=./llm",
        "+blocks.x={senders: none}",
        "questions=q.jsonl",
        "latency_requests=0",
        "output=out",
        job=job,
    )
    assert code == 0, said
    assert asked == []


def test_a_damaged_llm_is_never_right(folder: Any, call: Call, asked: list[str]) -> None:
    """An LLM of NaN chose the first answer every time: all right where the gold is A."""
    folder(tensors(lambda t: {**t, "model.norm.weight": torch.full_like(t["model.norm.weight"], float("nan"))}))
    row = {"question": QUESTION, "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "A"}
    Path("q.jsonl").write_text("\n".join(json.dumps({**row, "id": str(i)}) for i in range(4)))
    code, said = call(*QUIET, "receiver=./llm", "protocol=standalone", "questions=q.jsonl", "output=out", job=fedrated)
    assert code == 0, said
    left = reports.read(Path("out"))
    assert (left.found.n, left.found.accuracy, left.found.accuracy_alone) == (4, 0.0, 0.0)
    (missing,) = left.who.missing
    assert missing.member.endswith("llm") and "in 4 of 4 answers the logits of its LLM are no numbers" in missing.reason
    code, said = call(*QUIET, "receiver=./llm", "protocol=standalone", f"prompt={QUESTION}", "output=one", job=fedrated)
    assert code == 2 and said.rstrip().startswith("./llm: the logits of its LLM are no numbers")
    (missing,) = reports.read(Path("one")).who.missing
    assert missing.member.endswith("llm") and "no numbers" in missing.reason


def test_a_folder_without_a_tokenizer_is_told_before_it_is_loaded(folder: Any, call: Call) -> None:
    folder(without("tokenizer*", "special*", "chat*"))
    code, said = call(*QUIET, "receiver=./llm", "protocol=standalone", "task.limit=2", "output=out", job=fedrated)
    assert code != 0 and "./llm has no tokenizer and reads no text: save one in its folder, as in AutoTok" in said
    assert "loading" not in said
