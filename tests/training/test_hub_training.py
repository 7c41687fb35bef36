"""The training jobs on zoo=hub, against the mirror: pinned, measured, downloaded, trained, registered, found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Call
from huggingface_hub import constants
from reference import FUSERS, zoo
from samples import hermes, message, write

from fedray.federation.federation import Federation
from fedray.jobs import import_c2c
from fedray.llm.catalogue import NAMES
from fedray.llm.catalogue import repo_of as published
from fedray.registry.store import Registry, read_manifest
from fedray.reporting import report
from fedray.training import fuser_job, gate_job, memory
from fedray.training.settings import build_fuser_job, build_gate_job, build_import_job, check_fuser_job, check_gate_job
from fedray.types import FedrayError

pytest.importorskip("datasets")
from mirror import Mirror, repo_of, serving
from published import save

RECEIVER, SENDER = "qwen3-0.6b", "hf:acme/LLM-1.5b"
PAIR = "acme-llm-1.5b--qwen3-0.6b"
OLD = "0" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed")
    save(folder / "receiver", "qwen3", "qwen3")
    save(folder / "sender", "llama", "llama", shards=True, seed=1)
    save(folder / "older", "llama", "llama", seed=2)
    return folder


@pytest.fixture
def mirror(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """The mirror, and huggingface_hub told of it as HF_ENDPOINT, HF_HUB_CACHE would have."""
    repos = {
        "Qwen/Qwen3-0.6B": repo_of(saved / "receiver"),
        "acme/LLM-1.5b": repo_of(saved / "sender"),
        "acme/older": repo_of(saved / "older"),
        "acme/gated": repo_of(saved / "sender", gated=True),
    }
    repos["acme/older"].revisions["v1"] = OLD
    with serving(repos) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
        template = mirror.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield mirror


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Conversations in OpenHermes' schema."""
    rows = [
        hermes(message("human", f"what is the color of bird {n}?"), message("gpt", f"it is red, {n} times."))
        for n in range(30)
    ]
    write(tmp_path / "openhermes" / "train.jsonl", rows)
    return tmp_path / "openhermes"


def given(folder: Path, talks: Path, **values: Any) -> dict[str, Any]:
    return {
        "zoo": "hub",
        "data": {"name": "openhermes", "path": talks, "against": [], "longest": 96, "held_out": 0.1},
        "limit": 30,
        "batch_size": 8,
        "ray": False,
        "tracking": False,
        "registry": {"path": folder / "registry"},
        "output": folder / "out",
        **values,
    }


def train(folder: Path, talks: Path, **values: Any) -> report.Report:
    short = {"hidden": 16, "steps": 4, "validate_every": 2, "save_every": 2}
    made = build_fuser_job(given(folder, talks, **{"sender": SENDER, **short, **values}))
    check_fuser_job(made)
    assert fuser_job.run(made) == 0
    return report.read(folder / "out")


def commit(mirror: Mirror, repo: str) -> str:
    found = mirror.repos[repo].commit()
    assert found is not None
    return found


def asked_for(mirror: Mirror) -> set[str]:
    """Names of the files that were asked for."""
    return {asked.rpartition("/")[2] for asked in mirror.asked if " /api/" not in asked}


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_what_is_trained_is_what_a_federation_finds(
    mirror: Mirror, talks: Path, tmp_path: Path, dtype: str | None
) -> None:
    left = train(tmp_path, talks, llm_dtype=dtype)
    (part,) = left.learned
    commits = [commit(mirror, "Qwen/Qwen3-0.6B"), commit(mirror, "acme/LLM-1.5b")]
    assert (left.zoo, left.status, part.name, part.steps) == ("hub", "complete", PAIR, 4)
    assert [member.revision for member in left.who.members] == commits
    assert all(member.dtype == (dtype or member.dtype) for member in left.who.members)
    manifest = read_manifest(Path(part.path or ""))
    assert manifest.training["revisions"] == dict(zip(("qwen3-0.6b", "acme-llm-1.5b"), commits, strict=True))
    assert manifest.llms.keys() == {"qwen3-0.6b", "acme-llm-1.5b"}
    assert str(tmp_path) not in json.dumps(manifest.training)

    steps = {"steps": 4, "layers": [0], "starts": 1, "at_once": 8, "llm_dtype": dtype}
    made = build_gate_job(given(tmp_path, talks, senders=[SENDER], **steps))
    check_gate_job(made)
    assert gate_job.run(made) == 0
    left = report.read(tmp_path / "out")
    gate = read_manifest(Path(left.learned[0].path or ""))
    assert [member.revision for member in left.who.members] == commits
    assert gate.training["fusers"] == {"acme-llm-1.5b": manifest.hash} and gate.config["senders"] == ["acme-llm-1.5b"]
    assert gate.training["revisions"] == manifest.training["revisions"]

    mirror.asked.clear()
    with Federation(
        zoo="hub",
        receiver=RECEIVER,
        senders=[SENDER],
        registry={"path": tmp_path / "registry"},
        ray=False,
        generation={"max_tokens": 2},
    ) as fed:
        assert fed.plan.fusers[SENDER].hash == manifest.hash
        assert fed.plan.gate_artifact and fed.plan.gate_artifact.hash == gate.hash
        assert SENDER in fed.ask("what is the color of bird 1?").rows[0].weights
    assert not any("/cdn/" in asked for asked in mirror.asked), "what the training downloaded is there"


def test_a_revision_and_a_folder_are_llms_as_well(mirror: Mirror, saved: Path, talks: Path, tmp_path: Path) -> None:
    """A later commit of the receiver is not loaded, and its fuser is of the older one's weights."""
    folder = saved / "older"
    left = train(
        tmp_path, talks, sender=str(folder), receiver="hf:acme/older", members={"hf:acme/older": {"revision": "v1"}},
        control="single",
    )  # fmt: skip
    assert [member.revision for member in left.who.members] == [OLD, ""]
    assert left.learned[0].name == "older--acme-older-single"
    left = train(tmp_path, talks, sender=str(folder))
    ((manifest, _),) = Registry(tmp_path / "registry", embedded=None).list()
    assert manifest.name == "older--qwen3-0.6b" and str(saved) not in json.dumps(manifest.training)
    assert manifest.training["revisions"] == {"qwen3-0.6b": commit(mirror, "Qwen/Qwen3-0.6B")}


def test_what_does_not_fit_is_refused_before_a_download(
    mirror: Mirror, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, talks)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(memory, "available", lambda device: 1 << 20)
    mirror.asked.clear()
    with pytest.raises(FedrayError, match=r"training needs about 1\.\d GiB per worker .* 0\.0 GiB free for it"):
        train(tmp_path, talks, batch_size=64)
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert asked_for(mirror) == small, "no weights: conversations are measured in the members' tokens"
    made = build_gate_job(given(tmp_path, talks, senders=[SENDER], at_once=64, layers=[0, 1]))
    with pytest.raises(FedrayError, match=r"training needs about 1\.\d GiB per worker .* 0\.0 GiB free for it"):
        gate_job.run(made)
    assert asked_for(mirror) == small


def test_a_gate_of_layers_that_are_not_there_is_refused_before_data_is_read(
    mirror: Mirror, talks: Path, tmp_path: Path
) -> None:
    made = build_gate_job(given(tmp_path, talks, senders=[SENDER], layers=[0, 1, 3]))
    with pytest.raises(FedrayError, match=r"has 2 layers, name no deeper one, as in 'layers=\[0, 1\]'"):
        gate_job.run(made)
    assert asked_for(mirror) == {"config.json"}


def test_the_driver_downloads_before_a_worker_here_begins(
    mirror: Mirror, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuser_job, "train", stop)
    assert fuser_job.run(build_fuser_job(given(tmp_path, talks, sender=SENDER))) == 130
    served = {asked.split("/")[3] for asked in mirror.asked if asked.startswith("GET /cdn/")}
    assert served == {"Qwen3-0.6B", "LLM-1.5b"}


def test_all_means_the_five(mirror: Mirror, saved: Path, talks: Path, tmp_path: Path) -> None:
    """All are pinned before one is trained, and those that have a fuser are left out."""
    for number, name in enumerate(NAMES[1:]):
        mirror.repos[published(name) or ""] = repo_of(saved / ("sender" if number % 2 else "older"))
    one = train(tmp_path, talks, sender="llama-1b", validate_every=0, patience=0)
    everyone = train(tmp_path, talks, sender="all", validate_every=0, patience=0)
    assert [part.name for part in (*everyone.learned, *one.learned)] == [f"{name}--{RECEIVER}" for name in NAMES[1:]]
    assert {member.name for member in everyone.who.members} == set(NAMES[:-1])


@pytest.mark.parametrize(
    ("sender", "says"),
    [
        ("hf:acme/nowhere", "hf:acme/nowhere: {} has no repository acme/nowhere: check the spelling"),
        ("hf:acme/gated", "hf:acme/gated: acme/gated is gated: accept its terms at "),
    ],
)
def test_what_cannot_be_had_is_one_sentence(mirror: Mirror, call: Call, tmp_path: Path, sender: str, says: str) -> None:
    code, said = call.train(f"sender={sender}", "zoo=hub", "ray=none", "tracking=none", "output=out")
    assert (code, call.out.count("report:")) == (2, 0), said
    assert said.startswith(says.format(mirror.url)) and said.count("\n") == 1
    assert not (tmp_path / "outputs" / "registry").exists()


def test_the_tiny_world_may_be_asked_about(
    mirror: Mirror, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded one's questions, for a folder of LLMs without a world too; and it is said what they are worth."""
    (tmp_path / "mine").mkdir()
    left = train(tmp_path, talks, data="tiny", limit=12, zoo={"name": "hub", "path": tmp_path / "mine"})
    assert left.learned[0].questions == 12 and left.data == ()
    assert "data=tiny asks about a made-up world" in capsys.readouterr().out
    assert read_manifest(Path(left.learned[0].path or "")).training["world_seed"] == 0


def test_a_published_fuser_is_imported_without_the_weights_of_its_llms(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = zoo(tmp_path / "zoo")
    mirror.repos |= {f"acme/{name}": repo_of(home / "llms" / name) for name in ("qwen3-0.6b", "qwen2.5-0.5b")}
    names = {"sender": "hf:acme/qwen2.5-0.5b", "receiver": "hf:acme/qwen3-0.6b"}
    mirror.repos[names["sender"].removeprefix("hf:")].revisions["v1"] = OLD
    places = {"zoo": "hub", "registry": {"path": tmp_path / "own"}, "output": tmp_path / "out"}
    members = {"hf:acme/qwen2.5-0.5b": {"revision": "v1"}}
    settings = build_import_job({"source": str(FUSERS["qwen2.5-0.5b"]), **names, **places, "members": members})
    assert import_c2c.run(settings) == 0
    assert not [asked for asked in mirror.asked if "/cdn/" in asked], mirror.asked
    ((manifest, _),) = Registry(tmp_path / "own", embedded=None).list()
    found = {"acme-qwen2.5-0.5b": OLD, "acme-qwen3-0.6b": commit(mirror, "acme/qwen3-0.6b")}
    assert manifest.training["revisions"] == found
    use = f"python jobs/federate.py zoo=hub receiver={names['receiver']} '+senders=[{names['sender']}]'"
    assert use in capsys.readouterr().out
    with Federation(
        zoo="hub", receiver=names["receiver"], senders=[names["sender"]], fuser="c2c", gate="none",
        registry={"path": tmp_path / "own"}, ray=False, members=members,
    ) as fed:  # fmt: skip
        assert fed.plan.fusers[names["sender"]].hash == manifest.hash
