"""Fusers and gates as hub repositories: the same bytes and hash come back, and what is not what it says stays out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, close_session, constants
from mirror import TOKEN, Repo, point_here, serving
from reference import FUSERS, RECEIVER, SENDERS, zoo

from fedray.jobs import import_c2c, registry
from fedray.jobs.import_c2c import find
from fedray.jobs.registry import Inventory
from fedray.registry import hub
from fedray.registry.manifest import digest_of
from fedray.registry.store import Registry, load_fuser, load_gate
from fedray.training.registry_settings import REGISTRY_JOB, check_registry_job
from fedray.training.settings import build_import_job
from fedray.types import FedrayError

PAIR, GATE = "llama-1b--qwen3-0.6b", "gate--qwen3-0.6b"
GATED = "org/gated"


@pytest.mark.parametrize("name", [PAIR, GATE])
def test_a_folder_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    folder = Inventory(None, None).export(name, None, tmp_path, form="hub")
    assert sorted(path.name for path in folder.iterdir()) == sorted(hub.FILES)
    own = Inventory(tmp_path / "own", None)
    manifest, path = own.load(str(folder))
    first, embedded = Registry().pick(name)
    assert (manifest, path.parent.parent) == (first, tmp_path / "own")
    for file in ("model.safetensors", "manifest.json"):
        assert (path / file).read_bytes() == (embedded / file).read_bytes()
    load = load_fuser if manifest.role == "fuser" else load_gate
    load(manifest.artifact(path))


def test_the_card_says_what_it_fits() -> None:
    manifest, _ = Registry().pick(PAIR)
    card = ModelCard(hub.card(manifest, "me/mine"))
    assert (card.data.library_name, card.data.tags[-1]) == ("fedray", "fuser")
    for words in (
        manifest.hash,
        "load me/mine",
        f"fuser={manifest.kind}",
        *(h["weights"] for h in manifest.llms.values()),
    ):
        assert words in card.text


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other name": (config(lambda c: c.update(name="../up--here")), "it is called ../up--here and is for"),
    "other LLM": (config(lambda c: c["llms"]["llama-1b"].update(weights="0" * 16)), "its hash is not that of its"),
    "other shape": (config(lambda c: c["config"].update(hidden=7)), "its hash is not that of its content"),
    "other role": (config(lambda c: c.update(role="gate")), "describes no fuser or gate of fedray"),
    "odd config": (config(lambda c: c.update(config=[1])), "describes no fuser or gate of fedray"),
    "an LLM": (config(lambda c: c.update(architectures=["Qwen3ForCausalLM"])), "describes no fuser or gate of fedray"),
    "newer": (config(lambda c: c.update(version=2)), "version 2, this fedray reads 1"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "missing or describes no"),
    "damaged": (weights(lambda blob: blob[:-1] + b"\0"), "model.safetensors is damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_not_what_it_says_stays_out(name: str, tmp_path: Path) -> None:
    spoil, says = SPOILT[name]
    folder = Inventory(None, None).export(PAIR, None, tmp_path, form="hub")
    spoil(folder)
    with pytest.raises(FedrayError, match=says):
        Inventory(tmp_path / "own", None).load(str(folder))
    assert not (tmp_path / "own").exists()


def test_tensors_of_another_fuser_stay_out(tmp_path: Path) -> None:
    """Its hashes may all be right, made by whoever wrote them."""
    folder = Inventory(None, None).export(PAIR, None, tmp_path, form="hub")

    def forge(c: dict[str, Any]) -> None:
        c["config"]["hidden"] = 7
        c["hash"] = digest_of(c["role"], c["config"], c["llms"], c["weights"])

    config(forge)(folder)
    with pytest.raises(FedrayError, match="does not hold the tensors that"):
        Inventory(tmp_path / "own", None).load(str(folder))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"action": "push", "name": PAIR}, "add to=ORG/NAME"),
        ({"action": "push", "name": PAIR, "to": "name"}, "add to=ORG/NAME"),
        ({"action": "push", "name": "llama-1b", "to": "me/mine"}, "only fusers and gates become repositories"),
        ({"action": "export", "name": "llama-1b", "to": "x", "form": "hub"}, "export it without form=hub"),
        ({"action": "load", "name": "me/mine", "registry": {"path": None}}, "registry.path=DIR"),
        ({"action": "load"}, "load what: name"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(FedrayError, match=says):
        check_registry_job(REGISTRY_JOB.read({"output": tmp_path, **values}))


# -- over HTTP -----------------------------------------------------------------------------------------------------

JOBS: dict[str, tuple[Callable[[Any], int], Callable[[Any], Any]]] = {
    "registry": (registry.run, REGISTRY_JOB.read),
    "import_c2c": (import_c2c.run, build_import_job),
}


def do(url: str, home: Path, *jobs: tuple[str, dict[str, Any]], token: str = "", offline: bool = False) -> list[str]:
    """What each job says where it is refused, and "" where it is done, while the hub is `url`."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        point_here(patch, url, home / "hf")
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setenv("HF_TOKEN", token)
        for name, values in jobs:
            run, build = JOBS[name]
            try:
                run(build({"output": home / "out", **values}))
                said.append("")
            except FedrayError as error:
                said.append(str(error))
    close_session()  # a connection that is kept alive would outlive its server
    return said


def load(repo: str, own: Path, **more: str) -> tuple[str, dict[str, Any]]:
    return "registry", {"action": "load", "name": repo, "registry": {"path": str(own)}, **more}


def push(repo: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "registry", {"action": "push", "name": PAIR, "to": repo, **more}


def test_pushed_and_loaded(tmp_path: Path) -> None:
    """Push, load, push again, and load once more when the hub is gone."""
    own, again = tmp_path / "own", tmp_path / "again"
    with serving() as server:
        steps = (push("me/mine"), load("me/mine", own), push("me/mine"), push("me/open", private=False))
        assert do(server.url, tmp_path, *steps, token=TOKEN) == [""] * 4
        mine = server.repos["me/mine"]
        assert sorted(mine.files) == sorted(hub.FILES) and mine.private and not server.repos["me/open"].private
        commit = mine.commit() or ""
    assert do(server.url, tmp_path, load("me/mine", again), load("me/mine", again, revision=commit)) == ["", ""]
    first, embedded = Registry().pick(PAIR)
    for root in (own, again):
        ((manifest, folder),) = Registry(root, embedded=None).list()
        assert manifest == first
        assert (folder / "model.safetensors").read_bytes() == (embedded / "model.safetensors").read_bytes()


def test_a_hub_that_refuses_is_understood(tmp_path: Path) -> None:
    own = tmp_path / "own"
    with serving() as server:
        server.repos["me/llm"] = Repo({"config.json": b'{"architectures": ["Qwen3ForCausalLM"]}'})
        server.repos[GATED] = Repo({"config.json": b"{}"}, gated=True)
        asked = {
            GATED: "accept its terms on its page on the hub",
            "no/where": "there is no repository no/where that you may read: check its name, and log in with",
            "me/llm": "describes no fuser or gate of fedray",
            "one word": "no repository's id: write ORG/NAME",
        }
        said = do(
            server.url, tmp_path, *(load(repo, own) for repo in asked), load("me/llm", own, revision="v9"), push("me/x")
        )
    for sentence, words in zip(said[:4], asked.values(), strict=True):
        assert words in sentence
    assert "me/llm has no revision 'v9': name a branch, a tag or a commit" in said[4]
    assert "cannot write to me/x: the hub answers 401; log in with `hf auth login`" in said[5]
    gone = do(server.url, tmp_path, load("me/new", own), push("me/new"), token=TOKEN)
    offline = do(server.url, tmp_path, load("me/new", own), push("me/new"), token=TOKEN, offline=True)
    assert "cannot read me/new: the hub is out of reach or HF_HUB_OFFLINE is set, and it is not in the cache" in gone[0]
    assert gone[0] == offline[0] and all(words[1].startswith("cannot write to me/new") for words in (gone, offline))
    assert not own.exists()


def published() -> Repo:
    """The reference's fusers as one repository, as C2C publishes many, with files that nobody needs."""
    files = {
        f"{sender}_Fuser/{path.relative_to(folder)}": path.read_bytes()
        for sender, folder in FUSERS.items()
        for path in folder.rglob("*.*")
        if path.is_file()
    }
    return Repo({**files, "llama-1b_Fuser/final/optimizer.pt": b"large", "README.md": b"what it is"})


def test_published_fusers_come_from_the_hub(tmp_path: Path) -> None:
    home, repo = zoo(tmp_path / "zoo"), "nics/C2C_Fuser"

    def job(source: str, sender: str = "llama-1b") -> tuple[str, dict[str, Any]]:
        places = {"zoo": {"path": str(home)}, "registry": {"path": str(tmp_path / "own")}}
        return "import_c2c", {"source": source, "sender": sender, "receiver": RECEIVER, **places}

    with serving() as server:
        server.repos |= {repo: published(), "me/empty": Repo({"README.md": b"nothing"})}
        said = do(
            server.url, tmp_path, job(f"{repo}/llama-1b_Fuser"), job(repo), job(f"{repo}/llama_Fuser"), job("me/empty")
        )
        assert said[0] == ""
        assert f"{repo} holds 2 pairs: name one, as in {repo}/llama-1b_Fuser" in said[1]
        assert "unknown pair in nics/C2C_Fuser: 'llama_Fuser' (did you mean llama-1b_Fuser?)" in said[2]
        assert "me/empty holds no published C2C fuser" in said[3]
        assert not {"README.md", "llama-1b_Fuser/final/optimizer.pt"} & set(server.fetched)
        assert len([path for path in server.fetched if path.startswith(SENDERS[0])]) == 1, "its map alone"
        commit = server.repos[repo].commit()
    ((manifest, _),) = Registry(tmp_path / "own", embedded=None).list()
    assert manifest.training["published"] == {"source": f"{repo}/llama-1b_Fuser", "commit": commit}


def test_a_folder_is_asked_for_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "mine").mkdir(parents=True)
    assert find("me/mine") == (Path("me/mine"), {"source": "mine"})
    for nowhere in ("./me/more", "word", "/me/more"):
        with pytest.raises(FedrayError, match="is no folder, and no pair on the hub"):
            find(nowhere)
