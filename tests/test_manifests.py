"""Manifests of strangers: whatever stands in one, it is a version or one sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.jobs.registry import Inventory
from fedray.registry import hub
from fedray.registry.manifest import Manifest, digest_of
from fedray.registry.store import SHIPPED, Registry, load_fuser, load_gate
from fedray.types import FedrayError

PAIR, GATE = "llama-1b--qwen3-0.6b", "gate--qwen3-0.6b"
DEEP = 100_000
Values = dict[str, Any]


def text_of(name: str) -> str:
    manifest, _ = Registry().pick(name)
    return manifest.to_json()


def resealed(change: Callable[[Values], object]) -> Callable[[str], bytes]:
    """A change by somebody who writes a hash that fits."""

    def spoil(text: str) -> bytes:
        values = json.loads(text)
        change(values)
        values["hash"] = digest_of(values["role"], values["config"], values["llms"], values["weights"])
        return json.dumps(values).encode()

    return spoil


def changed(change: Callable[[Values], object]) -> Callable[[str], bytes]:
    def spoil(text: str) -> bytes:
        values = json.loads(text)
        change(values)
        return json.dumps(values).encode()

    return spoil


MALFORMED: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "null": lambda text: b"null",
    "a list": lambda text: b"[" + text.encode() + b"]",
    "a number": lambda text: b"7",
    "cut short": lambda text: text.encode()[:-20],
    "no UTF-8": lambda text: text.encode().replace(b"concat", b"\xff\xfe\xff"),
    "with a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "nested": lambda text: b"[" * DEEP + b"]" * DEEP,
    "nested objects": lambda text: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested training": lambda text: text.encode().replace(b'"steps": ', b'"a":' + b"[" * 500 + b"]" * 500 + b',"b":'),
    "a huge number": lambda text: text.encode().replace(b'"version": 1', b'"version": ' + b"9" * 5000),
    "version null": changed(lambda v: v.update(version=None)),
    "version true": changed(lambda v: v.update(version=True)),
    "newer": changed(lambda v: v.update(version=[2] * 1000)),
    "unknown key": changed(lambda v: v.update(more=1)),
    **{f"no {key}": changed(lambda v, key=key: v.pop(key)) for key in ("name", "role", "config", "llms", "weights")},
    **{f"no {key}": changed(lambda v, key=key: v.pop(key)) for key in ("training", "hash", "code")},
    **{f"{key} null": changed(lambda v, key=key: v.update({key: None})) for key in ("name", "role", "config", "llms")},
    **{f"{key} null": changed(lambda v, key=key: v.update({key: None})) for key in ("training", "weights", "hash")},
    "name a list": changed(lambda v: v.update(name=[v["name"]])),
    "config a text": changed(lambda v: v.update(config="mlp")),
    "config a list": resealed(lambda v: v.update(config=[1])),
    "llms a list": changed(lambda v: v.update(llms=list(v["llms"]))),
    "llms without hashes": resealed(lambda v: v.update(llms=dict.fromkeys(v["llms"]))),
    "llms of numbers": resealed(lambda v: v.update(llms={name: {"weights": 1, "tokenizer": 2} for name in v["llms"]})),
    "no tokenizer": resealed(lambda v: v["llms"]["llama-1b"].pop("tokenizer")),
    "no LLM": resealed(lambda v: v.update(llms={})),
    "a third LLM": resealed(lambda v: v["llms"].update(x=v["llms"]["llama-1b"])),
    "another LLM": resealed(lambda v: v["llms"].update(x=v["llms"].pop("llama-1b"))),
    "escapes in a hash": resealed(lambda v: v["llms"]["llama-1b"].update(weights="\x1b[2J")),
    "a surrogate in the code": changed(lambda v: v.update(code="\ud800")),
    "long code": changed(lambda v: v.update(code="x" * 10**6)),
    "other role": resealed(lambda v: v.update(role="gate")),
    "no role": resealed(lambda v: v.update(role="x" * 10**5)),
    "training a list": changed(lambda v: v.update(training=[])),
    "norms of no layer": changed(lambda v: v["training"].update(norms=[1.0] * 100)),
    "norms of other layers": changed(lambda v: v["training"].update(norms={"keys": [[1, 2]], "values": [[1, 2]]})),
    "config changed": changed(lambda v: v["config"].update(hidden=7)),
    "LLM changed": changed(lambda v: v["llms"]["llama-1b"].update(weights="0" * 16)),
    "weights changed": changed(lambda v: v.update(weights="0" * 64)),
    "hash of another": changed(lambda v: v.update(hash="0" * 16)),
    "elsewhere": resealed(lambda v: v.update(name="../up--here")),
    "unknown kind": resealed(lambda v: v["config"].update(kind="linear")),
    "kind a list": resealed(lambda v: v["config"].update(kind=["mlp"])),
    "unknown operator": resealed(lambda v: v["config"].update(operator="add")),
    "c2c that does not mix": resealed(lambda v: v["config"].update(kind="c2c", operator="concat")),
    "unknown alignment": resealed(lambda v: v["config"].update(layer_alignment="top")),
    "no sender": resealed(lambda v: v["config"].pop("sender")),
    "sender a number": resealed(lambda v: v["config"].update(sender=6)),
    "sender without heads": resealed(lambda v: v["config"]["sender"].pop("kv_heads")),
    "layers a text": resealed(lambda v: v["config"]["sender"].update(layers="6")),
    "layers a float": resealed(lambda v: v["config"]["sender"].update(layers=6.0)),
    "layers true": resealed(lambda v: v["config"]["sender"].update(layers=True)),
    "no layers": resealed(lambda v: v["config"]["sender"].update(layers=0)),
    "negative": resealed(lambda v: v["config"].update(hidden=-1)),
    "a billion layers": resealed(lambda v: v["config"]["receiver"].update(layers=10**9)),
    "a googol of heads": resealed(lambda v: v["config"]["receiver"].update(kv_heads=10**100)),
    "wide": resealed(lambda v: v["config"].update(hidden=10**4000)),
}  # fmt: skip
GATES: dict[str, Callable[[str], bytes]] = {
    "no senders": resealed(lambda v: v["config"].update(senders=[])),
    "senders a text": resealed(lambda v: v["config"].update(senders="llama-1b")),
    "senders of numbers": resealed(lambda v: v["config"].update(senders=[1])),
    "escapes in a sender": resealed(lambda v: v["config"].update(senders=["\x1b[2J"])),
    "another receiver": resealed(lambda v: v["config"].update(receiver="llama-1b")),
    "no number": resealed(lambda v: v["config"].update(sharpness=float("nan"))),
    "infinite": resealed(lambda v: v["config"].update(sharpness=10**400)),
    "a layer below": resealed(lambda v: v["config"].update(layer=-1)),
    "a fuser's": resealed(lambda v: v.update(role="fuser")),
    "unknown operator": resealed(lambda v: v["config"].update(operator=None)),
}


def own(tmp_path: Path, name: str, spoil: Callable[[str], bytes]) -> tuple[Path, Registry]:
    """A registry with a spoilt version of a name; its folder is called by the hash that the spoilt manifest has."""
    manifest, folder = Registry().pick(name)
    spoilt = spoil(manifest.to_json())
    try:
        digest = json.loads(spoilt)["hash"]
    except (ValueError, KeyError, TypeError, RecursionError):
        digest = None
    digest = digest if isinstance(digest, str) else manifest.hash
    target = tmp_path / "own" / name / digest
    shutil.copytree(folder, target)
    (target / "manifest.json").write_bytes(spoilt)
    return target, Registry(tmp_path / "own")


CASES = [
    *((PAIR, key, spoil) for key, spoil in MALFORMED.items()),
    *((GATE, key, spoil) for key, spoil in GATES.items()),
]


@pytest.mark.parametrize(("name", "spoil"), [pytest.param(n, s, id=f"{n[:4]} {key}") for n, key, s in CASES])
def test_it_is_one_sentence_and_the_others_are_served(name: str, spoil: Callable[[str], bytes], tmp_path: Path) -> None:
    embedded, folder = Registry().pick(name)
    target, registry = own(tmp_path, name, spoil)
    load = load_fuser if name == PAIR else load_gate
    with pytest.raises(FedrayError) as caught:
        load(replace(embedded.artifact(folder), hash=target.name, path=str(target)))
    said = str(caught.value)
    assert (
        said.startswith(str(target / "manifest.json")) and "\n" not in said and said.isprintable() and len(said) < 600
    )
    assert registry.pick(name)[1] == folder, "the version before it"
    assert registry.problems == {target: said}
    assert len(registry.list()) == len(Registry().list())
    with pytest.raises(FedrayError):
        registry.pick(name, target.name)

    repository = hub.write(embedded, folder, tmp_path / "repository")
    shutil.copy(target / "manifest.json", repository / "config.json")
    with pytest.raises(FedrayError, match="missing or describes no fuser or gate of fedray") as caught:
        Inventory(tmp_path / "more", None).load(str(repository))
    assert "\n" not in str(caught.value) and str(caught.value).isprintable() and not (tmp_path / "more").exists()
    assert registry.delete(name, target.name) == target and not target.exists()


def test_a_config_that_does_not_fit_the_tensors_is_one_sentence(tmp_path: Path) -> None:
    target, registry = own(tmp_path, PAIR, resealed(lambda v: v["config"].update(hidden=7)))
    manifest, folder = registry.pick(PAIR)
    assert folder == target, "the manifest is what it says"
    with pytest.raises(FedrayError, match="does not hold what its manifest says") as caught:
        load_fuser(manifest.artifact(folder))
    assert str(target) in str(caught.value) and "\n" not in str(caught.value)


def test_a_version_in_the_folder_of_another_is_refused(tmp_path: Path) -> None:
    """The hash does not cover which of two LLMs sends."""
    manifest, folder = Registry().pick(PAIR)
    for name, digest in (("qwen3-0.6b--llama-1b", manifest.hash), (PAIR, "0" * 16)):
        target = tmp_path / name / digest
        shutil.copytree(folder, target)
        registry = Registry(tmp_path, embedded=None)
        assert registry.versions(name) == [] and f"it is that of {PAIR} {manifest.hash}" in registry.problems[target]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["training"].update(losses=[1.0] * 100, note="x\ud800\x1b", deep=[[[[[[[[1]]]]]]]]),
        lambda v: v.update(training={}, code="later than this"),
        lambda v: v["training"].update(steps="many", questions=None),
    ],
)
def test_what_the_hash_does_not_cover_may_differ(change: Callable[[Values], object], tmp_path: Path) -> None:
    target, registry = own(tmp_path, PAIR, changed(change))
    manifest, folder = registry.pick(PAIR)
    assert folder == target and not registry.problems
    load_fuser(manifest.artifact(folder))
    repository = hub.write(manifest, folder, tmp_path / "repository")
    assert Inventory(tmp_path / "more", None).load(str(repository))[0] == manifest


def test_the_embedded_ones_are_as_they_were() -> None:
    """Their files byte for byte, and their names by the hash they have always had."""
    found = Registry().list()
    assert len(found) == 59 and len(list(SHIPPED.glob("*/*"))) == 59
    for manifest, folder in found:
        assert manifest.to_json() == (folder / "manifest.json").read_text(encoding="utf-8")
        assert (
            manifest.hash == digest_of(manifest.role, manifest.config, manifest.llms, manifest.weights) == folder.name
        )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.data(), st.sampled_from([PAIR, GATE]))
def test_any_value_anywhere_is_read_or_refused(data: st.DataObject, name: str) -> None:
    """Under a hash that fits, so that nothing else keeps it out."""
    values = json.loads(text_of(name))
    for _ in range(data.draw(st.integers(1, 3))):
        place, path = values, []
        while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            path.append((place, data.draw(st.sampled_from(list(keys)))))
            place = place[path[-1][1]]
        parent, key = path[-1]
        if isinstance(parent, dict) and data.draw(st.booleans()):
            del parent[key]
        else:
            parent[key] = data.draw(anything)
    if {"role", "config", "llms", "weights"} <= values.keys():
        values["hash"] = digest_of(values["role"], values["config"], values["llms"], values["weights"])
    try:
        manifest = Manifest.from_json(json.dumps(values))
    except FedrayError as error:
        assert str(error)
    else:
        assert Manifest.from_json(manifest.to_json()) == manifest or "NaN" in manifest.to_json()
        assert manifest.artifact(SHIPPED).name == name
        hub.card(manifest, "me/mine")
