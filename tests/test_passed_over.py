"""A version that does not hold is named once, and the one before it is served, whoever asks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_cluster import RECEIVER, SENDERS
from short_training import settings
from support.methods import method
from test_inventory import do
from tiny import QUESTIONS, random_fuser, random_llm

from fedray import Federation
from fedray.fusion.gating import GateConfig, GateNetwork
from fedray.llm.loading import describe, load
from fedray.registry import store as registry_module
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.training import fuser_job
from fedray.types import FedrayError

SENDER = SENDERS[0]
PAIR = f"{SENDER}--{RECEIVER}"


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def spoil_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "config": {**values["config"], "hidden": 31}}))


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


SPOIL = [spoil_weights, spoil_manifest, remove_weights]
Spoil = Callable[[Path], None]


@pytest.fixture
def own(random_zoo: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A registry over the random zoo's, with two fusers of the pair, and their folders, the newest first."""
    sender, receiver = (describe(load(name, folder=random_zoo)) for name in (SENDER, RECEIVER))
    folders = []
    for seed in (1, 2):
        fuser = random_fuser(random_llm(SENDER), random_llm(RECEIVER), "concat", seed=seed)
        made = Registry(tmp_path / "own").add_fuser(fuser, sender, receiver, {})
        folders.insert(0, Path(made.path))
    return tmp_path / "own", folders


def open_with(random_federation: dict[str, Any], root: Path, **more: Any) -> Federation:
    return Federation(**{**random_federation, "senders": SENDERS[:1], "registry": {"path": root}, "ray": False, **more})


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_federation_serves_the_version_before_and_says_so_once(
    spoil: Spoil, own: tuple[Path, list[Path]], random_federation: dict[str, Any], capfd: Any
) -> None:
    root, (new, old) = own
    with open_with(random_federation, root) as fed:
        assert fed.plan.fusers[SENDER].path == str(new)
    assert capfd.readouterr().err.count("passed over") == 0
    spoil(new)
    with open_with(random_federation, root) as fed:
        assert fed.plan.fusers[SENDER].path == str(old)
        assert fed.plan_for(protocol="c2c").fusers[SENDER].path == str(old)
        answer = fed.ask(QUESTIONS[0])
        assert answer.senders == (SENDER,) and not answer.missing
    said = [line for line in capfd.readouterr().err.splitlines() if "passed over" in line]
    assert len(said) == 1 and str(new) in said[0]


def test_where_nothing_is_left_the_refusal_names_it_before_any_llm_is_loaded(
    own: tuple[Path, list[Path]], random_federation: dict[str, Any], random_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folders = own
    monkeypatch.setattr("fedray.federation.prepare.start_here", lambda *_: pytest.fail("it was started"))
    for folder, spoil in zip(folders, (spoil_weights, spoil_manifest), strict=True):
        spoil(folder)
    zoo = {"path": root / "nowhere"}
    (root / "nowhere" / "llms").mkdir(parents=True)
    with pytest.raises(FedrayError, match=f"no fuser=mlp fusion=concat for {SENDER} -> {RECEIVER}") as caught:
        open_with(random_federation, root, zoo=zoo)
    assert all(str(folder) in str(caught.value) for folder in folders)


def test_each_file_is_hashed_once_in_an_opening_and_never_in_a_plan(
    own: tuple[Path, list[Path]], random_federation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, (new, _) = own
    hashed: list[Path] = []
    check = registry_module.check_weights
    monkeypatch.setattr(registry_module, "check_weights", lambda m, path: hashed.append(path) or check(m, path))
    with open_with(random_federation, root) as fed:
        for _ in range(3):
            fed.plan_for()
        fed.plan_for(protocol="t2t")
    assert hashed == [new]
    planner = Planner(root, random_federation["zoo"]["path"])
    infos = [describe(load(name, folder=random_federation["zoo"]["path"])) for name in (RECEIVER, SENDER)]
    monkeypatch.setattr(registry_module, "check_weights", lambda *_: pytest.fail("hashed in a plan"))
    assert planner.plan(infos[0], infos[1:], method(gate="open")).fusers[SENDER].path == str(new)


def test_one_planner_passes_over_what_another_has_found(own: tuple[Path, list[Path]], random_zoo: Path) -> None:
    """As the driver tells the coordinator."""
    root, (new, old) = own
    spoil_weights(new)
    infos = [describe(load(name, folder=random_zoo)) for name in (RECEIVER, SENDER)]
    here, there = Planner(root, random_zoo), Planner(root, random_zoo)
    assert here.plan(infos[0], infos[1:], method(gate="open")).fusers[SENDER].path == str(new)
    here.check(RECEIVER, [SENDER], method(gate="open"))
    assert list(here.problems) == [new]
    for planner in (here, there):
        planner.pass_over(here.problems)
        assert planner.plan(infos[0], infos[1:], method(gate="open")).fusers[SENDER].path == str(old)


def test_fusers_for_other_weights_do_not_hide_a_damaged_one(own: tuple[Path, list[Path]], random_zoo: Path) -> None:
    """The newest is sound and of other LLMs, the next damaged: the last one is served."""
    root, (new, old) = own
    other = describe(random_llm(SENDER)), describe(random_llm(RECEIVER))
    fuser = random_fuser(random_llm(SENDER), random_llm(RECEIVER), "concat")
    Registry(root).add_fuser(fuser, *other, {})
    spoil_weights(new)
    planner = Planner(root, random_zoo)
    planner.check(RECEIVER, [SENDER], method(gate="open"))
    infos = [describe(load(name, folder=random_zoo)) for name in (RECEIVER, SENDER)]
    assert planner.plan(infos[0], infos[1:], method(gate="open")).fusers[SENDER].path == str(old)


@pytest.mark.parametrize("spoil", [spoil_weights, remove_weights])
def test_gates_too(spoil: Spoil, random_zoo: Path, tmp_path: Path) -> None:
    infos = [describe(load(name, folder=random_zoo)) for name in (RECEIVER, SENDER)]
    store, folders = Registry(tmp_path), []
    for units in (8, 16):
        gate = GateNetwork(GateConfig(RECEIVER, (SENDER,), hidden=96, operator="concat", units=units))
        folders.insert(0, Path(store.add_gate(gate, infos[0], {}).path))
    planner = Planner(tmp_path, random_zoo)
    planner.check(RECEIVER, [SENDER], method(gate="learned"))
    spoil(folders[0])
    planner = Planner(tmp_path, random_zoo)
    planner.check(RECEIVER, [SENDER], method(gate="learned"))
    artifact = planner.plan(infos[0], infos[1:]).gate_artifact
    assert artifact and artifact.path == str(folders[1]) and list(planner.problems) == [folders[0]]
    spoil(folders[1])
    planner = Planner(tmp_path, random_zoo)
    with pytest.raises(FedrayError, match=f"no fusion=concat gate of {RECEIVER} can be used; use gate=open") as caught:
        planner.check(RECEIVER, [SENDER], method(gate="learned"))
    assert all(str(folder) in str(caught.value) for folder in folders)
    planner.check(RECEIVER, [SENDER], method(gate="open"))


@pytest.mark.parametrize("spoil", SPOIL)
def test_what_is_trained_next_uses_the_version_before(
    spoil: Spoil, own: tuple[Path, list[Path]], random_zoo: Path
) -> None:
    root, (new, old) = own
    spoil(new)
    store, infos = Registry(root), [describe(load(name, folder=random_zoo)) for name in (SENDER, RECEIVER)]
    weights = {info.name: info.weights_hash for info in infos}
    found = store.fuser_in_use(SENDER, RECEIVER, weights, "mlp", "concat")
    assert found and found.path == str(old) and str(new) in store.passed_over(PAIR)


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_training_names_it(spoil: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("mlp", "concat")
    embedded = next(folder for made, folder in Registry().versions(PAIR) if (made.kind, made.operator) == wanted)
    own = tmp_path / "registry" / PAIR / embedded.name
    shutil.copytree(embedded, own)
    spoil(own)
    assert fuser_job.run(settings(tmp_path, sender="all")) == 0
    said = capsys.readouterr().out
    assert "nothing to train" in said and said.count(f"passed over: {own}") == 1


@pytest.mark.parametrize("spoil", SPOIL)
def test_the_registry_job_goes_on_beside_a_damaged_version(
    spoil: Spoil, own: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, (new, old) = own
    spoil(new)
    out, unreadable = tmp_path / "out", spoil is not spoil_weights
    found = {part.path for part in do(root, out)}
    assert str(old) in found and (str(new) in found) != unreadable
    assert capsys.readouterr().out.count(f"passed over: {new}") == unreadable
    assert do(root, out, action="show", name=PAIR)[0].hash == old.name
    assert f"passed over: {new}" in capsys.readouterr().out
    with pytest.raises(FedrayError, match=str(new)):
        do(root, out, action="show", name=PAIR, hash=new.name)
    for form in ("registry", "hub"):
        do(root, out, action="export", name=PAIR, to=tmp_path / form, form=form)
        with pytest.raises(FedrayError, match=str(new)):
            do(root, out, action="export", name=PAIR, hash=new.name, to=tmp_path / "no", form=form)
    assert [m.hash for m, _ in Registry(tmp_path / "registry", embedded=None).list()] == [old.name]
    do(tmp_path / "more", out, action="load", name=str(tmp_path / "hub" / PAIR))
    assert [m.hash for m, _ in Registry(tmp_path / "more", embedded=None).list()] == [old.name]
    with pytest.raises(FedrayError, match="has several versions"):
        do(root, out, action="delete", name=PAIR)
    do(root, out, action="delete", name=PAIR, hash=new.name)
    assert not new.exists() and old.is_dir() and not (tmp_path / "no").exists()
    spoil(old)
    do(root, out, action="delete", name=PAIR)
    assert list(root.iterdir()) == [], "the last one may be damaged too"


def test_export_keeps_which_version_is_the_newest(own: tuple[Path, list[Path]], tmp_path: Path) -> None:
    root, (new, old) = own
    for folder in (new, old):
        do(root, tmp_path / "out", action="export", name=PAIR, hash=folder.name, to=tmp_path / "to")
    assert [m.hash for m, _ in Registry(tmp_path / "to", embedded=None).list()] == [new.name, old.name]
