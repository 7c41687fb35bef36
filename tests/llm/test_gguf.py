"""GGUF files as members: the same LLM as transformers makes of the file, and converted once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ggufs
import pytest
import torch
from commandline import Call
from huggingface_hub import constants
from mirror import Mirror, Repo, environment, point_here, serving
from scarce import full_disk
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedray.federation import sources
from fedray.jobs import federate
from fedray.llm import gguf_conversion
from fedray.llm.loading import check_prompts, load
from fedray.llm.source import Source, config_of, folder_of, pin
from fedray.reporting import report as reports
from fedray.settings.settings import Settings
from fedray.types import FedrayError

pytestmark = pytest.mark.usefixtures("cache")
QUESTION = "what is the color of the bird?"
QUIET = ("zoo=hub", "ray=none", "tracking=none", "generation.max_tokens=4")


def greedy(model: Any, ids: list[int], tokens: int = 12) -> list[int]:
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=tokens,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def theirs(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


# -- the same LLM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ggufs.KINDS)
def test_it_is_the_llm_that_transformers_makes_of_the_file(kind: str, tiny: Path) -> None:
    file = tiny / f"{kind}.gguf"
    ours, reference = load(str(file), zoo="hub", dtype="float32"), theirs(file)
    wanted = reference.state_dict()
    assert {name: torch.equal(value, wanted[name]) for name, value in ours.model.state_dict().items()} == dict.fromkeys(
        wanted, True
    )
    ids = ours.encode(QUESTION).ids
    assert greedy(ours.model, ids) == greedy(reference, ids)
    config = AutoConfig.from_pretrained(tiny, gguf_file=file.name).to_dict()
    said = config_of(Source(str(file), "hub")).to_dict()
    left = {"_name_or_path", "_model_name_or_path", "architectures", "dtype"}
    assert {k: v for k, v in said.items() if k not in left} == {k: v for k, v in config.items() if k not in left}
    tokenizer = AutoTokenizer.from_pretrained(tiny, gguf_file=file.name)
    for text in ("", QUESTION, "  two  spaces\n\nand <s> a mark<|im_end|> é 1234"):
        assert ours.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert ours.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("kind", "bos"), [("llama", "<s>"), ("qwen3", "<s>"), ("gemma3", "<bos>")])
def test_a_prompt_begins_once(kind: str, bos: str, tiny: Path) -> None:
    """With a template that begins a text itself, and without one."""
    llm = load(str(tiny / f"{kind}.gguf"), zoo="hub")
    encoded = llm.encode(QUESTION)
    begin = llm.tokenizer.convert_tokens_to_ids(bos)
    assert encoded.ids[0] == begin and encoded.ids.count(begin) == 1
    assert "".join(QUESTION[a:b] for a, b in encoded.spans if a >= 0) == QUESTION


def test_an_answer_ends_with_a_text_or_a_turn(file: Path) -> None:
    llm = load(str(file), zoo="hub")
    assert llm.stop_ids == {llm.tokenizer.convert_tokens_to_ids(end) for end in ("</s>", "<|im_end|>")}


@pytest.mark.slow
@pytest.mark.skipif("FEDRAY_GGUF" not in os.environ, reason="FEDRAY_GGUF names real files")
@pytest.mark.parametrize("name", os.environ.get("FEDRAY_GGUF", "").split(":"))
@pytest.mark.timeout(900)
def test_real_files_give_the_same_tokens(name: str) -> None:
    ours, reference = load(name, zoo="hub", dtype="float32"), theirs(Path(name))
    for prompt in (QUESTION, "Name three large cities in Europe.", "The capital of France is"):
        ids = ours.encode(prompt).ids
        assert greedy(ours.model, ids, 24) == greedy(reference, ids, 24)


# -- converted once ----------------------------------------------------------------------------------------------------


def test_the_file_its_folder_and_a_copy_are_converted_once(file: Path, cache: Path, tmp_path: Path) -> None:
    first = folder_of(pin(Source(str(file), "hub")))
    kept = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    (tmp_path / "sub").mkdir()
    shutil.copy(file, tmp_path / "sub" / "copy.GGUF")
    for name in ("sub", "sub/copy.GGUF"):
        assert folder_of(pin(Source(str(tmp_path / name), "hub"))) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == kept
    assert list(cache.iterdir()) == [first]
    ggufs.write(file, seed=1)
    assert folder_of(pin(Source(str(file), "hub"))) != first


def test_the_converted_folder_is_a_member_as_any_other(file: Path) -> None:
    folder = folder_of(Source(str(file), "hub"))
    near, far = load(str(folder), zoo="hub"), load(str(file), zoo="hub")
    assert near.weights_hash == far.weights_hash and near.tokenizer_hash == far.tokenizer_hash
    pin(Source(str(folder), "hub"))


def test_large_ones_are_saved_in_shards(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_conversion, "_SHARD", 50_000)
    folder = folder_of(Source(str(file), "hub"))
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    wanted = theirs(file).state_dict()
    found = load(str(file), zoo="hub", dtype="float32").model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_failure_anywhere_loses_nothing(at: int, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the n-th tensor, or while the folder is moved."""
    calls = 0

    def stop(size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at * 3:
            raise KeyboardInterrupt

    source = pin(Source(str(file), "hub"))
    with pytest.raises(KeyboardInterrupt):
        folder_of(source, arrived=stop)
    assert list(cache.iterdir()) == []
    folder_of(source)
    assert load(str(file), zoo="hub", dtype="float32").model.state_dict().keys() == theirs(file).state_dict().keys()


KILLED = """
import os, signal, sys
from pathlib import Path
from fedray import files
from fedray.llm.source import Source, folder_of

where = sys.argv[2]
def kill(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "tensor":
    folder_of(Source(sys.argv[1], "hub"), arrived=kill)
from fedray.llm import gguf_conversion
setattr(gguf_conversion, where, kill)
folder_of(Source(sys.argv[1], "hub"))
"""


@pytest.mark.parametrize(
    "where", ["tensor", *(pytest.param(one, marks=pytest.mark.slow) for one in ("flush_all", "moved"))]
)
def test_a_kill_at_any_moment_loses_nothing(where: str, file: Path, cache: Path, tmp_path: Path) -> None:
    known = {**environment("http://127.0.0.1:9", tmp_path), "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), where], env=known, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = cache.iterdir()
    assert left.name.startswith(".new-"), "nothing that looks whole"
    folder = folder_of(Source(str(file), "hub"))
    assert list(cache.iterdir()) == [folder], "what was left is gone"
    load(str(file), zoo="hub")


def test_two_at_once_convert_once(file: Path, cache: Path) -> None:
    arrived: list[int] = []
    source = pin(Source(str(file), "hub"))
    threads = [threading.Thread(target=folder_of, args=(source,), kwargs={"arrived": arrived.append}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    size = file.stat().st_size
    assert 0.5 * size < sum(arrived) <= size and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("left", [0, 3000, 60_000])
def test_a_full_disk_is_one_sentence(left: int, file: Path, cache: Path) -> None:
    """Where the settings, the tokenizer and the weights would be."""
    source = pin(Source(str(file), "hub"))
    with (
        full_disk(left),
        pytest.raises(FedrayError, match=r"^./tiny.gguf: it cannot be converted in .*; free space, or"),
    ):
        folder_of(source)
    assert list(cache.iterdir()) == []
    folder_of(source)


# -- as a person runs it -----------------------------------------------------------------------------------------------


def fedrated(settings: Settings) -> int | None:
    return federate.run(settings)


@pytest.mark.parametrize("name", ["./tiny.gguf", "tiny.gguf", "."])
def test_a_file_answers(name: str, file: Path, call: Call) -> None:
    code, said = call(
        *QUIET, f"receiver={name}", "protocol=standalone", f"prompt={QUESTION}", "output=out", job=fedrated
    )
    assert code == 0, said
    assert "\ntiny.gguf alone  " in call.out or f"\n{file.parent.name} alone  " in call.out
    assert reports.read(Path("out")).who.receiver.endswith(str(file.parent if name == "." else file))


def test_a_plan_converts_nothing(file: Path, call: Call, cache: Path) -> None:
    code, said = call(
        *QUIET, "receiver=./tiny.gguf", "protocol=standalone", f"prompt={QUESTION}", "plan=true", "output=out",
        job=fedrated,
    )  # fmt: skip
    assert code == 0, said
    assert not cache.exists()
    (need,) = reports.read(Path("out")).needs
    assert need.parameters == sum(p.numel() for p in theirs(file).parameters())
    assert need.prompt_tokens == len(load(str(file), zoo="hub").encode(QUESTION).ids)


def test_a_conversion_is_before_members_load(file: Path, cache: Path) -> None:
    found = list(sources.pinned([Source(str(file), "hub")]).values())
    sources.download(found)
    assert len(list(cache.iterdir())) == 1
    sources.download(found)


# -- on the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    content = (tiny / "llama.gguf").read_bytes()
    files = {"Q8.gguf": content, "sub/tiny.gguf": (tiny / "gemma3.gguf").read_bytes(), "README.md": b"x"}
    with serving({"acme/llm": Repo(files)}) as mirror:
        point_here(monkeypatch, mirror.url, tmp_path / "cache")
        yield mirror


def test_a_file_of_a_repository(mirror: Mirror, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (load(name, zoo="hub") for name in (str(tiny / "llama.gguf"), "hf:acme/llm/Q8.gguf"))
    assert (far.weights_hash, far.revision) == (near.weights_hash, mirror.repos["acme/llm"].commit())
    assert load("hf:acme/llm/sub/tiny.gguf", zoo="hub").family == "gemma3_text"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    mirror.asked.clear()
    assert load("hf:acme/llm/Q8.gguf", zoo="hub").weights_hash == near.weights_hash and not mirror.asked


def test_a_plan_fetches_the_header_alone(
    mirror: Mirror, call: Call, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedray.llm.hub._HEADER", 4096)
    found = sources.pinned([Source("hf:acme/llm/Q8.gguf", "hub")])
    size = len(mirror.repos["acme/llm"].files["Q8.gguf"])
    (missing,) = sources.missing(list(found.values()))["hf:acme/llm/Q8.gguf"]
    assert missing.size == size and check_prompts(list(found.values()), [QUESTION])
    assert not cache.exists() and mirror.sent["Q8.gguf"] < size
    sources.download(list(found.values()))
    assert len(list(cache.iterdir())) == 1
    assert sources.missing(list(found.values())) == {"hf:acme/llm/Q8.gguf": []}


def test_a_repository_names_its_files(mirror: Mirror) -> None:
    with pytest.raises(FedrayError, match=r"llm at main lacks Q4.gguf: name hf:acme/llm/Q8.gguf or hf:acme/llm/sub"):
        pin(Source("hf:acme/llm/Q4.gguf", "hub"))
    with pytest.raises(FedrayError, match=r"llm at main lacks config.json: name hf:acme/llm/Q8.gguf or hf:acme"):
        pin(Source("hf:acme/llm", "hub"))


def test_a_damaged_file_of_a_repository_is_not_downloaded(mirror: Mirror) -> None:
    mirror.repos["acme/llm"].files["Q8.gguf"] = b"<!DOCTYPE html>" * 1000
    with pytest.raises(FedrayError, match=r"^hf:acme/llm/Q8.gguf: .*is damaged .it begins with b'<!DO'"):
        pin(Source("hf:acme/llm/Q8.gguf", "hub"))
