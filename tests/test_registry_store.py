"""The registry as a store: nothing that is there is lost or unreadable for a moment, whoever writes, dies or reads."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from registry_stress import FILES, Versions
from safetensors.torch import save
from scarce import full_disk
from tiny import random_fuser, random_llm

from fedray.files import staged
from fedray.llm.loading import describe
from fedray.registry import versions as versions_module
from fedray.registry.manifest import Manifest
from fedray.registry.store import SHIPPED, Registry, load_fuser
from fedray.registry.versions import read_manifest, read_weights, write_version
from fedray.types import FedrayError


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "registry", count=2)


def newest(versions: Versions) -> str:
    return versions.registry.list()[0][0].hash


def test_registering_again_changes_nothing_that_a_reader_holds(versions: Versions) -> None:
    folder = versions.folder(0)
    before = [((folder / name).stat().st_ino, (folder / name).read_bytes()) for name in FILES]
    assert newest(versions) == versions.hashes[1]
    assert versions.add(0) == versions.hashes[0]
    assert newest(versions) == versions.hashes[0], "a later registration wins"
    assert [((folder / name).stat().st_ino, (folder / name).read_bytes()) for name in FILES] == before
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(versions.hashes)


def test_a_later_registration_wins_whatever_the_clocks_say(versions: Versions) -> None:
    for number in (0, 1, 0, 1, 0):
        versions.add(number)
        assert newest(versions) == versions.hashes[number]
    ahead = 4_000_000_000
    os.utime(versions.folder(1) / "manifest.json", (ahead, ahead))
    assert newest(versions) == versions.hashes[1]
    versions.add(0)
    assert newest(versions) == versions.hashes[0]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "all files, and one more": lambda folder: [(folder / name).write_text("x") for name in (*FILES, "more")],
}


@pytest.mark.parametrize("damage", ["a bit of the weights", *DAMAGE])
def test_a_damaged_version_is_mended_by_registering_it(versions: Versions, damage: str) -> None:
    folder = versions.folder(0)
    sound = {name: (folder / name).read_bytes() for name in FILES}
    DAMAGE.get(damage, lambda _: versions.damage(0))(folder)
    versions.add(0)
    assert {name: (folder / name).read_bytes() for name in FILES} == sound
    assert newest(versions) == versions.hashes[0] and versions.faults() == {"lost": 0, "unreadable": 0}
    versions.read()


def test_a_damaged_version_is_there_while_it_is_mended(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = versions.folder(0), []
    versions.damage(0)
    move = versions_module.moved

    def watching(new: Path, final: Path) -> bool:
        seen.append(all((folder / name).is_file() for name in FILES))
        done = move(new, final)
        seen.append(all((folder / name).is_file() for name in FILES))
        return done

    monkeypatch.setattr(versions_module, "moved", watching)
    versions.add(0)
    assert seen == [True, True]


def test_a_version_that_is_deleted_while_it_is_registered_is_written(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_newest, deleted = versions_module._make_newest, []

    def late(manifest: Path, folder: Path) -> None:
        if not deleted:
            deleted.append(versions.registry.delete(folder.parent.name, folder.name))
        make_newest(manifest, folder)

    monkeypatch.setattr(versions_module, "_make_newest", late)
    versions.add(0)
    assert deleted == [versions.folder(0)] and versions.faults() == {"lost": 0, "unreadable": 0}


def test_which_layers_are_read_is_looked_up_again_in_a_mended_version(tmp_path: Path) -> None:
    sender, receiver = random_llm("qwen2.5-0.5b"), random_llm("qwen3-0.6b")
    fuser, registry = random_fuser(sender, receiver, "mix", "c2c"), Registry(tmp_path)
    for name, parameter in fuser.named_parameters():
        parameter.data.fill_(name == "projectors.1.key_gate_logit")
    add = partial(registry.add_fuser, fuser, describe(sender), describe(receiver), {})
    artifact = add()
    assert artifact.layers == ((1,), ())
    weights = Path(artifact.path) / "model.safetensors"
    manifest = read_manifest(Path(artifact.path))
    for damaged in (
        b"",
        save({"projectors.0.key_gate_logit": torch.ones(3)}),
        save({"projectors.0.key_gate_logit": -torch.ones(())}),
    ):
        weights.write_bytes(damaged)
        assert manifest.artifact(Path(artifact.path)).layers != artifact.layers
    assert add() == artifact


def test_what_a_kill_left_is_not_read_and_is_removed_by_the_next_writer(versions: Versions) -> None:
    home, hashes = versions.folder(0).parent, set(versions.hashes)
    shutil.copytree(versions.folder(0), home / ".new-left")
    (home / f".old-{'0' * 16}").mkdir()
    (home / ".old-empty").mkdir()
    assert {manifest.hash for manifest, _ in versions.registry.list()} == hashes
    with staged(home) as alive:
        (alive / "file").touch()
        versions.add(0)
        os.utime(versions.folder(1) / "manifest.json", (1, 1))
        versions.damage(1)
        versions.add(1)
        assert {path.name for path in home.iterdir()} == hashes | {alive.name}, "who still writes is let alone"
        assert (alive / "file").exists()
    assert {path.name for path in home.iterdir()} == hashes
    (home / ".new-left").mkdir()
    versions.add(1)
    assert {path.name for path in home.iterdir()} == hashes, "also where there is nothing to write"


def test_writers_a_deleter_and_a_reader_at_once(versions: Versions) -> None:
    """Threads of one process: each lock is a file's, not a process's."""
    errors: list[Exception] = []

    def again(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(30):
                try:
                    step()
                except Exception as error:  # noqa: BLE001  # whatever it is, the test names it
                    errors.append(error)

        return run

    def delete() -> None:
        versions.registry.delete("qwen2.5-0.5b--qwen3-0.6b", versions.hashes[1])
        versions.add(1)

    steps = (lambda: versions.add(0), lambda: versions.add(0), versions.read, delete)
    threads = [threading.Thread(target=again(step)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # a version that is deleted between the plan and its loading is named; nothing else goes wrong
    assert [e for e in errors if versions.hashes[1] not in str(e) or "cannot be read" not in str(e)] == []
    assert versions.faults() == {"lost": 0, "unreadable": 0}


def stress(*options: str) -> dict[str, dict[str, int]]:
    script = Path(__file__).with_name("registry_stress.py")
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kills_and_crowds_lose_nothing() -> None:
    found = stress("--kills", "100", "--seconds", "60")
    nothing = {"kills": 100, "lost": 0, "unreadable": 0, "left over": 0}
    assert (found["killed"], found["mending"]) == (nothing, nothing)
    crowded = found["crowded"]
    assert crowded.pop("writes") > 0 and crowded.pop("reads") > 0
    assert set(crowded.values()) == {0}, crowded


def test_a_full_disk_leaves_a_damaged_version_and_the_others(versions: Versions) -> None:
    folder = versions.folder(0)
    versions.damage(0)
    damaged = (folder / "model.safetensors").read_bytes()
    with full_disk(20_000), pytest.raises(FedrayError, match=r"File too large.*versions before it are untouched"):
        versions.add(0)
    assert (folder / "model.safetensors").read_bytes() == damaged
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(versions.hashes)
    with full_disk(20_000):
        versions.add(1)  # which is sound, and takes no room


def test_where_nobody_may_write_what_is_there_is_read() -> None:
    """As another user than root, who may write anywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        versions = Versions(Path(folder, "registry"), count=2)
        for path in Path(folder).rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        weights = versions.folder(0) / "model.safetensors"
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            versions.read()
            assert versions.add(1) == versions.hashes[1], "it is the newest already"
            with pytest.raises(FedrayError, match=r"cannot be written \(.*the versions before it are untouched"):
                Versions(Path(folder, "registry"), count=3)
            assert versions.registry.problems == {}
            if root:
                os.seteuid(0)
            versions.folder(1).chmod(0)
            if root:
                os.seteuid(65534)
            versions.read()
            ((hidden, said),) = versions.registry.problems.items()
            assert hidden == versions.folder(1) and "Permission denied" in said
            with pytest.raises(FedrayError, match="cannot be removed"):
                versions.registry.delete("qwen2.5-0.5b--qwen3-0.6b", versions.hashes[0])
        finally:
            if root:
                os.seteuid(0)
            versions.folder(1).chmod(0o755)
            for path in (Path(folder, "registry"), *Path(folder).rglob("*")):
                path.chmod(path.stat().st_mode | stat.S_IWUSR)
        assert weights.is_file() and versions.faults() == {"lost": 0, "unreadable": 0}


ELSEWHERE = (
    "../../../escaped",
    "/tmp/escaped",
    "..",
    ".",
    "",
    "a" * 5000,
    "0" * 15,
    "0" * 17,
    "\0" * 16,
    "0" * 16 + "\n",
)


@pytest.mark.parametrize("digest", ELSEWHERE)
def test_a_hash_that_is_none_never_becomes_a_path(versions: Versions, digest: str, tmp_path: Path) -> None:
    manifest, folder = versions.registry.list()[0]
    blob, before = read_weights(manifest, folder), sorted(tmp_path.rglob("*"))
    with pytest.raises(FedrayError):
        versions.registry.adopt(replace(manifest, hash=digest), blob)
    with pytest.raises(FedrayError, match="no hash of a version"):
        load_fuser(replace(manifest.artifact(folder), hash=digest))
    if digest:
        with pytest.raises(FedrayError, match=r"no hash|no version"):
            versions.registry.pick(manifest.name, digest)
        with pytest.raises(FedrayError, match=r"no hash|no version|several versions"):
            versions.registry.delete(manifest.name, digest)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["../x--y", "/tmp/x--y", "x--y/..", "x", "", "*--*", "X--Y", "x--" + "y" * 5000, "x--\0"]
)
def test_a_name_that_is_none_never_becomes_a_path(versions: Versions, name: str, tmp_path: Path) -> None:
    manifest, folder = versions.registry.list()[0]
    blob, before = read_weights(manifest, folder), sorted(tmp_path.rglob("*"))
    with pytest.raises(FedrayError):
        versions.registry.adopt(replace(manifest, name=name), blob)
    for ask in (versions.registry.pick, versions.registry.delete):
        with pytest.raises(FedrayError, match="unknown fuser or gate"):
            ask(name)
    with pytest.raises(FedrayError, match="no name for a registry"):
        load_fuser(replace(manifest.artifact(folder), name=name))
    assert versions.registry.versions(name) == [] and sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_not_the_manifests_are_not_stored(versions: Versions, tmp_path: Path) -> None:
    manifest, folder = versions.registry.list()[0]
    blob = read_weights(manifest, folder)
    with pytest.raises(FedrayError, match="other weights than its manifest says"):
        write_version(tmp_path / "other", manifest, blob[:-1])
    with pytest.raises(FedrayError, match="its hash is not that of its content"):
        Registry(tmp_path / "other").adopt(replace(manifest, weights="0" * 64), blob)
    assert not (tmp_path / "other").exists()
    assert Manifest.from_json(manifest.to_json()) == manifest == read_manifest(folder)


def test_the_age_of_a_packages_files_says_nothing(tmp_path):
    """An installation, a clone and a copy each give them times of their own."""
    shutil.copytree(SHIPPED, tmp_path / "package")
    versions = sorted((tmp_path / "package" / "llama-1b--qwen3-0.6b").iterdir())
    for age, folder in enumerate(versions):
        os.utime(folder / "manifest.json", (age, age))
    assert [path for _, path in Registry(None, tmp_path / "package").versions("llama-1b--qwen3-0.6b")] == versions
