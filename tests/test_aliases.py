"""Aliases: which version is in service, what a canary gets, and how one goes back."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_stress import RECEIVER, SENDER, Versions
from scarce import full_disk
from support.methods import method
from test_inventory import do
from tiny import random_llm

from fedray.command_line import REGISTRY, launch
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.llm.loading import describe
from fedray.registry import service
from fedray.registry.aliases import ALIASES, Alias, changing, draw, kind_of, levels, read_aliases
from fedray.registry.planner import Planner
from fedray.registry.store import Registry, read_manifest
from fedray.training.registry_settings import RegistryJob, check_registry_job
from fedray.types import FedrayError, Plan

PAIR = f"{SENDER}--{RECEIVER}"
KIND = f"{PAIR} mlp concat"


@pytest.fixture
def three(tmp_path: Path) -> Versions:
    """A registry with three versions of a fuser; hashes: from the oldest to the newest."""
    return Versions(tmp_path / "registry")


def root_of(versions: Versions) -> Path:
    assert versions.registry.path is not None
    return versions.registry.path


def planned(versions: Versions, level: int = -1) -> Plan:
    planner = Planner(root_of(versions), root_of(versions).parent / "zoo")
    planner.check(RECEIVER, [SENDER], method(gate="open"))
    receiver, sender = (describe(random_llm(name)) for name in (RECEIVER, SENDER))
    return planner.serving(planner.levels()[level][1]).plan(receiver, [sender], method(gate="open"))


def served(versions: Versions, level: int = -1) -> str:
    return planned(versions, level).fusers[SENDER].hash


def alias(versions: Versions, number: int, share: float | None = None) -> None:
    asked = (versions.registry, root_of(versions), PAIR, versions.hashes[number])
    service.make_stable(*asked) if share is None else service.try_canary(*asked, share)


# -- what is served -------------------------------------------------------------------------------------------------


def test_the_stable_version_is_served_and_without_an_alias_the_newest(three: Versions) -> None:
    old, middle, new = three.hashes
    assert served(three) == new
    alias(three, 0)
    assert served(three) == old
    alias(three, 1)
    assert served(three) == middle == three.registry.served(PAIR)[0][0].hash
    assert [m.hash for m, _ in three.registry.versions(PAIR)] == [new, middle, old], "which is the newest stays"
    assert three.registry.pick(PAIR)[0].hash == new
    (root_of(three) / ALIASES).unlink()
    assert served(three) == new


def test_a_canary_is_served_to_its_share(three: Versions) -> None:
    alias(three, 0)
    alias(three, 2, share=0.25)
    planner = Planner(root_of(three))
    assert [upto for upto, _ in planner.levels()] == [0.25, 1.0]
    assert (served(three, 0), served(three, 1)) == (three.hashes[2], three.hashes[0])
    alias(three, 2)
    assert [upto for upto, _ in Planner(root_of(three)).levels()] == [1.0] and served(three) == three.hashes[2]


def test_every_canary_gets_its_own_share_of_one_draw() -> None:
    aliases = {"a--b mlp concat": Alias("0" * 16, "1" * 16, 0.1), "b--a mlp concat": Alias("2" * 16, "3" * 16, 0.3)}
    found = [(upto, {name: order[0][0] for name, order in of.items()}) for upto, of in levels(aliases)]
    assert found == [
        (0.1, {"a--b": "1", "b--a": "3"}),
        (0.3, {"a--b": "0", "b--a": "3"}),
        (1.0, {"a--b": "0", "b--a": "2"}),
    ]
    draws = [draw(f"request-{number}") for number in range(4000)]
    assert draws == [draw(f"request-{number}") for number in range(4000)] and all(0 <= at < 1 for at in draws)
    for share in (0.1, 0.3, 0.9):
        assert sum(at < share for at in draws) / len(draws) == pytest.approx(share, abs=0.03)


def test_kinds_of_one_name_have_aliases_of_their_own(random_zoo: Path, mixing: Path, tmp_path: Path) -> None:
    """What is stable for one method changes nothing for another."""
    registry = Registry(tmp_path / "own", random_zoo / "registry")
    shutil.copytree(mixing, tmp_path / "own")
    name = f"llama-1b--{RECEIVER}"
    mix, concat = (next(m for m, _ in registry.versions(name) if m.operator == of) for of in ("mix", "concat"))
    service.make_stable(registry, tmp_path / "own", name, concat.hash)
    assert read_aliases(tmp_path / "own") == {f"{name} mlp concat": Alias(concat.hash)}, "an embedded one"
    service.make_stable(registry, tmp_path / "own", name, mix.hash)
    assert registry.aliases().keys() == {f"{name} mlp concat", f"{name} mlp mix"}
    assert {m.hash for m, _ in registry.served(name)[:2]} == {mix.hash, concat.hash}
    with pytest.raises(
        FedrayError, match=f"several stable versions: say which is to go back, as in hash={concat.hash}"
    ):
        service.roll_back(registry, tmp_path / "own", name)
    with pytest.raises(FedrayError, match=f"mlp mix has no version before {mix.hash}"):
        service.roll_back(registry, tmp_path / "own", name, mix.hash[:5])


def test_gates_too(tmp_path: Path) -> None:
    receiver = describe(random_llm(RECEIVER))
    registry, hashes = Registry(tmp_path, None), []
    for units in (8, 16):
        gate = GateNetwork(GateConfig(RECEIVER, (SENDER,), hidden=96, operator="concat", units=units))
        hashes.append(registry.add_gate(gate, receiver, {}).hash)
    assert registry.find_gate(receiver, (SENDER,), "concat").hash == hashes[1]
    service.make_stable(registry, tmp_path, f"gate--{RECEIVER}", hashes[0])
    assert registry.find_gate(receiver, (SENDER,), "concat").hash == hashes[0]
    assert registry.aliases().keys() == {f"gate--{RECEIVER} concat"}


def test_what_is_trained_next_uses_the_stable_version(three: Versions) -> None:
    alias(three, 1)
    infos = [describe(random_llm(name)) for name in (SENDER, RECEIVER)]
    weights = {info.name: info.weights_hash for info in infos}
    found = three.registry.fuser_in_use(SENDER, RECEIVER, weights, "mlp", "concat")
    assert found and found.hash == three.hashes[1]


# -- what is damaged ------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: os.truncate(path, 20),
    "empty": lambda path: path.write_text(""),
    "no object": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "another key": lambda path: path.write_text('{"others": {}}'),
    "no hash": lambda path: path.write_text(json.dumps({"kinds": {KIND: {"stable": "../../etc"}}})),
    "no name": lambda path: path.write_text(json.dumps({"kinds": {"../a--b mlp concat": {"stable": "0" * 16}}})),
    "share without a canary": lambda path: path.write_text(
        json.dumps({"kinds": {KIND: {"stable": "0" * 16, "share": 0.5}}})
    ),
    "share of all": lambda path: path.write_text(
        json.dumps({"kinds": {KIND: {"stable": "0" * 16, "canary": "1" * 16, "share": 1.0}}})
    ),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe{"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_passed_over(damage: str, three: Versions) -> None:
    alias(three, 0)
    path = root_of(three) / ALIASES
    DAMAGE[damage](path)
    registry = Registry(root_of(three), None)
    assert served(three) == three.hashes[2] == registry.served(PAIR)[0][0].hash
    assert list(registry.problems) == [path] and registry.problems[path].startswith(f"{path} cannot be read (")
    for change in (lambda: alias(three, 0), lambda: registry.delete(PAIR, three.hashes[0])):
        with pytest.raises(FedrayError, match="mend it, or delete it"):
            change()
    assert three.folder(0).is_dir()
    path.rmdir() if path.is_dir() else path.unlink()
    alias(three, 1)
    assert registry.served(PAIR)[0][0].hash == three.hashes[1] and not registry.problems


def test_where_the_stable_version_is_damaged_the_one_before_is_served_and_it_is_named(three: Versions) -> None:
    alias(three, 0)
    alias(three, 1)
    three.damage(1)
    planner = Planner(root_of(three), root_of(three))
    planner.check(RECEIVER, [SENDER], method(gate="open"))
    receiver, sender = (describe(random_llm(name)) for name in (RECEIVER, SENDER))
    assert planner.plan(receiver, [sender], method(gate="open")).fusers[SENDER].hash == three.hashes[0]
    assert list(planner.problems) == [three.folder(1)]
    shutil.rmtree(three.folder(1))
    planner = Planner(root_of(three), root_of(three))
    planner.levels()
    assert "is stable and not there; alias another version" in planner.problems[three.folder(1)]
    assert served(three) == three.hashes[0]


def test_a_full_disk_leaves_the_aliases_before(three: Versions) -> None:
    alias(three, 0)
    with full_disk(10), pytest.raises(FedrayError, match=r"aliases.json cannot be written .*; the aliases before"):
        alias(three, 1)
    assert read_aliases(root_of(three)) == {KIND: Alias(three.hashes[0])}
    assert sorted(path.name for path in root_of(three).iterdir()) == [ALIASES, PAIR]


def test_a_reader_sees_the_old_or_the_new_and_no_writer_loses_anothers_change(three: Versions) -> None:
    """Four writers count in a kind of their own, while others read."""
    root, done, seen = root_of(three), threading.Event(), []

    def write(number: int) -> None:
        for turn in range(25):
            with changing(root) as aliases:
                before = aliases.get(f"a{number}--b mlp concat", Alias(f"{0:016x}")).before
                aliases[f"a{number}--b mlp concat"] = Alias(f"{turn:016x}", before=(*before, f"{turn:016x}"))

    def read() -> None:
        while not done.is_set():
            seen.append(read_aliases(root))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert {len(found.before) for found in read_aliases(root).values()} == {25} and len(seen) > 10
    for found in seen:
        assert all(of.before[-1] == of.stable for of in found.values())


# -- the commands ---------------------------------------------------------------------------------------------------


def test_alias_and_roll_back(three: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out, (old, middle, new) = root_of(three), tmp_path / "out", three.hashes
    assert do(root, out, action="alias", name=PAIR, hash=old[:6])[0].hash == old
    assert f"{KIND}: {old} is stable" in capsys.readouterr().out
    do(root, out, action="alias", name=PAIR, hash=middle)
    do(root, out, action="alias", name=PAIR, hash=new, alias="canary", share=0.1)
    assert f"{new} is the canary of 0.1 of the traffic" in capsys.readouterr().out
    assert read_aliases(root) == {KIND: Alias(middle, new, 0.1, (old,))}
    do(root, out)
    shown = capsys.readouterr().out
    for digest, said in ((middle, "stable"), (new, "canary 0.1"), (old, "")):
        (line,) = (line for line in shown.splitlines() if digest in line)
        assert line.split(digest)[1].split("0.0")[0].strip() == said
    do(root, out, action="show", name=PAIR, hash=new)
    assert "canary 0.1" in capsys.readouterr().out
    assert do(root, out, action="rollback", name=PAIR)[0].hash == old
    assert f"{old} is stable again" in capsys.readouterr().out
    assert read_aliases(root) == {KIND: Alias(old)}, "the canary has ended"
    do(root, out, action="alias", name=PAIR)
    assert read_aliases(root) == {KIND: Alias(new, before=(old,))}, "the newest by default"


def test_roll_back_passes_over_what_is_gone(three: Versions, tmp_path: Path, capsys: Any) -> None:
    for number in (0, 1, 2):
        alias(three, number)
    do(root_of(three), tmp_path / "out", action="delete", name=PAIR, hash=three.hashes[1])
    assert do(root_of(three), tmp_path / "out", action="rollback", name=PAIR)[0].hash == three.hashes[0]
    assert "passed over:" in capsys.readouterr().out


def test_what_an_alias_names_is_not_deleted(three: Versions, tmp_path: Path) -> None:
    alias(three, 0)
    alias(three, 1, share=0.5)
    for number, what in ((0, "stable"), (1, "canary 0.5")):
        with pytest.raises(FedrayError, match=f"{three.hashes[number]} is {what}: alias another version first"):
            do(root_of(three), tmp_path / "out", action="delete", name=PAIR, hash=three.hashes[number])
        assert three.folder(number).is_dir()
    do(root_of(three), tmp_path / "out", action="delete", name=PAIR, hash=three.hashes[2])
    alias(three, 0)
    do(root_of(three), tmp_path / "out", action="delete", name=PAIR, hash=three.hashes[1])


def test_affected_names_what_depends_on_an_llm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = do(tmp_path / "own", tmp_path / "out", action="affected", name="llama-1b")
    said = capsys.readouterr().out
    assert "if the weights of llama-1b change, 8 fusers and 5 gates are to be trained anew" in said  # 2(N-1) of 5 LLMs
    fusers = {part.name for part in found if part.role == "fuser"}
    assert len(fusers) == 8 and all("llama-1b" in name.split("--") for name in fusers)
    assert len({part.name for part in found if part.role == "gate"}) == 5
    with pytest.raises(FedrayError, match=r"unknown LLM 'lama-1b' \(did you mean llama-1b"):
        do(tmp_path / "own", tmp_path / "out", action="affected", name="lama-1b")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"action": "alias", "name": None}, "alias what: name"),
    "unknown name": ({"action": "alias", "name": "lama-1b--qwen3-0.6b"}, "unknown fuser or gate 'lama-1b--qwen3-0.6b'"),
    "an LLM": ({"action": "alias", "name": "llama-1b"}, "llama-1b is an LLM: only fusers and gates have aliases"),
    "unknown hash": ({"action": "alias", "hash": "ffff"}, "no version whose hash begins with ffff"),
    "no share": ({"action": "alias", "alias": "canary"}, "alias=canary needs the share"),
    "a share of none": ({"action": "alias", "alias": "canary", "share": 0}, "must lie between 0 and 1"),
    "a share of all": ({"action": "alias", "alias": "canary", "share": 1.0}, "must lie between 0 and 1"),
    "no number": ({"action": "alias", "alias": "canary", "share": float("nan")}, "must lie between 0 and 1"),
    "a share of stable": ({"action": "alias", "share": 0.1}, "share=0.1 is for alias=canary"),
    "canary without stable": ({"action": "alias", "alias": "canary", "share": 0.1}, "no stable version beside which"),
    "nothing to go back from": ({"action": "rollback"}, "no such stable version to go back from"),
    "going back in an unknown one": ({"action": "rollback", "name": "a--b"}, "unknown fuser or gate 'a--b'"),
    "affected by nothing": ({"action": "affected", "name": None}, "affected by what: name an LLM"),
    "another alias": ({"action": "alias", "alias": "latest"}, "unknown alias 'latest'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong: str, three: Versions, tmp_path: Path) -> None:
    values, says = WRONG[wrong]
    given = {"name": PAIR, "registry": {"path": root_of(three)}, "output": tmp_path / "out", **values}
    with pytest.raises(FedrayError, match=says.replace("(", r"\(")) as caught:
        check_registry_job(REGISTRY.build(given))
        do(root_of(three), tmp_path / "out", **values | {"name": given["name"]})
    assert "\n" not in str(caught.value)
    assert not (root_of(three) / ALIASES).exists()


def test_more_refusals(three: Versions, tmp_path: Path) -> None:
    root = root_of(three)
    alias(three, 0)
    with pytest.raises(FedrayError, match=f"no version before {three.hashes[0]} to go back to: alias one as stable"):
        do(root, tmp_path / "out", action="rollback", name=PAIR)
    with pytest.raises(FedrayError, match="is the stable version: choose another one as canary"):
        alias(three, 0, share=0.1)
    manifest = read_manifest(three.folder(1))
    other = replace(describe(random_llm(SENDER)), weights_hash="other")
    made = three.registry.add_fuser(three._fusers[1], other, describe(random_llm(RECEIVER)), {})
    assert kind_of(manifest) == KIND
    with pytest.raises(FedrayError, match=f"{made.hash} was trained for other LLMs than the stable {three.hashes[0]}"):
        service.try_canary(three.registry, root, PAIR, made.hash, 0.1)
    with pytest.raises(FedrayError, match=r"embedded registry is read-only: give one of your own with registry.path"):
        check_registry_job(RegistryJob("alias", PAIR, registry=replace(RegistryJob().registry, path=None)))
    assert read_aliases(root) == {KIND: Alias(three.hashes[0])}


def test_refusals_of_a_process_are_one_sentence_and_exit_code_2(
    three: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedray.jobs.registry import run

    monkeypatch.chdir(tmp_path)
    asked = (
        ("alias", "alias=canary", "share=1.5"),
        ("alias", "hash=ffff"),
        ("alias", "alias=canary", "share=0.1"),
        ("rollback",),
    )
    for action, *words in asked:
        words = [action, PAIR, *words, f"registry.path={root_of(three)}"]
        monkeypatch.setattr(sys, "argv", ["registry.py", *words])
        with pytest.raises(SystemExit) as stop:
            launch(run, "registry", form=REGISTRY)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and len(said.splitlines()) == 1, said
