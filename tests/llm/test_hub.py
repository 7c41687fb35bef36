"""zoo=hub against a mirror on loopback: download, cache, offline, and every way a repository can be out of reach."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from mirror import Mirror, Repo, point_here, repo_of, serving
from published import save
from transformers import AutoModelForCausalLM

from fedray.federation.sources import download, missing, pinned
from fedray.llm import hub
from fedray.llm.loading import check_prompts, load
from fedray.llm.source import Source, pin
from fedray.types import FedrayError

QUESTION = "what is the color of the bird?"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save(folder / "whole", "qwen3", "qwen3")
    save(folder / "sharded", "llama", "llama", shards=True, seed=1)
    return folder


@pytest.fixture
def mirror(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """The mirror, and huggingface_hub told of it as HF_ENDPOINT, HF_HUB_CACHE would have."""
    whole, sharded = saved / "whole", saved / "sharded"
    repos = {
        "Qwen/Qwen3-0.6B": repo_of(whole),
        "acme/sharded": repo_of(sharded),
        "acme/gated": repo_of(whole, gated=True),
        "acme/hollow": repo_of(whole, missing={"model.safetensors"}),
        "acme/short": repo_of(whole, short={"model.safetensors": 1000}),
        "acme/pickled": Repo({"config.json": (whole / "config.json").read_bytes(), "pytorch_model.bin": b"x"}),
        "acme/linear": Repo({"config.json": json.dumps({"model_type": "qwen3_next"}).encode()}),
        "acme/empty": Repo({"README.md": b"hello"}),
        "acme/broken": Repo({"config.json": b"{"}),
    }
    with serving(repos) as mirror:
        point_here(monkeypatch, mirror.url, tmp_path / "cache")
        yield mirror


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def tokens(llm: Any) -> list[int]:
    out = llm.model(torch.tensor([llm.encode(QUESTION).ids]))
    return out.logits[0].argmax(-1).tolist()


def test_a_name_of_the_catalogue_is_downloaded_once_and_then_served_offline(mirror, saved, offline) -> None:
    commit = mirror.repos["Qwen/Qwen3-0.6B"].commit()
    first = load("qwen3-0.6b", zoo="hub", dtype="bfloat16")
    assert (first.revision, first.family, first.model.dtype) == (commit, "qwen3", torch.bfloat16)
    assert any(asked.startswith("GET /cdn/Qwen") for asked in mirror.asked)
    original = AutoModelForCausalLM.from_pretrained(saved / "whole", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in first.model.state_dict().items())

    mirror.asked.clear()
    offline()
    second = load("qwen3-0.6b", zoo="hub", dtype="bfloat16")
    assert mirror.asked == [] and tokens(second) == tokens(first)
    assert (second.revision, second.weights_hash) == (first.revision, first.weights_hash)


def test_a_second_run_downloads_nothing_and_notices_a_new_commit(mirror) -> None:
    load("qwen3-0.6b", zoo="hub")
    mirror.asked.clear()
    load("qwen3-0.6b", zoo="hub")
    assert not any("/cdn/" in asked for asked in mirror.asked)
    repo = mirror.repos["Qwen/Qwen3-0.6B"]
    before = repo.commit()
    repo.revisions["main"] = "d" * 40
    assert load("qwen3-0.6b", zoo="hub").revision == "d" * 40
    repo.revisions["old"] = before
    assert load("qwen3-0.6b", zoo="hub", revision="old").revision == before
    assert pin(Source("qwen3-0.6b", "hub", revision=before)).revision == before


def test_any_repository_sharded_or_not_and_a_local_copy_are_the_same_llm(mirror, saved) -> None:
    far = load("hf:acme/sharded", zoo="hub")
    near = load(str(saved / "sharded"), zoo="hub")
    assert (far.family, far.weights_hash, tokens(far)) == ("llama", near.weights_hash, tokens(near))
    assert near.revision == "" and far.revision == mirror.repos["acme/sharded"].commit()
    assert len(hub.weight_files("it", saved / "sharded")) > 1


def test_a_zoo_folder_stands_before_the_hub(mirror, saved, tmp_path) -> None:
    (tmp_path / "llms").mkdir()
    (tmp_path / "llms" / "llama-1b").symlink_to(saved / "sharded")
    assert load("llama-1b", zoo="hub", folder=tmp_path).family == "llama"
    assert mirror.asked == []


def test_files_of_all_members_are_downloaded_side_by_side_and_counted(mirror) -> None:
    found = list(pinned([Source("qwen3-0.6b", "hub"), Source("hf:acme/sharded", "hub")]).values())
    lacking = missing(found)
    assert set(lacking) == {"qwen3-0.6b", "hf:acme/sharded"}
    total = sum(file.size for files in lacking.values() for file in files)
    sizes: list[int] = []
    hub.download([file for files in lacking.values() for file in files], sizes.append)
    assert sum(sizes) == total and total > 100_000
    assert all(files == [] for files in missing(found).values())
    mirror.asked.clear()
    download(found)
    load("hf:acme/sharded", zoo="hub", revision=found[1].revision)
    assert not any("/cdn/" in asked or "/resolve/" in asked for asked in mirror.asked)


def test_tokenizers_come_without_weights(mirror) -> None:
    longest = check_prompts([Source("qwen3-0.6b", "hub")], [QUESTION, QUESTION * 2])
    assert longest["qwen3-0.6b"] > 20 and not any("/cdn/" in asked for asked in mirror.asked)
    with pytest.raises(FedrayError, match=r"qwen3-0\.6b, whose context holds 512"):
        check_prompts([Source("qwen3-0.6b", "hub")], [QUESTION * 100])


REFUSED = [
    ("hf:acme/gated", None, "acme/gated is gated: accept its terms at http.*/acme/gated, then `hf auth login` or set"),
    ("hf:acme/nonesuch", None, "has no repository acme/nonesuch: check the spelling"),
    ("qwen3-0.6b", "v9", r"has no revision 'v9': leave members.qwen3-0_6b.revision out for main"),
    ("qwen3-0.6b", "0" * 40, "has no revision '0000"),
    ("hf:acme/empty", None, "acme/empty at main lacks config.json"),
    ("hf:acme/hollow", None, "lacks model.safetensors: choose another revision with members.acme-hollow.revision"),
    ("hf:acme/short", None, "the download of acme/short broke off .*has size 1000.* run the same command again"),
    ("hf:acme/pickled", None, "has no model.safetensors; other formats are not read"),
    ("hf:acme/linear", None, "qwen3_next.* cannot take part: .*linear_attention"),
    ("hf:acme/broken", None, "config.json is damaged"),
]


@pytest.mark.parametrize(("name", "revision", "says"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_cannot_be_had_is_one_sentence(mirror, name: str, revision: str | None, says: str) -> None:
    with pytest.raises(FedrayError, match=says) as raised:
        load(name, zoo="hub", revision=revision)
    assert str(raised.value).startswith(name) and "\n" not in str(raised.value)


def test_a_broken_off_download_leaves_nothing_behind_and_can_be_repeated(mirror) -> None:
    with pytest.raises(FedrayError):
        load("hf:acme/short", zoo="hub")
    mirror.repos["acme/short"].short.clear()
    assert load("hf:acme/short", zoo="hub").family == "qwen3"


def test_a_file_cut_short_in_the_cache_is_named(mirror, tmp_path) -> None:
    load("qwen3-0.6b", zoo="hub")
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:5000])
    with pytest.raises(
        FedrayError, match=f"model.safetensors is truncated .5,000 of .* bytes.; delete {blob} and load"
    ):
        load("qwen3-0.6b", zoo="hub")


def test_a_local_folder_that_does_not_hold_together_is_named(saved, tmp_path) -> None:
    for broken, says in (
        ("model-00001-of", "lacks model-00001-of"),
        ("model.safetensors.index.json", "has no model.safetensors"),
        ("config.json", "config.json cannot be read"),
        ("tokenizer.json", "cannot be loaded"),
    ):
        folder = tmp_path / broken / "llm"
        shutil.copytree(saved / "sharded", folder)
        next(path for path in folder.iterdir() if path.name.startswith(broken)).unlink()
        with pytest.raises(FedrayError, match=says):
            load(str(folder), zoo="hub")
    folder = tmp_path / "cut" / "llm"
    shutil.copytree(saved / "whole", folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FedrayError, match=r"model\.safetensors is damaged"):
        load(str(folder), zoo="hub")


def test_weights_that_lack_some_are_refused(saved, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "llm"
    shutil.copytree(saved / "whole", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedrayError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(folder), zoo="hub")


def test_offline_without_a_cache_says_what_to_unset(mirror, offline) -> None:
    offline()
    with pytest.raises(FedrayError, match=r"not in the cache .*, and HF_HUB_OFFLINE is set: unset it once"):
        load("qwen3-0.6b", zoo="hub")


def test_a_hub_out_of_reach_says_what_to_check(tmp_path, monkeypatch) -> None:
    gone = "http://127.0.0.1:9"
    point_here(monkeypatch, gone, tmp_path / "cache")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    with pytest.raises(FedrayError, match=f"{gone} cannot be reached and Qwen/Qwen3-0.6B is not in the cache"):
        load("qwen3-0.6b", zoo="hub")


def test_what_is_wrong_with_a_folder_is_told_before_it_is_loaded(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(saved / "whole", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(FedrayError, match=r"own: model.safetensors is damaged .*save_pretrained"):
        pin(Source(str(folder), "hub"))
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba" / "config.json").write_text('{"model_type": "mamba", "num_hidden_layers": 2}')
    with pytest.raises(FedrayError, match=r"mamba\) cannot take part: 2 of its 2 layers are linear_attention"):
        check_prompts([Source(str(tmp_path / "mamba"), "hub")], [QUESTION])


def test_a_tokenizer_of_another_llm_is_told_before_it_is_loaded(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(saved / "whole", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(FedrayError, match=r"token id \d+ is none of .*own's, which go from 0 to 19"):
        check_prompts([Source(str(folder), "hub")], [QUESTION])
