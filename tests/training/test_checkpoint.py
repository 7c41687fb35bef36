"""One whole checkpoint at any moment, and none of another training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from scarce import full_disk

from fedray.training import checkpoint as module
from fedray.training.checkpoint import Checkpoint, Snapshot
from fedray.types import FedrayError

MEANING: dict[str, Any] = {
    "what": "the fuser llama-1b -> qwen3-0.6b",
    "llms": {"llama-1b": "aa", "qwen3-0.6b": "bb"},
    "settings": {"steps": 9, "layers": (0, 1), "learning_rate": 1e-3},
}


def snapshot(step: int, numbers: int = 10) -> Snapshot:
    return Snapshot({"fuser.a": torch.full((numbers,), float(step)), "best.a.b": torch.ones(2)}, {"step": step})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    there = Checkpoint(tmp_path / "new", **MEANING)
    assert there.load() is None
    there.check()
    for step in (1, 2):
        there.save(snapshot(step))
    again = Checkpoint(tmp_path / "new", **MEANING)
    again.check()
    loaded = again.load()
    assert loaded is not None and loaded.values == {"step": 2}
    assert torch.equal(loaded.under("fuser")["a"], torch.full((10,), 2.0)) and set(loaded.under("best")) == {"a.b"}
    again.discard()
    assert not (tmp_path / "new").exists() and again.load() is None


def test_it_lies_on_the_disk_before_it_takes_the_place_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs; a process that is killed would not tell the difference."""
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (done.append(name), real(*given)))
    Checkpoint(tmp_path, **MEANING).save(snapshot(1))
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"what": "the fuser qwen2.5-0.5b -> qwen3-0.6b"},
            "is a checkpoint of the fuser llama-1b -> qwen3-0.6b, not of",
        ),
        ({"llms": {"llama-1b": "cc", "qwen3-0.6b": "bb"}}, "trained for other weights of llama-1b; start"),
        ({"settings": {**MEANING["settings"], "steps": 5}}, "was begun with steps=9, this is steps=5; finish it with"),
        ({"settings": {**MEANING["settings"], "extra": 1}}, "was begun with extra=None, this is extra=1"),
    ],
)
@pytest.mark.parametrize("look", ["check", "load"])
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path, other: Any, says: str, look: str) -> None:
    Checkpoint(tmp_path, **MEANING).save(snapshot(3))
    with pytest.raises(FedrayError, match=says) as error:
        getattr(Checkpoint(tmp_path, **{**MEANING, **other}), look)()
    assert str(error.value).endswith("start anew with restart=true")


def test_a_checkpoint_of_another_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "CODE", "fedray 0.0.9, torch 2.1.0")
        Checkpoint(tmp_path, **MEANING).save(snapshot(3))
    with pytest.raises(
        FedrayError, match=r"was written by fedray 0\.0\.9, torch 2\.1\.0, this is fedray .*restart=true"
    ):
        Checkpoint(tmp_path, **MEANING).load()


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    there = Checkpoint(tmp_path, **MEANING)
    there.save(snapshot(3))
    blob = there.path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, there.path)
    else:
        there.path.write_bytes(blob[:-8] if damage == "truncate" else b"")
    with pytest.raises(FedrayError, match=r"checkpoint\.safetensors is damaged .*restart=true"):
        there.check()
    there.discard()
    assert there.load() is None


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    there = Checkpoint(tmp_path, **MEANING)
    there.save(snapshot(1))
    with full_disk(100_000), pytest.raises(FedrayError, match=r"cannot be written .*untouched: make room") as error:
        there.save(snapshot(2, numbers=200_000))
    assert "\n" not in str(error.value) and str(there.path) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [there.path.name], "nothing half written is left"
    loaded = there.load()
    assert loaded is not None and loaded.values == {"step": 1}
    there.save(snapshot(2, numbers=200_000))


def test_what_a_kill_left_half_written_is_not_read_and_goes(tmp_path: Path) -> None:
    there = Checkpoint(tmp_path, **MEANING)
    there.save(snapshot(1))
    half = there.path.with_name(f".{there.path.name}.4711")
    half.write_bytes(there.path.read_bytes()[:50])
    loaded = there.load()
    assert loaded is not None and loaded.values == {"step": 1} and not half.exists()


def test_only_one_process_trains_the_same(tmp_path: Path) -> None:
    one, two, other = (Checkpoint(tmp_path / name, **MEANING) for name in ("a", "a", "b"))
    with one.claim():
        one.save(snapshot(1))
        with other.claim(), pytest.raises(FedrayError, match="another process is training the fuser llama-1b -> qwen3"):
            two.claim().__enter__()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/checkpoint.safetensors"]
    with two.claim():
        assert two.load() is not None
        two.discard()
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(FedrayError, match="file cannot be written"), Checkpoint(tmp_path / "file", **MEANING).claim():
        pass
