"""jobs/registry.py: what there is, shown, removed, taken along."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from scarce import full_disk
from tiny import random_fuser, random_llm

from fedray.jobs.registry import run
from fedray.llm.catalogue import NAMES
from fedray.llm.loading import describe, load
from fedray.registry.store import Registry
from fedray.reporting import report
from fedray.reporting.report import Learned
from fedray.training.registry_settings import REGISTRY_JOB
from fedray.types import FedrayError

PAIR = "llama-1b--qwen3-0.6b"


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, list[str]]:
    """A registry with two versions of a fuser, and their hashes, the newest first."""
    sender, receiver = (random_llm(name) for name in PAIR.split("--"))
    hashes = []
    for seed in (0, 1):
        fuser = random_fuser(sender, receiver, "concat", seed=seed)
        made = Registry(tmp_path / "own").add_fuser(fuser, describe(sender), describe(receiver), {"steps": seed})
        os.utime(Path(made.path) / "manifest.json", (seed, seed))
        hashes.insert(0, made.hash)
    return tmp_path / "own", hashes


def do(root: Path | None, output: Path, **values: Any) -> tuple[Learned, ...]:
    assert run(REGISTRY_JOB.read({**values, "registry": {"path": root}, "output": output})) == 0
    left = report.read(output)
    assert (left.job, left.status) == ("registry", "complete")
    return left.learned


def test_list_shows_everything(own: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, hashes = own
    found = do(root, tmp_path / "out")
    shown = capsys.readouterr().out
    assert [part.name for part in found if part.role == "llm"] == list(NAMES)
    assert {part.role for part in found} == {"llm", "fuser", "gate"}
    assert [part.hash for part in found if part.name == PAIR][:2] == hashes and len(found) > 30
    assert all(part.hash is not None and part.hash in shown and Path(part.path or "").is_dir() for part in found)
    assert shown.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.json'}"


def test_show(own: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, (new, old) = own
    assert do(root, tmp_path / "out", action="show", name=PAIR)[0].hash == new
    (part,) = do(root, tmp_path / "out", action="show", name=PAIR, hash=old[:6])
    assert part.hash == old and old in capsys.readouterr().out
    (llm,) = do(root, tmp_path / "out", action="show", name="llama-1b")
    assert llm.role == "llm" and "meta-llama" in capsys.readouterr().out
    weights = Path(part.path or "") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(FedrayError, match="damaged"):
        do(root, tmp_path / "out", action="show", name=PAIR, hash=old)


def test_delete_takes_one_version_of_ones_own(own: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, (new, old) = own
    with pytest.raises(FedrayError, match="has several versions: say which, as in hash="):
        do(root, tmp_path / "out", action="delete", name=PAIR)
    do(root, tmp_path / "out", action="delete", name=PAIR, hash=new)
    assert [m.hash for m, _ in Registry(root, embedded=None).list()] == [old]
    do(root, tmp_path / "out", action="delete", name=PAIR)
    assert list(root.iterdir()) == []
    for name, says in ((PAIR, "read-only"), ("llama-1b", "zoo is read-only"), ("lama-1b--qwen3-0.6b", f"mean {PAIR}")):
        with pytest.raises(FedrayError, match=says):
            do(root, tmp_path / "out", action="delete", name=name)
    assert Registry().versions(PAIR), "the embedded ones are still there"


def test_what_is_exported_is_a_registry_or_a_zoo(own: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, (new, old) = own
    do(root, tmp_path / "out", action="export", name=PAIR, hash=old, to=tmp_path / "to")
    do(root, tmp_path / "out", action="export", name="gate--llama-1b", to=tmp_path / "to")
    there = {m.name: m.hash for m, _ in Registry(tmp_path / "to", embedded=None).list()}
    assert there[PAIR] == old and len(there) == 2
    do(None, tmp_path / "out", action="export", name="llama-1b", to=tmp_path / "to")
    assert load("llama-1b", folder=tmp_path / "to").weights_hash == load("llama-1b").weights_hash
    with pytest.raises(FedrayError, match=f"no version whose hash begins with ffff: there is .*{new}"):
        do(root, tmp_path / "out", action="export", name=PAIR, hash="ffff", to=tmp_path / "to")
    (tmp_path / "file").touch()
    with pytest.raises(FedrayError, match=r"cannot be written .*to=DIR"):
        do(root, tmp_path / "out", action="export", name=PAIR, to=tmp_path / "file")
    with full_disk(20_000), pytest.raises(FedrayError, match=r"cannot be written \(File too large\)"):
        do(root, tmp_path / "out", action="export", name="llama-1b", to=tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").rglob("*")] == ["llms"], "nothing half written is left"
